"""Sigmoid gates in front of attention, behind it, or behind the output matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.sizes import Sizes
from regard.projections.base import Grouped, split_heads

At = Literal["query", "key", "value", "heads", "output"]


@published(
    "gates",
    family="scored",
    kind="projection",
    row=279,
    title="Gated Attention for Large Language Models: Non-linearity, Sparsity, and Attention-Sink-Free",
    arxiv="2505.06708",
    year=2025,
    aliases=("gate_positions",),
    fidelity="hand values",
    claim=(
        Claim(
            "a sigmoid gate at any of five places is its equation",
            cells="projections.gate",
            holds="common.within(most=1e-12)",
        ),
        Claim(
            "a trained language model with one behind attention loses nothing",
            cells="small_lm.beside(layers='softmax*2', projection='gates(at=heads)')",
            holds="small_lm.loss_at_most(ratio=1.0)",
        ),
        Claim("opens it by less than half", cells="projections.gated_models", holds="projections.opens_little"),
        Claim(
            "looks less at the first token: Bigram-Backcopy, one head",
            cells="dormant.gated()",
            holds="dormant.looks_less_at_the_first",
        ),
        Claim(
            "and bears ten times the learning rate better",
            cells="projections.gated_and_fast",
            holds="projections.loses_less",
        ),
    ),
)
class Gates(Grouped):
    """Grouped projections with a sigmoid gate at one place, opened by the hidden state of the token itself.

        at query, key or value:  z_h ← z_h ⊙ σ(x W^G_h),   z = q, k or v, of its own token
        at heads:                o_h ← o_h ⊙ σ(x W^G_h),   the output of attention
        at output:               y ← y ⊙ σ(x W^G)

    With ``each`` W^G gives a number for each coordinate, else one for each head (at the output, one for the token).
    Parameters: those of `Grouped`, and width times the numbers of a token's gate.

    Paper: Qiu et al., arXiv 2505.06708: positions G4, G3, G2, G1 and G5 there.

    Raises:
        ValueError: another place.
    """

    def __init__(self, sizes: Sizes, at: At = "heads", each: bool = True) -> None:
        super().__init__(sizes)
        places = {
            "query": (sizes.heads, sizes.head_dim),
            "key": (sizes.kv_heads, sizes.head_dim),
            "value": (sizes.kv_heads, sizes.value_dim),
            "heads": (sizes.heads, sizes.value_dim),
            "output": (1, sizes.width),
        }
        if at not in places:
            raise wrong("at", repr(at), ", ".join(places))
        self.at, (self.gated, size) = at, places[at]
        self.gate = nn.Linear(sizes.width, self.gated * (size if each else 1), bias=False)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        """At each place; a gate of weights zero is open by half, which a matrix twice as large makes good."""
        sizes = Sizes(13, 4, 2, 5, 7)
        found = [Sample(f"at {at}", cls(sizes, at, each=at != "key")) for at in get_args(At)]
        half = cls(sizes, "value")
        plain = Grouped(sizes).same_as(half)
        with torch.no_grad():
            half.gate.weight.zero_()
            half.v.weight.mul_(2)
        return [*found, Sample("half open", half, {"equals": plain})]

    def opening(self, x: Tensor) -> Tensor:
        """σ(x W^G) ``(b, heads, n, numbers)`` of tokens ``x (b, n, width)``; one head at the output."""
        return torch.sigmoid(split_heads(self.gate(x), self.gated))

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().forward(x, context)
        if self.at == "query":
            q = q * self.opening(x)
        elif self.at == "key":
            k = k * self.opening(context)
        elif self.at == "value":
            v = v * self.opening(context)
        return q, k, v

    def gate_heads(self, out: Tensor, x: Tensor, positions: Tensor | None) -> Tensor:
        return out * self.opening(x) if self.at == "heads" else out

    def finish(self, out: Tensor, x: Tensor, positions: Tensor | None) -> Tensor:
        merged = super().finish(out, x, positions)
        return merged * self.opening(x)[:, 0] if self.at == "output" else merged

    @property
    def parameter_count(self) -> int:
        return super().parameter_count + self.gate.weight.numel()
