"""Found in the middle: passages get attention by what they say and not by where they stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.edit import Edit, Place, Rows, Where, sampled
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.edits.tilt import Heads, Spans


@published(
    "found_in_the_middle",
    family="steering",
    kind="edit",
    row=305,
    title="Found in the Middle: Calibrating Positional Attention Bias Improves Long Context Utilization",
    arxiv="2406.16008",
    year=2024,
    claim=Claim(
        text="the attention to all passages together stays, and is shared out by what their places do not explain",
        status="partly",
        figure="equation to 1e-5; the gain in the middle is not measured",
        command="pytest tests/unit/edits/test_edits.py",
    ),
)
class FoundInTheMiddle(Edit):
    """Attention to passages without the bias of their places, the attention to all of them together left as it is.

        rel_k = m_k − bias_k,   w_k = (Σ_k m_k) · softmax(rel / τ)_k

    m_k is a row's attention to passage k, and bias_k what a dummy passage, which says nothing, gets in the same place.

    Args:
        passages: spans of positions of the unpadded text, which do not overlap. bias: by layer ``(heads, passages)``;
            see `SpanMasses`, which measures it. temperature: τ. strength: how far from m (0) to w (1).
        heads, layers, rows, batch: see `core.edit.Where`; rows are those after the passages unless they are given, and
            the authors edit the upper half of the layers.

    Departs from it: the paper's τ is not told; it scales each head by its own bias, where the authors average heads to
    rank passages.
    """

    dial: ClassVar[tuple[str, float] | None] = ("strength", 0.0)

    def __init__(
        self,
        passages: Spans,
        bias: Mapping[int, Tensor],
        temperature: float = 0.1,
        strength: float = 1.0,
        *,
        heads: Heads | None = None,
        layers: Iterable[int] | None = None,
        rows: Rows | None = None,
        batch: Sequence[int] | None = None,
    ) -> None:
        if not temperature > 0:
            raise wrong("temperature", str(temperature), "a number above 0")
        self.passages = apart(passages)
        after = slice(max(stop for _, stop in self.passages), None)
        super().__init__(Where(bias.keys() if layers is None else layers, heads, rows or after, batch=batch))
        self.bias, self.temperature, self.strength = bias, temperature, strength
        self.group_count = 1 + len(self.passages)

    def groups(self, place: Place) -> Tensor:
        return grouped(self.passages, place)

    def masses(self, m: Tensor, place: Place) -> Tensor:
        if place.layer not in self.bias:
            raise wrong("bias", f"none of layer {place.layer}", "(heads, passages) of every layer that is edited")
        bias = self.bias[place.layer].to(m)[None, :, None]
        if bias.shape[1] != m.shape[1] or bias.shape[3] != m.shape[3] - 1:
            what, wanted = f"shape {tuple(bias.shape[1::2])} of layer {place.layer}", f"{(m.shape[1], m.shape[3] - 1)}"
            raise wrong("bias", what, f"(heads, passages) = {wanted}")
        own = m[..., 1:]
        shares = torch.softmax(((own - bias) / self.temperature).masked_fill(own == 0, -torch.inf), dim=-1)
        moved = own.sum(-1, keepdim=True) * shares.nan_to_num(0.0)
        return torch.cat([m[..., :1], torch.lerp(own, moved, self.strength)], dim=-1)

    @classmethod
    def examples(cls) -> list[Sample]:
        bias = {1: torch.linspace(0, 0.2, 12).view(6, 2)}
        return sampled(cls([(1, 4), (4, 6)], bias), cls([(0, 2), (3, 6)], bias, 0.5, 0.6, heads=[1, 4]))


class SpanMasses(Edit):
    """Measures the attention of rows to each of several spans, and changes nothing.

    Args:
        passages: spans of positions. layers, heads, rows, batch: see `core.edit.Where`; rows are those after the spans
            unless they are given.
    """

    def __init__(
        self,
        passages: Spans,
        *,
        layers: Iterable[int] | None = None,
        rows: Rows | None = None,
        batch: Sequence[int] | None = None,
    ) -> None:
        self.passages = apart(passages)
        after = slice(max(stop for _, stop in self.passages), None)
        super().__init__(Where(layers, None, rows or after, batch=batch))
        self.group_count = 1 + len(self.passages)
        self.sums: dict[int, Tensor] = {}
        self.counts: dict[int, int] = {}

    def groups(self, place: Place) -> Tensor:
        return grouped(self.passages, place)

    def masses(self, m: Tensor, place: Place) -> None:
        if not place.again:
            rows = self.where.chosen_rows(place)
            total = m.detach().transpose(1, 2)[rows].double().sum(0)[:, 1:]
            self.sums[place.layer] = self.sums.get(place.layer, 0) + total
            self.counts[place.layer] = self.counts.get(place.layer, 0) + int(rows.sum())

    def means(self) -> dict[int, Tensor]:
        """By layer ``(heads, passages)``: the mean attention of a row to each span."""
        return {layer: total / self.counts[layer] for layer, total in self.sums.items()}


def apart(passages: Spans) -> list[tuple[int, int]]:
    """Spans, which have to stand apart from each other and to hold a token."""
    spans = [(int(start), int(stop)) for start, stop in passages]
    if not spans or any(not 0 <= start < stop for start, stop in spans):
        raise wrong("passages", str(spans), "spans (start, stop) of at least one position each")
    if any(one[1] > other[0] for one, other in zip(sorted(spans), sorted(spans)[1:], strict=False)):
        raise wrong("passages", str(spans), "spans that do not overlap")
    return spans


def grouped(passages: Spans, place: Place) -> Tensor:
    """The group of each key: 0 outside, then one for each passage."""
    at = place.key_positions[:, None]
    groups = torch.zeros_like(at)
    for index, (start, stop) in enumerate(passages):
        groups = groups.masked_fill((at >= start) & (at < stop), index + 1)
    return groups
