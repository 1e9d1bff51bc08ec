"""Highlighting and knocking out: more or less attention to some keys, the rest in proportion."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.edit import Edit, Place, Rows, Where, sampled
from regard.core.errors import wrong
from regard.core.kinds import Sample

Heads = Sequence[int] | Mapping[int, Sequence[int]]
Spans = Sequence[tuple[int, int]]


class Tilt(Edit):
    """The chosen keys weigh ``factor`` times as much against the others: A'_ij ∝ γ A_ij there, and rows keep their sum.

    It is the same as adding log γ to the scores of these keys.
    """

    @property
    def factor(self) -> float:
        """γ, from 0 on."""
        raise NotImplementedError

    def masses(self, m: Tensor, place: Place) -> Tensor:
        return tilted(m, m.new_tensor([1.0, self.factor]))


def tilted(m: Tensor, factors: Tensor) -> Tensor:
    """Masses ``m (…, g)`` times ``factors``, scaled to the sum that they had; zeros where nothing is left."""
    moved = m * factors
    total = moved.sum(-1, keepdim=True)
    return torch.where(total > 0, moved * m.sum(-1, keepdim=True) / total.clamp(min=torch.finfo(m.dtype).tiny), 0)


@published(
    "pasta",
    family="steering",
    kind="edit",
    title="Tell Your Model Where to Attend: Post-hoc Attention Steering for LLMs",
    arxiv="2311.02262",
    year=2023,
    aliases=("highlight",),
    claim=Claim(
        text="the highlighted keys' share of a row's odds grows by the factor, in prefill and decoding alike",
        status="works",
        figure="rows equal the dense definition to 1e-5 over drawn layouts",
        command="pytest tests/unit/edits/test_edits.py",
    ),
)
class Highlight(Tilt):
    """More attention to highlighted tokens: keys outside of them weigh 1/e^s times as much, and rows still sum to one.

        A'_ij = A_ij / C_i for highlighted j, e^−s A_ij / C_i for others

    Args:
        keys: spans of positions of the unpadded text, or ``tokens``: ids. strength: s; PASTA's α = 0.01 is log 100.
        heads, layers, rows, batch: see `core.edit.Where`; the paper chooses heads by what they gain on a task.
    """

    dial: ClassVar[tuple[str, float] | None] = ("strength", 0.0)

    def __init__(
        self,
        keys: Spans | None = None,
        strength: float = math.log(100),
        *,
        tokens: Sequence[int] | None = None,
        heads: Heads | None = None,
        layers: Iterable[int] | None = None,
        rows: Rows | None = None,
        batch: Sequence[int] | None = None,
    ) -> None:
        if keys is None and tokens is None:
            raise wrong("keys", "None", "spans of positions, [(start, stop)], or tokens=[id]")
        super().__init__(Where(layers, heads, rows, keys, tokens, batch))
        self.strength = strength

    @property
    def factor(self) -> float:
        return math.exp(self.strength)

    @classmethod
    def examples(cls) -> list[Sample]:
        return sampled(
            cls([(2, 5)], 1.3), cls([(0, 1), (3, 4)], -0.7, heads={1: [0, 2]}), cls(tokens=range(3, 14), layers=[1])
        )


class KnockOut(Tilt):
    """Attention to some keys taken away: A_ij ← (1 − s) A_ij, and rows keep their sum.

    With ``strength`` 1 the weights are exactly zero, as with scores of −∞; a row that sees nothing else gives zeros.

    Args:
        keys, tokens, heads, layers, rows, batch: see `Highlight`. strength: s, from 0 to 1.

    Paper: attention knock-out, Geva et al., arXiv 2304.14767.
    """

    dial: ClassVar[tuple[str, float] | None] = ("strength", 0.0)

    def __init__(
        self,
        keys: Spans | None = None,
        strength: float = 1.0,
        *,
        tokens: Sequence[int] | None = None,
        heads: Heads | None = None,
        layers: Iterable[int] | None = None,
        rows: Rows | None = None,
        batch: Sequence[int] | None = None,
    ) -> None:
        if keys is None and tokens is None:
            raise wrong("keys", "None", "spans of positions, [(start, stop)], or tokens=[id]")
        if not 0 <= strength <= 1:
            raise wrong("strength", str(strength), "0 (nothing) to 1 (no attention to these keys at all)")
        super().__init__(Where(layers, heads, rows, keys, tokens, batch))
        self.strength = strength

    @property
    def factor(self) -> float:
        return 1 - self.strength

    def masses(self, m: Tensor, place: Place) -> Tensor:
        """What is left of m₁ is (1 − s) m₁, and the other keys get the rest; all of it stays where there are none."""
        others, total = m[..., :1], m.sum(-1, keepdim=True)
        kept = torch.where(others > 0, m[..., 1:] * self.factor, total if self.factor else 0)
        return torch.cat([torch.where(others > 0, total - kept, 0), kept], dim=-1)

    @classmethod
    def examples(cls) -> list[Sample]:
        return sampled(
            cls([(2, 5)]), cls([(1, 3)], 0.4, heads=[1], rows=slice(4, None)), cls(tokens=range(3, 14), layers=[0])
        )
