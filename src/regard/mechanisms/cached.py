"""The growing cache of keys and values, and the base of the mechanisms that decode from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any, cast

import torch
from torch import Tensor

from regard.core.cost import Shape
from regard.core.layout import Layout
from regard.core.mechanism import Mechanism
from regard.core.state import State, count_new


class GrowableBuffer:
    """Storage with room to grow: appending a token copies nothing until it is full, then it doubles.

    Only the state that wrote last may append in place; an older one, of which another has been continued, gets a copy.
    """

    def __init__(self, like: Tensor, capacity: int) -> None:
        self.tensor = like.new_empty(*like.shape[:2], capacity, like.shape[3])
        self.filled = 0

    def append(self, old: Tensor, new: Tensor) -> tuple[GrowableBuffer, Tensor]:
        """``old``, a view of this storage, followed by ``new``: where they are now, and a view of them."""
        before, after = old.shape[2], old.shape[2] + new.shape[2]
        room = self
        if self.filled != before or after > self.tensor.shape[2]:
            room = GrowableBuffer(new, max(2 * before, after))
            room.tensor[:, :, :before] = old
        room.tensor[:, :, before:after] = new
        room.filled = after
        return room, room.tensor[:, :, :after]


@dataclass(frozen=True)
class KeyValues(State):
    """Every key and value so far.

    Args:
        k, values: ``(batch, kv_heads, m, d)`` and ``(…, e)``; four axes of size zero before the first token. Values are
            None where all are views of coordinates of their keys, ``inside`` from the first to the last.
        key_mask: ``(batch, m)`` bool, False = padding; None while there has been none.
        rooms: the storage behind k, values and signals, where they may grow in place; None where autograd records.
        signals: those of the keys that later rows need, each ``(batch, heads, m, size)``.
    """

    k: Tensor
    values: Tensor | None
    key_mask: Tensor | None = None
    rooms: tuple[GrowableBuffer, ...] | None = None
    inside: tuple[int, int] | None = None
    signals: tuple[Tensor, ...] = ()

    @property
    def v(self) -> Tensor:
        """All values."""
        return self.k[..., slice(*(self.inside or (0, 0)))] if self.values is None else self.values

    @classmethod
    def empty(cls, batch: int, device: torch.device | str, dtype: torch.dtype) -> KeyValues:
        """Nothing seen."""
        nothing = torch.empty(batch, 0, 0, 0, device=device, dtype=dtype)
        return cls(torch.zeros(batch, dtype=torch.int64, device=device), nothing, nothing)

    def append(self, k: Tensor, v: Tensor, keys: Tensor | None, signals: tuple[Tensor, ...] = ()) -> KeyValues:
        """The cache with the new tokens behind the old ones; ``signals`` are always of the same number."""
        _, seen = count_new(self, keys, k.shape[2], k.shape[0])
        first, inside = self.k.shape[1] == 0, place_in(k, v)
        if not first and inside != self.inside:
            inside = None
        pairs = [(k[:, :, :0] if first else self.k, k)]
        pairs += [] if inside else [(v[:, :, :0] if first else self.v, v)]
        pairs += [(new[:, :, :0], new) for new in signals] if first else zip(self.signals, signals, strict=True)
        real = joined(self.key_mask, pairs[0][0].shape[2], keys, k.shape[2], k)
        if torch.is_grad_enabled() and any(x.requires_grad for pair in pairs for x in pair):
            rooms, whole = None, [torch.cat(pair, 2) for pair in pairs]
        else:
            held = self.rooms if self.rooms is not None and len(self.rooms) == len(pairs) else None
            held = held or tuple(GrowableBuffer(new, 0) for _, new in pairs)
            grown = [room.append(old, new) for room, (old, new) in zip(held, pairs, strict=True)]
            rooms, whole = tuple(room for room, _ in grown), [tensor for _, tensor in grown]
        rest = whole[len(whole) - len(signals) :]
        return KeyValues(seen, whole[0], None if inside else whole[1], real, rooms, inside, tuple(rest))

    def select(self, index: Tensor) -> KeyValues:
        """The cache of the sequences ``index``, in storage of its own."""
        return replace(cast(KeyValues, State.select(self, index)), rooms=None)


def place_in(k: Tensor, v: Tensor) -> tuple[int, int] | None:
    """Which coordinates of ``k`` the values are a view of; None if they are tensors of their own."""
    if v.untyped_storage().data_ptr() != k.untyped_storage().data_ptr() or v.stride() != k.stride():
        return None
    first = int(v.storage_offset() - k.storage_offset())
    inside = v.shape[:3] == k.shape[:3] and 0 <= first <= k.shape[3] - v.shape[3]
    return (first, first + v.shape[3]) if inside and v.shape[3] and v.shape[2] else None


def joined(old: Tensor | None, before: int, new: Tensor | None, after: int, like: Tensor) -> Tensor | None:
    """The padding of old and new tokens in one ``(batch, m)``, or None if there is none."""
    if old is None and new is None:
        return None
    sizes = ((old, before), (new, after))
    parts = [torch.ones(like.shape[0], n, dtype=torch.bool, device=like.device) if x is None else x for x, n in sizes]
    return torch.cat(parts, dim=1)


class Cached(Mechanism):
    """The base of mechanisms that continue by calling ``forward`` on all keys, values and signals of keys so far."""

    def start(self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> KeyValues:
        """An empty cache."""
        return KeyValues.empty(batch, device, dtype)

    def extend(
        self, q: Tensor, k: Tensor, v: Tensor, state: Any, key_mask: Tensor | None = None, **signals: Tensor
    ) -> tuple[Tensor, KeyValues]:
        """Appends the new tokens, then attends to all: ``(out, cache)``."""
        self.check(q, k, v, Layout(causal=True), signals)
        kept = [name for name, spec in self.signals.items() if spec.side == "key"]
        flat = [self.signals[name].dim is None for name in kept]
        new = (signals[name][..., None] if one else signals[name] for name, one in zip(kept, flat, strict=True))
        grown = state.append(k, v, key_mask, tuple(new))
        held = (x[..., 0] if one else x for x, one in zip(grown.signals, flat, strict=True))
        layout = Layout(causal=True, key_mask=grown.key_mask)
        return self(q, grown.k, grown.v, layout, **signals | dict(zip(kept, held, strict=True))), grown

    def signal_bytes(self, shape: Shape) -> int:
        """Bytes of the signals of keys that the cache holds."""
        return sum(
            shape.batch
            * spec.rows(shape.heads, shape.groups)
            * shape.keys
            * shape.itemsize
            * prod(spec.size(shape.head_dim, shape.values))
            for spec in self.signals.values()
            if spec.side == "key"
        )
