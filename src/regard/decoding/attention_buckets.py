"""Attention Buckets: copies of a model with other rotary bases, whose attention peaks at other distances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.decoding.base import Mixture

RATES = "inv_freq"
"""How the rates of rotary positions are called in every model of Transformers, alone or behind a layer type."""


@published(
    "attention_buckets",
    family="steering",
    kind="decoding",
    row=58,
    title="Fortify the Shortest Stave in Attention: Enhancing Context Awareness of LLMs for Effective Tool Use",
    arxiv="2312.04455",
    year=2023,
    fidelity="abstract only",
    claim=Claim(
        "on lookups in SmolLM2 the worst place is read better than with its own base, and the mean is not lower",
        cells="decoding.bucketed",
        holds="decoding.fills_the_trough",
    ),
)
class AttentionBuckets(Mixture):
    """Parallel runs that differ in the base of their rotary positions, mixed by how sure each of them is.

        p = Σ_j w_j p_j,   w_j = max p_j / Σ_i max p_i

    Rates of rotary positions are base^(−2i/d); with ``factor`` times the base they are the model's own times
    factor^(−2i/d), so that the attention of a copy peaks and sinks at other distances. Costs as many passes as factors.

    Args:
        factors: of the model's own base, the first 1.0: the model as it is. With 1.0 alone it is plain decoding.

    Raises:
        ValueError: the first factor is not 1, or one is not positive; when it decodes, a model without rotary
            positions, or with some that do not follow their rates.

    Paper: arXiv 2312.04455, whose code was not at hand: the weights w are the abstract's "maximum probability", scaled
    to one, and what the search of `searched` makes smaller is ours: see `complementary`.
    """

    def __init__(self, factors: Sequence[float] = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5)) -> None:
        if not factors or factors[0] != 1 or not all(factor > 0 for factor in factors):
            raise wrong("factors", str(list(factors)), "positive numbers, the first 1.0: the model's own base")
        self.factors = tuple(factors)

    @classmethod
    def searched(cls, model: PreTrainedModel, length: int, count: int = 6, most: float = 4.0) -> AttentionBuckets:
        """With ``count`` bases, the model's own and those up to ``most`` times it whose peaks fill the troughs best.

        Args:
            length: of the texts, in tokens: up to which distance peaks and troughs count.

        Raises:
            ValueError: a model without rotary positions, or whose rates do not fall.
        """
        found = [rate for module in model.modules() for rate in rates(module).values()]
        if not found or not bool((found[0][1:] < found[0][:-1]).all()):
            raise wrong("model", type(model).__name__, "one with rotary positions, whose rates fall")
        return cls(complementary(found[0], length, count, [1 + step * (most - 1) / 60 for step in range(61)]))

    @property
    def copies(self) -> int:
        return len(self.factors)

    def around(self, model: PreTrainedModel, copies: Sequence[int]) -> AbstractContextManager[Any]:
        return rebased(model, [self.factors[copy] for copy in copies])

    def mixed(self, logits: Tensor) -> Tensor:
        if logits.shape[1] == 1:
            return logits[:, 0]
        each = logits.softmax(-1)
        sure = each.amax(-1, keepdim=True)
        return (each * sure / sure.sum(1, keepdim=True)).sum(1).log()

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("three bases", cls((1.0, 0.01, 30.0))), Sample("its own", cls((1.0,)), {"plain": True})]


def waveform(rates: Tensor, length: int) -> Tensor:
    """``(length,)``: how much attention rotary positions leave at each distance from 0 on, at most.

        w(Δ) = 2/d Σ_j |Σ_{i ≤ j} e^{iΔθ_i}|

    Paper: Su et al., arXiv 2104.09864, whose bound of q·k it is, but for a factor.
    """
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates.double().cpu()
    return torch.polar(torch.ones_like(angles), angles).cumsum(1).abs().mean(1)


def extrema(wave: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """``(peaks, troughs)``: where a wave is the largest, or the least, of the ``reach`` places on either side."""
    size = 2 * reach + 1
    highest, lowest = (sign * F.max_pool1d(sign * wave[None, None], size, 1, reach)[0, 0] for sign in (1, -1))
    inside = torch.zeros_like(wave, dtype=torch.bool)
    inside[reach:-reach] = True
    return ((wave == highest) & inside).nonzero()[:, 0], ((wave == lowest) & inside).nonzero()[:, 0]


def complementary(rates: Tensor, length: int, count: int, factors: Sequence[float]) -> list[float]:
    """The model's own base, 1.0, and then one by one the ``factors`` whose peaks fill the troughs best.

    The gap of a choice is the mean, over the troughs of all its waveforms, of the distance to the nearest peak of
    another one; the factor that makes it smallest is added.

    Args:
        rates: of the own base, ``(d/2,)``. length: of the waveforms. count: how many factors are given back.

    Raises:
        ValueError: fewer factors than asked for.
    """
    others = [factor for factor in factors if factor != 1]
    if not 1 <= count <= len(others) + 1:
        raise wrong("count", str(count), f"1 to {len(others) + 1}, the own base and {len(others)} others")
    powers = torch.arange(len(rates), dtype=torch.float64) / len(rates)
    reach = max(1, length // 64)
    found = {f: extrema(waveform(rates.double().cpu() * f**-powers, length), reach) for f in (1.0, *others)}
    chosen = [1.0]
    while len(chosen) < count:
        left = [factor for factor in others if factor not in chosen]
        chosen.append(min(left, key=lambda factor: gap([found[one] for one in (*chosen, factor)])))
    return chosen


def gap(waves: Sequence[tuple[Tensor, Tensor]]) -> float:
    """The mean distance from the troughs of waves to the nearest peak of another; ∞ where there is none."""
    far = []
    for index, (_, troughs) in enumerate(waves):
        peaks = torch.cat([peaks for other, (peaks, _) in enumerate(waves) if other != index])
        if len(troughs) and not len(peaks):
            return float("inf")
        far.append((troughs[:, None] - peaks).abs().amin(1).double() if len(troughs) else peaks[:0].double())
    every = torch.cat(far)
    return every.mean().item() if len(every) else 0.0


@contextmanager
def rebased(model: nn.Module, factors: Sequence[float]) -> Iterator[None]:
    """Rows of a batch, in turn, with rotary positions of these factors of the base."""
    found = [module for module in model.modules() if any(name.endswith(RATES) for name in rates(module))]
    if not found:
        raise wrong("model", type(model).__name__, "one with rotary positions")
    own = [module.forward for module in found]
    try:
        for module, forward in zip(found, own, strict=True):
            module.forward = Rebased(module, forward, factors)
        yield
    finally:
        for module in found:
            del module.__dict__["forward"]


def rates(module: nn.Module) -> dict[str, Tensor]:
    """The rates that a module keeps, by their names."""
    return {name: value for name, value in module.named_buffers(recurse=False) if name.endswith(RATES)}


class Rebased:
    """The forward of a module of rotary positions, run once for each factor with the rates of its base.

    Args:
        module: which one. forward: its own. factors: of its base, for rows of a batch in turn.
    """

    def __init__(self, module: nn.Module, forward: Any, factors: Sequence[float]) -> None:
        self.module, self.forward, self.factors = module, forward, factors

    def __call__(self, x: Tensor, position_ids: Tensor, *arguments: Any, **named: Any) -> tuple[Tensor, ...]:
        count, kept = len(self.factors), rates(self.module)
        every: list[tuple[Tensor, ...]] = []
        try:
            for copy, factor in enumerate(self.factors):
                for name, own in kept.items():
                    powers = torch.linspace(0, 1, len(own) + 1, device=own.device, dtype=own.dtype)[:-1]
                    setattr(self.module, name, own * factor**-powers)
                whose = position_ids if len(position_ids) == 1 else position_ids[copy::count]
                every.append(self.forward(x[copy::count], whose, *arguments, **named))
        finally:
            for name, own in kept.items():
                setattr(self.module, name, own)
        turned = count > 1 and all(torch.equal(one, other) for one, other in zip(every[0], every[-1], strict=True))
        if turned and self.factors[0] != self.factors[-1] and position_ids.any():
            raise wrong("model", type(self.module).__name__, f"rotary positions that follow their {RATES}")
        rows = len(x) // count
        return tuple(
            torch.stack([part.expand(rows, *part.shape[1:]) for part in parts], 1).flatten(0, 1)
            for parts in zip(*every, strict=True)
        )
