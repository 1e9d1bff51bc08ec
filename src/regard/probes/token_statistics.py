"""Statistics with a place in the text: what each token receives, each row's entropy, the map in cells, its edges.

They are of one sequence, or of one batch of sequences side by side; a second sequence is refused. Two probes of the
same sequence that have seen different rows of it merge.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.core.tile import CHUNK, Tile
from regard.probes.head_statistics import Estimate, Moments, refuse_other


class OneSequence:
    """The base of these probes.

    Raises:
        ValueError: a layer shows a second sequence.
    """

    name = "tokens"

    def __init__(self) -> None:
        self.sequences: dict[int, int] = {}

    def check(self, tile: Tile) -> None:
        """Refuses the rows of another sequence."""
        known = self.sequences.setdefault(tile.layer, tile.sequence)
        if known != tile.sequence:
            raise wrong(
                "tile.sequence",
                f"sequence {tile.sequence} after {known}",
                f"one sequence: {self.name} has a value a token",
            )


class Received(OneSequence):
    """Mean weight that each key receives from the queries that may see it: ``(batch, heads, m)``."""

    name = "received"

    def __init__(self) -> None:
        super().__init__()
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, tile: Tile) -> None:
        self.check(tile)
        groups = torch.ones(1, len(tile.rows), dtype=torch.bool, device=tile.rows.device)
        sums, counts = self.state(tile)
        sums[0, :, :, tile.columns] += tile.fold(groups)[:, :, 0]
        if tile.share < 1:
            sums[1, :, :, tile.columns] += replace(tile, weights=tile.weights.square()).fold(groups)[:, :, 0]
        seen = tile.seen(groups)[:, :, 0]
        counts[0, :, :, tile.columns] += seen
        counts[1, :, :, tile.columns] += seen / tile.share

    def state(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """``(sums of weights and of their squares, queries computed and in all)``, with room for the tile's keys."""
        batch, heads = tile.weights.shape[:2]
        shared = 1 if tile.visible is None else tile.visible.shape[1]
        zeros = tile.weights.new_zeros(2, batch, heads, 0, dtype=torch.float64)
        known = self.layers.get(tile.layer, (zeros, zeros[:, :, :shared]))
        self.layers[tile.layer] = longer(known, tile.m)
        return self.layers[tile.layer]

    def merge(self, other: Self) -> None:
        refuse_other(self, other)
        for layer, parts in other.layers.items():
            if layer in self.layers:
                size = max(parts[0].shape[3], self.layers[layer][0].shape[3])
                (sums, counts), others = longer(self.layers[layer], size), longer(parts, size)
                parts = (sums + others[0], counts + others[1])
            self.layers[layer] = parts

    def moments(self, layer: int) -> Moments:
        """Counts and sums of one layer, ``(batch, heads, m)``."""
        (total, squares), counts = self.layers[layer]
        count, population = counts.expand(2, *total.shape)
        return Moments(count, population, total, squares)

    def result(self) -> dict[int, Estimate]:
        """NaN for a key that no computed query may see."""
        return {layer: self.moments(layer).estimate() for layer in sorted(self.layers)}


def longer(parts: tuple[Tensor, Tensor], size: int) -> tuple[Tensor, Tensor]:
    """The same with zeros up to ``size`` on the last axis, as the sequence has grown."""
    if parts[0].shape[3] >= size:
        return parts
    first, second = (torch.nn.functional.pad(part, (0, size - part.shape[3])) for part in parts)
    return first, second


class EntropyRows(OneSequence):
    """Entropy of each row, ``(batch, heads, n)`` float32; NaN where it was not computed or the query is padding."""

    name = "entropy_rows"

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def update(self, tile: Tile) -> None:
        self.check(tile)
        values = tile.entropy.float().masked_fill(~tile.queries[:, None], torch.nan)
        self.parts.setdefault(tile.layer, []).append((tile.rows, values))

    def merge(self, other: Self) -> None:
        refuse_other(self, other)
        for layer, parts in other.parts.items():
            self.parts.setdefault(layer, []).extend(parts)

    def result(self) -> dict[int, Tensor]:
        return {layer: self.joined(parts) for layer, parts in sorted(self.parts.items())}

    def joined(self, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
        rows, values = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts], dim=2)
        whole = values.new_full((*values.shape[:2], int(rows.max()) + 1), torch.nan)
        whole[:, :, rows] = values
        return whole


class Pooled(OneSequence):
    """The map in cells: mean weight of the cell's pairs that may see each other, ``(batch, heads, cells, cells)``.

    Cell (y, x) covers queries ⌊y·n/c⌋ … ⌊(y+1)·n/c⌋ − 1 and the keys likewise. Zero where no pair may be seen, NaN
    where none of the cell's rows was computed.

    Args:
        tokens: n, the length of the sequence when it is complete. cells: c; at most n.
    """

    name = "pooled"

    def __init__(self, tokens: int, cells: int = 128) -> None:
        super().__init__()
        if not 1 <= cells <= tokens:
            raise wrong("cells", str(cells), f"1 to {tokens}, the number of tokens")
        self.tokens, self.cells = tokens, cells
        self.sums: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def update(self, tile: Tile) -> None:
        self.check(tile)
        if tile.m > self.tokens or int(tile.rows[-1]) >= self.tokens:
            raise wrong("tokens", str(self.tokens), f"the length of the sequence, which is at least {tile.m}")
        cells, inverse = self.cell(tile.rows).unique_consecutive(return_inverse=True)
        groups = torch.zeros(len(cells), len(tile.rows), dtype=torch.bool, device=tile.rows.device)
        groups[inverse, torch.arange(len(tile.rows), device=inverse.device)] = True
        total, pairs, rows = self.state(tile)
        columns = self.columns.to(tile.weights)[tile.columns]
        total[:, :, cells] += tile.fold(groups) @ columns
        pairs[:, :, cells] += tile.seen(groups) @ columns
        rows[cells] = True

    def state(self, tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
        """``(sums of weights, numbers of pairs, which cells have rows)`` of the tile's layer."""
        if tile.layer not in self.sums:
            batch, heads = tile.weights.shape[:2]
            shared = 1 if tile.visible is None else tile.visible.shape[1]
            shape = (self.cells, self.cells)
            zeros = torch.zeros(batch, heads, *shape, dtype=torch.float64, device=tile.weights.device)
            rows = torch.zeros(self.cells, dtype=torch.bool, device=tile.weights.device)
            self.sums[tile.layer] = (zeros, zeros.new_zeros(batch, shared, *shape), rows)
        return self.sums[tile.layer]

    def cell(self, slots: Tensor) -> Tensor:
        """The cell of each slot: the last y with ⌊y·n/c⌋ <= slot."""
        return ((slots + 1) * self.cells - 1) // self.tokens

    @cached_property
    def columns(self) -> Tensor:
        """``(n, c)``: one where the key lies in the cell."""
        keys = self.cell(torch.arange(self.tokens))
        return (keys[:, None] == torch.arange(self.cells)).float()

    def merge(self, other: Self) -> None:
        refuse_other(self, other)
        for layer, sums in other.sums.items():
            if layer in self.sums:
                total, pairs, rows = self.sums[layer]
                sums = (total + sums[0], pairs + sums[1], rows | sums[2])
            self.sums[layer] = sums

    def result(self) -> dict[int, Tensor]:
        return {
            layer: (total / pairs.clamp(min=1)).masked_fill(~rows[:, None], torch.nan).float()
            for layer, (total, pairs, rows) in sorted(self.sums.items())
        }


@dataclass(frozen=True)
class Links:
    """The heavy entries of A by head and row.

    Head h has those from ``starts[h]`` to ``starts[h + 1]``, and of them row i has those from ``rows[h, i]`` to
    ``rows[h, i + 1]``.

    Args:
        rows: ``(heads, n + 1)`` int32. starts: ``(heads + 1,)`` int64. keys: ``(edges,)`` int32, ascending in a row.
        weights: ``(edges,)`` float32.
    """

    rows: Tensor
    starts: Tensor
    keys: Tensor
    weights: Tensor


class Edges(OneSequence):
    """Every weight of at least ``threshold``, or a row's ``most`` largest of them, exactly.

    Raises:
        ValueError: a batch of more than one sequence.
    """

    name = "edges"

    def __init__(self, threshold: float = 0.01, most: int | None = None) -> None:
        super().__init__()
        if not 0 < threshold <= 1:
            raise wrong("threshold", str(threshold), "a weight above 0 and at most 1")
        if most is not None and most < 1:
            raise wrong("most", str(most), "at least one edge a row, or None for all")
        self.threshold, self.most = threshold, most
        self.parts: dict[int, list[tuple[Tensor, Tensor, Tensor, Tensor]]] = {}
        self.heads: dict[int, int] = {}

    def update(self, tile: Tile) -> None:
        self.check(tile)
        if tile.weights.shape[0] != 1:
            raise wrong("tile", f"a batch of {tile.weights.shape[0]}", "one sequence: edges are listed for one")
        head, row, column = heavy(tile, self.threshold)
        weights = tile.weights[0, head, row, column]
        chosen = tile.queries[0, row]
        if self.most is not None:
            chosen = chosen & largest(head * len(tile.rows) + row, weights, self.most)
        head, row, column = head[chosen], row[chosen], column[chosen]
        part = (head.int(), tile.rows[row].int(), (column + tile.start).int(), weights[chosen])
        self.parts.setdefault(tile.layer, []).append(part)
        self.heads[tile.layer] = tile.weights.shape[1]

    def merge(self, other: Self) -> None:
        refuse_other(self, other)
        for layer, parts in other.parts.items():
            self.parts.setdefault(layer, []).extend(parts)
            self.heads[layer] = other.heads[layer]

    def result(self) -> dict[int, Links]:
        return {layer: self.links(layer) for layer in sorted(self.parts)}

    def links(self, layer: int, tokens: int | None = None) -> Links:
        """The edges of a layer; ``tokens`` rows, or as many as were seen."""
        head, row, key, weights = (torch.cat(parts) for parts in zip(*self.parts[layer], strict=True))
        n = int(row.max()) + 1 if tokens is None and len(row) else tokens or 0
        order = ((head.long() * max(n, 1) + row) * (int(key.max()) + 1 if len(key) else 1) + key).argsort()
        counts = torch.bincount(head.long() * max(n, 1) + row, minlength=self.heads[layer] * n)
        counts = counts[: self.heads[layer] * n].view(self.heads[layer], n)
        rows = torch.nn.functional.pad(counts.cumsum(1), (1, 0)).int()
        starts = torch.nn.functional.pad(counts.sum(1).cumsum(0), (1, 0))
        return Links(rows, starts, key[order], weights[order])


def heavy(tile: Tile, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """``(head, row, column)`` of the weights of at least ``threshold``: only chunks whose peak reaches it are read."""
    _, head, row, chunk = (tile.peaks >= threshold).nonzero(as_tuple=True)
    columns = chunk[:, None] * CHUNK + torch.arange(CHUNK, device=chunk.device)
    inside = columns < tile.weights.shape[3]
    found = tile.weights[0, head[:, None], row[:, None], columns.clamp(max=tile.weights.shape[3] - 1)]
    which, place = ((found >= threshold) & inside).nonzero(as_tuple=True)
    return head[which], row[which], columns[which, place]


def largest(owner: Tensor, weights: Tensor, most: int) -> Tensor:
    """Bool: whether a weight is among the ``most`` largest of its ``owner``."""
    order = weights.argsort(descending=True, stable=True)
    order = order[owner[order].argsort(stable=True)]
    sizes = torch.bincount(owner)
    starts = (sizes.cumsum(0) - sizes)[owner[order]]
    chosen = torch.zeros_like(weights, dtype=torch.bool)
    chosen[order] = torch.arange(len(order), device=order.device) - starts < most
    return chosen
