"""Statistics that are a mean over query rows: one number a head, with its standard error where rows are sampled.

They pool all real queries of all sequences, so probes of many batches, passes and machines merge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.core.tile import Tile, Tokens


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error, zero where every row was computed. Both float64."""

    value: Tensor
    error: Tensor


@dataclass
class Moments:
    """Counts and sums of a sample drawn without replacement; all merge by addition.

    Args:
        count: rows computed. population: rows there are. total, squares: sums of the values and of their squares.
    """

    count: Tensor
    population: Tensor
    total: Tensor
    squares: Tensor

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def estimate(self) -> Estimate:
        """x̄ = Σx / r and sqrt(s² / r · (1 − r / R)) for r of R rows; NaN where there is none."""
        mean = self.total / self.count
        spread = (self.squares / self.count - mean**2).clamp(min=0) * self.count / (self.count - 1).clamp(min=1)
        left_out = (1 - self.count / self.population).clamp(min=0)
        return Estimate(mean, (spread / self.count * left_out).sqrt())


class RowMean:
    """The base of these probes: a subclass says what a row's value is, and which rows count.

    Raises:
        ValueError: on merging two that differ.
    """

    name = "mean"

    def __init__(self) -> None:
        self.moments: dict[int, Moments] = {}

    def rows(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """``(values (batch, heads, rows) or (batch, heads, rows, f), which rows have one (batch, rows) bool)``."""
        raise NotImplementedError

    def update(self, tile: Tile) -> None:
        values, counted = self.rows(tile)
        chosen = values.double().masked_fill(~counted.reshape(len(counted), 1, -1, *[1] * (values.dim() - 3)), 0)
        count = counted.sum().double()
        seen = Moments(count, count / tile.share, chosen.sum((0, 2)), chosen.square().sum((0, 2)))
        self.moments[tile.layer] = self.moments[tile.layer] + seen if tile.layer in self.moments else seen

    def merge(self, other: Self) -> None:
        refuse_other(self, other)
        for layer, seen in other.moments.items():
            self.moments[layer] = self.moments[layer] + seen if layer in self.moments else seen

    def result(self) -> dict[int, Estimate]:
        """For each layer the mean ``(heads,)`` or ``(heads, f)``."""
        return {layer: moments.estimate() for layer, moments in sorted(self.moments.items())}


def refuse_other(one: Any, other: Any) -> None:
    """Raises a ValueError unless both probes are of the same kind and settings."""
    if type(one) is not type(other) or settings(one) != settings(other):
        raise wrong("other", f"{settings(other)}", f"a probe like this one, {settings(one)}")


def settings(probe: Any) -> dict[str, Any]:
    """What a probe was made with."""
    plain = (int, float, str, bool, tuple, dict, type(None))
    kept = {name: value for name, value in vars(probe).items() if isinstance(value, plain) and name not in STATE}
    return {"probe": type(probe).__name__, **kept}


STATE = ("moments", "layers", "sequences", "parts", "sums", "heads", "hits")


class Entropy(RowMean):
    """Mean entropy of the rows: −Σ_j A_ij log A_ij, in nats."""

    name = "entropy"

    def rows(self, tile: Tile) -> tuple[Tensor, Tensor]:
        return tile.entropy, tile.queries


class Sink(RowMean):
    """Mean weight on each of the ``first`` real tokens: ``(heads, first)``."""

    name = "sink"

    def __init__(self, first: int = 4) -> None:
        super().__init__()
        if first < 1:
            raise wrong("first", str(first), "at least one token")
        self.first = first

    def rows(self, tile: Tile) -> tuple[Tensor, Tensor]:
        start = tile.key_mask.int().argmax(1, keepdim=True)
        on = [tile.at((start + step).expand(tile.queries.shape)) for step in range(self.first)]
        return torch.stack(on, dim=3), tile.queries


class Distance(RowMean):
    """Mean of i − j under A: Σ_j A_ij (i − j), in tokens; earlier keys count positive.

    Tokens are counted without padding; in cross-attention i counts the queries.
    """

    name = "distance"

    def rows(self, tile: Tile) -> tuple[Tensor, Tensor]:
        positions = tile.positions
        features = torch.stack([torch.ones_like(positions), positions], dim=2)
        mass, place = tile.read(features).double().unbind(3)
        return mass * tile.own[:, None] - place, tile.queries


class Spans(RowMean):
    """Mean weight on named spans of key slots, as the lookback ratio compares context with what is new.

    Args:
        spans: name to ``(start, stop)``; ``stop`` None for "to the end".

    The values ``(heads, spans)`` are in the order of the names.
    """

    name = "spans"

    def __init__(self, spans: Mapping[str, tuple[int, int | None]]) -> None:
        super().__init__()
        for span, (start, stop) in spans.items():
            if start < 0 or (stop is not None and stop <= start):
                raise wrong(f"spans[{span!r}]", f"{(start, stop)}", "0 <= start < stop, or stop None")
        self.spans = dict(spans)

    def rows(self, tile: Tile) -> tuple[Tensor, Tensor]:
        slots = torch.arange(tile.m, device=tile.rows.device)
        inside = [
            (slots >= start) & (slots < (tile.m if stop is None else stop)) for start, stop in self.spans.values()
        ]
        return tile.read(torch.stack(inside, dim=1)[None].to(tile.weights.dtype)), tile.queries


class PreviousToken(RowMean):
    """Mean weight on the token before, over the rows that have one."""

    name = "previous_token"

    def rows(self, tile: Tile) -> tuple[Tensor, Tensor]:
        before = (tile.rows - 1).expand(tile.queries.shape)
        return tile.at(before), tile.queries & real_at(tile, before)


class Induction(RowMean):
    """Mean weight from a token that occurred before to the token after its last occurrence.

    Rows count where that token stands before the row's own, that is, not directly after a repetition.
    """

    name = "induction"

    def rows(self, tile: Tile) -> tuple[Tensor, Tensor]:
        last = ids_of(self, tile).last[:, tile.rows]
        return tile.at(last + 1), tile.queries & real_at(tile, last) & (last + 1 < tile.rows)


class DuplicateToken(RowMean):
    """Mean weight on earlier occurrences of the same token, over the rows that have one."""

    name = "duplicate_token"

    def rows(self, tile: Tile) -> tuple[Tensor, Tensor]:
        batch, row, slot = real_occurrences(tile, ids_of(self, tile), tile.rows)
        counted = torch.zeros_like(tile.queries)
        counted[batch, row] = True
        found = tile.weights.new_zeros(*tile.queries.shape, tile.weights.shape[1])
        covered, weights = weights_at(tile, batch, row, slot)
        found.index_put_((batch[covered], row[covered]), weights, accumulate=True)
        return found.transpose(1, 2), counted & tile.queries


class Retrieval(RowMean):
    """Share of the rows whose strongest key is a far earlier occurrence of the token that comes next.

    A teacher-forced form of the retrieval score (Wu et al., arXiv 2404.15574), which counts the copied tokens for which
    a head's strongest key is the token being copied. Row t counts if token t + 1 also stands at some slot
    ``j <= t − beyond``, and scores one if the strongest of all keys is such a slot.

    Args:
        beyond: occurrences nearer than this are trivial and do not count.
    """

    name = "retrieval"

    def __init__(self, beyond: int = 16) -> None:
        super().__init__()
        if beyond < 0:
            raise wrong("beyond", str(beyond), "a distance in tokens, at least 0")
        self.beyond = beyond

    def rows(self, tile: Tile) -> tuple[Tensor, Tensor]:
        following = tile.rows[tile.rows + 1 < tile.m] + 1
        batch, row, slot = real_occurrences(tile, ids_of(self, tile), following)
        far = (slot <= tile.rows[row] - self.beyond) & tile.key_mask[batch, following[row]]
        batch, row, slot = batch[far], row[far], slot[far]
        counted = torch.zeros_like(tile.queries)
        counted[batch, row] = True
        covered, weights = weights_at(tile, batch, row, slot)
        best = tile.weights.new_zeros(tile.queries.numel(), tile.weights.shape[1])
        index = (batch * len(tile.rows) + row)[covered, None].expand_as(weights)
        best = best.scatter_reduce_(0, index, weights, "amax").view(*tile.queries.shape, -1).transpose(1, 2)
        return (best >= tile.peaks.amax(3)) & (best > 0), counted & tile.queries


def ids_of(probe: Any, tile: Tile) -> Tokens:
    """The tokens of the keys.

    Raises:
        ValueError: they are not known.
    """
    if tile.tokens is None and tile.cross:
        wanted = f"layers of self-attention alone, as watch(…, layers=…): {probe.name} compares a text with itself"
        raise wrong("layers", f"{tile.layer}, which attends to another sequence", wanted)
    if tile.tokens is None:
        raise wrong("tile.tokens", "None", f"token ids: {probe.name} compares tokens, so give the model input_ids")
    return tile.tokens


def real_at(tile: Tile, slots: Tensor) -> Tensor:
    """``(batch, rows)`` bool: whether ``slots (batch, rows)`` are keys and no padding."""
    return tile.key_mask.gather(1, slots.clamp(0, tile.m - 1)) & (slots >= 0)


def real_occurrences(tile: Tile, tokens: Tokens, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`Tokens.occurrences` without padding."""
    batch, which, slot = tokens.occurrences(slots)
    kept = tile.key_mask[batch, slot]
    return batch[kept], which[kept], slot[kept]


def weights_at(tile: Tile, batch: Tensor, row: Tensor, slot: Tensor) -> tuple[Tensor, Tensor]:
    """``(which of the pairs the tile covers (pairs,) bool, their weights (covered, heads))``."""
    covered = (slot >= tile.start) & (slot < tile.columns.stop)
    return covered, tile.weights[batch[covered], :, row[covered], slot[covered] - tile.start]
