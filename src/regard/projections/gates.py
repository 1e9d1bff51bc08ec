"""Sigmoid gates in front of attention, behind it, or behind the output matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
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
    claim=Claim(
        text="a sigmoid gate at any of five places; a trained language model with one behind attention loses nothing, "
        "opens it by less than half and looks less at the first token",
        status="partly",
        figure="all five places equal their equation to 1e-12; small language model, three seeds, gates behind "
        "attention: loss 0.8% below softmax's, 7.9% below at ten times the rate, opened by 0.45; on the first token "
        "0.9%, without 0.8%: models so small have no sink",
        command="pytest tests/claims/test_gates.py tests/claims/test_small_models.py",
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

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        value_dim: int,
        at: At = "heads",
        each: bool = True,
    ) -> None:
        super().__init__(width, heads, kv_heads, head_dim, value_dim)
        places = {
            "query": (heads, head_dim),
            "key": (kv_heads, head_dim),
            "value": (kv_heads, value_dim),
            "heads": (heads, value_dim),
            "output": (1, width),
        }
        if at not in places:
            raise wrong("at", repr(at), ", ".join(places))
        self.at, (self.gated, size) = at, places[at]
        self.gate = nn.Linear(width, self.gated * (size if each else 1), bias=False)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        """At each place; a gate of weights zero is open by half, which a matrix twice as large makes good."""
        found = [Sample(f"at {at}", cls(13, 4, 2, 5, 7, at, each=at != "key")) for at in get_args(At)]
        half = cls(13, 4, 2, 5, 7, "value")
        plain = Grouped(13, 4, 2, 5, 7).same_as(half)
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
