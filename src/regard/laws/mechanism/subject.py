"""What a law examines: one example of a mechanism, with inputs drawn for it and comparisons that explain themselves."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from regard.core.deprecated import warn
from regard.core.layout import Layout
from regard.core.mechanism import Example, Mechanism, Signal, Traits, repeat_heads
from regard.laws.finding import Broken, Unclaimed, same

BATCH, FEW = 3, 2
"""Sequences of a call; few where there are so many tokens that a call costs by its pairs."""
SHORT, MIDDLE, LONG = 13, 257, 521
"""MIDDLE leaves the paths for few tokens; LONG crosses the tiles and chunks of the fast paths, of up to 512, and
divides none."""
SEED = 20_261

__all__ = [
    "BATCH",
    "LONG",
    "MIDDLE",
    "SHORT",
    "Broken",
    "Inputs",
    "Subject",
    "Unclaimed",
    "batch_of",
    "real_rows",
    "same",
]


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` and the signals by name."""

    q: Tensor
    k: Tensor
    v: Tensor
    signals: dict[str, Tensor]

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {"q": self.q, "k": self.k, "v": self.v, **self.signals}

    def map(self, function) -> Inputs:
        """``function(name, tensor)`` applied to each tensor."""
        new = {name: function(name, tensor) for name, tensor in self.tensors.items()}
        return Inputs(new.pop("q"), new.pop("k"), new.pop("v"), new)


class Subject:
    """One example under examination.

    Args:
        example: the mechanism and its head counts. device: where to examine it.
    """

    def __init__(self, example: Example, device: str = "cpu"):
        self.example, self.device = example, device
        self.mechanism: Mechanism = copy.deepcopy(example.mechanism).to(device)
        self.traits: Traits = self.mechanism.traits
        self.long, self.middle = (min(size, example.longest) for size in (LONG, MIDDLE))

    def cast(self, dtype: torch.dtype) -> Mechanism:
        """The mechanism with its parameters rounded to ``dtype``."""
        return copy.deepcopy(self.mechanism).to(dtype)

    def side(self, name: str) -> str:
        """ "query" or "key": along which of the two sequences a tensor runs."""
        return {"q": "query", "k": "key", "v": "key"}.get(name) or self.mechanism.signals[name].side

    def draw(
        self, n: int, m: int | None = None, *, seed: int = 0, dtype: torch.dtype = torch.float64, **sizes: int
    ) -> Inputs:
        """Random inputs for ``n`` queries and ``m`` keys (None: as many); ``sizes`` overrides batch, d, e, kv_heads."""
        m = n if m is None else m
        example, batch = self.example, sizes.get("batch", batch_of(n, m))
        d, e = sizes.get("d", example.head_dim), sizes.get("e", example.value_dim)
        heads, groups = example.heads, sizes.get("kv_heads", example.kv_heads)
        generator = torch.Generator().manual_seed(SEED + seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        def signal(spec: Signal) -> Tensor:
            tokens = n if spec.side == "query" else m
            rows = spec.rows(heads, groups)
            return spec.within(normal(batch, rows, tokens, *spec.size(d, e)))

        q, k, v = normal(batch, heads, n, d), normal(batch, groups, m, d), normal(batch, groups, m, e)
        signals = {name: signal(spec) for name, spec in self.mechanism.signals.items()}
        return Inputs(q, k, v, signals).map(lambda _, tensor: tensor.to(self.device, dtype))

    def layouts(self, n: int, m: int, batch: int | None = None) -> Iterator[tuple[str, Layout]]:
        """Every kind of layout that the traits allow for these lengths, with a name for the report."""
        batch = batch or batch_of(n, m)
        for causal in self.directions():
            name = "causal" if causal else "bidirectional"
            if not self.fits(n, m, causal):
                continue
            base = Layout(causal=causal)
            yield name, base
            if m > 3:
                for side in ("left", "right"):
                    yield f"{name}, {side} padding", replace(base, key_mask=self.padding(m, batch, side))
            if self.traits.packed and n <= m and m > 3:
                yield f"{name}, packed", replace(base, segments=self.documents(m, batch))

    def fits(self, n: int, m: int, causal: bool) -> bool:
        """Whether the traits allow for so many queries and keys."""
        return (n >= m or self.traits.suffix) if causal else (n == m or self.traits.cross)

    def directions(self) -> list[bool]:
        """The values of ``Layout.causal`` that the traits claim."""
        return [
            causal for causal, claimed in ((True, self.traits.causal), (False, self.traits.bidirectional)) if claimed
        ]

    def padding(self, m: int, batch: int, side: str) -> Tensor:
        """``(batch, m)`` bool with 0, 1/4, 1/2 … of each sequence padded on one side; of two, with 0 and 1/2."""
        parts = 4 if batch > FEW else 2
        lengths = torch.tensor([max(1, m - row * m // parts) for row in range(batch)], device=self.device)[:, None]
        steps = torch.arange(m, device=self.device)[None]
        return steps < lengths if side == "right" else steps >= m - lengths

    def documents(self, m: int, batch: int) -> Tensor:
        """``(batch, m)`` int64 ids of packed documents whose borders differ between sequences."""
        borders = torch.tensor([[m // (3 + row), m // 2 + row] for row in range(batch)], device=self.device)
        return (torch.arange(m, device=self.device)[None, None] >= borders[..., None]).sum(1)

    def call(self, inputs: Inputs, layout: Layout, mechanism: Mechanism | None = None) -> Tensor:
        """``forward`` on the inputs."""
        return (mechanism or self.mechanism)(inputs.q, inputs.k, inputs.v, layout, **inputs.signals)

    def define(self, inputs: Inputs, layout: Layout, mechanism: Mechanism) -> Tensor:
        """``weights @ v`` on the inputs, or `Mechanism.define` where that is not linear: what ``forward`` is held
        to."""
        if not mechanism.traits.linear:
            return mechanism.define(inputs.q, inputs.k, inputs.v, layout, **inputs.signals)
        weights = mechanism.weights(inputs.q, inputs.k, layout, **inputs.signals)
        return weights @ repeat_heads(inputs.v, inputs.q.shape[1])


def batch_of(n: int, m: int) -> int:
    """How many sequences a call of so many queries and keys has."""
    return BATCH if max(n, m) < 64 else FEW


def real_rows(layout: Layout, n: int, m: int, batch: int) -> Tensor:
    """``(batch, n)`` bool: queries that are real tokens; the output of the others is unspecified."""
    if layout.key_mask is None or (n > m and not layout.causal):
        return torch.ones(batch, n, dtype=torch.bool)
    return torch.nn.functional.pad(layout.key_mask[:, max(m - n, 0) :].cpu(), (max(n - m, 0), 0), value=True)


def __getattr__(name: str) -> Any:
    """What stood here in 0.1, until 0.3."""
    former = {
        "HEAD_DIM": ("Example.head_dim", Example.head_dim),
        "VALUE_DIM": ("Example.value_dim", Example.value_dim),
        "within": ("Signal.within", lambda noise, spec: spec.within(noise)),
    }
    if name not in former:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    present, value = former[name]
    warn(name, present)
    return value
