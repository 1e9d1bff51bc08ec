"""Which sequence each cache holds, and what its tokens are."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from regard.hosts.caches import own


@dataclass(frozen=True)
class Past:
    """What passed through a cache so far.

    Args:
        sequence: its number. ids: ``(batch, slots)`` of each model that was given some, by its identity.
        keys: what the last of the cache's layers that holds keys held after its latest pass.
        real: under ``"keys"`` ``(batch, slots)`` bool, which slots are no padding, where only masks have told so.
        notes: what edits remember of it, by name: tensors whose first axis is the batch.
    """

    sequence: int
    ids: dict[int, Tensor] = field(default_factory=dict)
    keys: Tensor | None = None
    real: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, Tensor] = field(default_factory=dict)

    def select(self, rows: Tensor, sequence: int) -> Past:
        """The same with these ``rows`` of the batch, which make another sequence."""

        def picked(held: dict[Any, Tensor]) -> dict[Any, Tensor]:
            return {name: each[rows.to(each.device)] for name, each in held.items() if len(each) > int(rows.max())}

        return Past(sequence, picked(self.ids), real=picked(self.real), notes=picked(self.notes))

    def tells(self, other: Past) -> bool:
        """Whether both are known to be of the same tokens."""
        same = self.ids.keys() == other.ids.keys()
        return same and bool(self.ids) and all(torch.equal(ids, other.ids[module]) for module, ids in self.ids.items())


class History:
    """The pasts of all caches that are alive.

    A cache may be changed between two passes: beam search exchanges its sequences, other searches repeat or drop some,
    or take tokens back. The keys that it holds show what was done, whoever did it.
    """

    def __init__(self) -> None:
        self.pasts: WeakKeyDictionary[Any, Past] = WeakKeyDictionary()
        self.sequences = 0

    def begin(self) -> Past:
        """Of a new sequence."""
        self.sequences += 1
        return Past(self.sequences - 1)

    def of(self, cache: Any, slots: int) -> Past:
        """Of what a cache of so many slots holds; that of a new sequence if it is not known."""
        known = self.pasts.get(cache) if cache is not None and slots else None
        if known is None:
            return self.begin()
        now = keys_of(cache)
        if known.keys is None or now is None or now is known.keys:
            return replace(known, ids=dict(known.ids), real=dict(known.real), notes=dict(known.notes))
        rows = rows_of(known.keys, now)
        if rows is None:
            return self.begin()
        picked = known.select(rows, known.sequence)
        kept = len(rows) == len(known.keys) and torch.equal(rows, torch.arange(len(rows), device=rows.device))
        return picked if kept or picked.tells(known) else replace(picked, sequence=self.begin().sequence)

    def put(self, cache: Any, past: Past) -> None:
        """Notes what a cache holds after a pass."""
        self.pasts[cache] = replace(past, keys=keys_of(cache))


def keys_of(cache: Any) -> Tensor | None:
    """The keys of the last of the layers that hold most: they follow from all before, so sequences share none."""
    held = [getattr(layer, "keys", None) for layer in getattr(own(cache), "layers", [])]
    held = [keys for keys in reversed(held) if isinstance(keys, Tensor) and keys.dim() == 4 and len(keys)]
    return max(held, key=lambda keys: keys.shape[2], default=None)


def rows_of(before: Tensor, now: Tensor) -> Tensor | None:
    """Which row of ``before (b, g, m, d)`` each of ``now (b', g, m', d)`` goes on from; None if one has no such."""
    slots = min(before.shape[2], now.shape[2])
    if before.shape[1] != now.shape[1] or before.shape[3] != now.shape[3] or not slots:
        return None
    before, now = before[:, :, :slots].to(now), now[:, :, :slots]
    same = torch.stack([(before == row).flatten(1).all(1) for row in now])
    return same.int().argmax(1) if bool(same.any(1).all()) else None
