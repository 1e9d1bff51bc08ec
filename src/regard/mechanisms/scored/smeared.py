"""Smeared keys: softmax attention in which each key is mixed with the key before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, accumulate_dtype, repeat_heads
from regard.mechanisms.scored.softmax import Softmax


@published(
    "smeared_keys",
    family="scored",
    row=353,
    title="In-context Learning and Induction Heads",
    arxiv="2209.11895",
    year=2022,
    fidelity="hand values",
    claim=Claim(
        "one layer of it matches prefixes, as one layer of softmax attention cannot",
        cells="emergence.in_one_layer",
        holds="emergence.smeared_alone",
    ),
)
class SmearedKeys(Softmax):
    """Softmax attention whose keys are mixed with those of the token before.

        k'_t = σ(α_h) k_t + (1 − σ(α_h)) k_{t−1},   A = softmax(q · k' / √d)

    α is ``mix``, one number for each head, from zero: half and half. A token's key so says what stands before it,
    for which two layers are needed otherwise: induction heads form in one. The first token of a document keeps its key;
    padding does not count as a token, and a key that is hidden from a query is still part of the next.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h.
    Cost: that of softmax attention, and keys of all heads. State: all keys, as they come, and values.

    Args:
        heads: of q.

    Raises:
        ValueError: q of other heads.

    Paper: Olsson et al., arXiv 2209.11895.
    """

    traits = replace(Softmax.traits, equivariant=False, masked=False)

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        if heads < 1:
            raise wrong("heads", str(heads), "at least 1")
        self.mix = nn.Parameter(torch.zeros(heads))

    def smeared(self, k: Tensor, layout: Layout) -> Tensor:
        """k' of every head."""
        wide, heads = k.to(accumulate_dtype(k.dtype)), len(self.mix)
        last = wide.take_along_dim(before(k, layout)[:, None, :, None], 2)
        own = torch.sigmoid(self.mix).to(wide.dtype)[:, None, None]
        return (own * repeat_heads(wide, heads) + (1 - own) * repeat_heads(last, heads)).to(k.dtype)

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        return super().weights(q, self.smeared(k, layout), layout, **signals)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)
        return super().forward(q, self.smeared(k, layout), repeat_heads(v, len(self.mix)), layout, **signals)

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        if q.shape[1] != len(self.mix):
            raise wrong("q", f"{q.shape[1]} heads", f"the {len(self.mix)} heads of mix")

    @classmethod
    def examples(cls) -> Sequence[Example]:
        made = [Example("plain", cls(3), heads=3, kv_heads=3), Example("grouped", cls(4), heads=4, kv_heads=2)]
        for example in made:
            nn.init.uniform_(example.mechanism.get_parameter("mix"), -2, 2, generator=torch.Generator().manual_seed(0))
        return made


def before(k: Tensor, layout: Layout) -> Tensor:
    """``(b, m)`` int64: the slot of the real token before each, its own where there is none in its document."""
    slots = torch.arange(k.shape[2], device=k.device).expand(len(k), -1)
    real = slots >= 0 if layout.key_mask is None else layout.key_mask
    last = torch.where(real, slots, -1).cummax(1).values
    earlier = torch.cat([torch.full_like(last[:, :1], -1), last[:, :-1]], 1)
    there = earlier >= 0
    if layout.segments is not None:
        there = there & (layout.segments.gather(1, earlier.clamp(min=0)) == layout.segments)
    return torch.where(there, earlier, slots)
