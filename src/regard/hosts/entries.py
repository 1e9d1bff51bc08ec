"""What the kv heads of one sequence hold in one layer, each other tokens, and the memory that it is in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from regard.hosts.growing import PART


@dataclass(frozen=True)
class Entries:
    """What one kv head of one sequence holds.

    Args:
        positions: ``(t,)`` int64, ascending: how many real tokens stood before each. stats: ``(t,)`` each.
        keys, values: ``(t, d)`` and ``(t, e)``; None while the layer has forgotten nothing, and holds all in one piece.
        pages: what is noted of runs of entries.
    """

    positions: Tensor
    stats: dict[str, Tensor] = field(default_factory=dict)
    keys: Tensor | None = None
    values: Tensor | None = None
    pages: dict[str, Tensor] = field(default_factory=dict)

    def extended(self, parts: Sequence[Tensor], new: int, fills: Mapping[str, float]) -> Entries:
        """With positions, keys and values in ``parts`` in the place of its own, to which ``new`` have come."""
        stats = {name: torch.cat([old, old.new_full((new,), fills[name])]) for name, old in self.stats.items()}
        return Entries(parts[0], stats, *parts[1:], pages=self.pages)

    def select(self, kept: Tensor, keys: Tensor, values: Tensor) -> Entries:
        """Some of them, in memory of their own; ``keys`` and ``values`` are those of all."""
        stats = {name: held[kept] for name, held in self.stats.items()}
        return Entries(self.positions[kept], stats, keys[kept], values[kept])

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """Keys and values, where they are at hand."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    @property
    def parts(self) -> list[Tensor]:
        """Positions, keys and values."""
        return [part for part in (self.positions, self.keys, self.values) if part is not None]

    @property
    def noted(self) -> list[Tensor]:
        """What policies have noted."""
        return [*self.stats.values(), *self.pages.values()]


class Piece:
    """One piece of memory for the entries of all kv heads of a sequence, with room for more behind those of each.

    Args:
        counts: entries of each head. rooms: for how many there is room. parts: positions, keys and values of all heads,
            one head's room after the other's, ``(Σ rooms, …)`` each.
    """

    def __init__(self, counts: Sequence[int], rooms: Sequence[int], parts: Sequence[Tensor]) -> None:
        self.counts, self.rooms, self.tensors = list(counts), rooms, list(parts)
        self.starts = [sum(rooms[:head]) for head in range(len(rooms))]
        first = [start + count for start, count in zip(self.starts, counts, strict=True)]
        self.next = torch.tensor(first, device=parts[0].device)

    @classmethod
    def of(cls, heads: Sequence[Entries], more: int) -> Piece:
        """A copy of what the heads hold, with room for ``more`` tokens at once."""
        counts = [len(held.positions) for held in heads]
        rooms = with_room(counts, more)
        wholes = [part.new_empty(sum(rooms), *part.shape[1:]) for part in heads[0].parts]
        for index, whole in enumerate(wholes):
            for held, own in zip(heads, whole.split(rooms), strict=True):
                own[: len(held.positions)] = held.parts[index]
        return cls(counts, rooms, wholes)

    def has_room(self, heads: Sequence[Entries], more: int, owed: int = 0) -> bool:
        """Whether so many further tokens can be written behind what the heads hold of it, and nothing is there yet.

        ``owed`` are those that were written by `write` and do not stand in the heads' entries.
        """
        if self.tensors[1].is_inference() and not torch.is_inference_mode_enabled():
            return False
        ends = zip(heads, self.counts, self.rooms, strict=True)
        return all(held.positions.shape[0] + owed == count <= room - more for held, count, room in ends)

    def append(self, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        """Writes new tokens behind those of each head: ``positions (n,)``, ``keys (g, n, d)``, ``values (g, n, e)``."""
        self.write(keys, values)
        self.note(positions)

    def write(self, keys: Tensor, values: Tensor) -> None:
        """The keys and values of `append`, without the positions, which `note` owes."""
        n = keys.shape[1]
        at = self.next if n == 1 else (self.next[:, None] + torch.arange(n, device=keys.device)).flatten()
        self.tensors[1].index_copy_(0, at, keys.flatten(0, 1))
        self.tensors[2].index_copy_(0, at, values.flatten(0, 1))
        self.next += n
        self.counts = [count + n for count in self.counts]

    def note(self, positions: Tensor) -> None:
        """Writes the ``positions (n,)`` of each head's newest tokens."""
        n = len(positions)
        at = self.next[:, None] + torch.arange(-n, 0, device=positions.device)
        self.tensors[0][at] = positions

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each head, ``(t, d)`` and ``(t, e)``."""
        (_, keys, values), spans = self.tensors, zip(self.starts, self.counts, strict=True)
        return [(keys.narrow(0, start, count), values.narrow(0, start, count)) for start, count in spans]

    def views(self) -> list[list[Tensor]]:
        """Positions, keys and values of each head."""
        spans = list(zip(self.starts, self.counts, strict=True))
        return [[whole.narrow(0, start, count) for whole in self.tensors] for start, count in spans]

    def selected(self, kept: Sequence[Tensor]) -> Piece:
        """Some entries of each head, in a piece of their own."""
        counts = [len(at) for at in kept]
        rooms = with_room(counts, 1)
        rows = self.next.new_zeros(sum(rooms))  # what stands in the room does not matter
        for start, at, own in zip(self.starts, kept, rows.split(rooms), strict=True):
            torch.add(at, start, out=own[: len(at)])
        return Piece(counts, rooms, [whole.index_select(0, rows) for whole in self.tensors])


def with_room(counts: Sequence[int], more: int) -> list[int]:
    """For how many entries of each head there is to be room, where ``more`` are to come at once."""
    more += sum(counts) // (PART * len(counts))
    return [count + more for count in counts]


def extended(
    heads: Sequence[Entries],
    piece: Piece | None,
    fills: Mapping[str, float],
    positions: Tensor,
    keys: Tensor,
    values: Tensor,
) -> tuple[list[Entries], Piece | None]:
    """A sequence's heads with new tokens, whose stats begin with ``fills``, and the memory that they are in.

    What the heads were is as it was before. With gradients each has memory of its own.

    Args:
        positions: ``(n,)``. keys, values: ``(g, n, d)`` and ``(g, n, e)``.
    """
    n = len(positions)
    if heads[0].keys is None or keys.requires_grad or heads[0].keys.requires_grad:
        found = []
        for held, k, v in zip(heads, keys, values, strict=True):
            parts = [torch.cat(pair) for pair in zip(held.parts, (positions, k, v), strict=False)]
            found.append(held.extended(parts, n, fills))
        return found, None
    if piece is None or not piece.has_room(heads, n):
        piece = Piece.of(heads, n)
    piece.append(positions, keys, values)
    return [held.extended(parts, n, fills) for held, parts in zip(heads, piece.views(), strict=True)], piece


def selected(heads: Sequence[Entries], piece: Piece | None, kept: Sequence[Tensor]) -> tuple[list[Entries], Piece]:
    """Some entries of each head, and the memory that they are in, which is that of no other entries."""
    if piece is None:
        return moved([held.select(at, *held.pair) for held, at in zip(heads, kept, strict=True)])
    piece, found = piece.selected(kept), []
    for held, at, parts in zip(heads, kept, piece.views(), strict=True):
        stats = {name: noted[at] for name, noted in held.stats.items()}
        found.append(Entries(parts[0], stats, parts[1], parts[2]))
    return found, piece


def moved(heads: Sequence[Entries]) -> tuple[list[Entries], Piece]:
    """The same entries in one piece of memory of their own."""
    piece = Piece.of(heads, 1)
    pairs = zip(heads, piece.views(), strict=True)
    return [replace(held, positions=at, keys=keys, values=values) for held, (at, keys, values) in pairs], piece
