"""One layer of a cache that forgets: for each sequence and kv head the keys and values that are left of it."""

from __future__ import annotations

import weakref
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.core.policy import Policy, View
from regard.hosts.softmax_call import SoftmaxCall
from regard.hosts.state_cache import OwnCacheLayer


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

    def extended(self, positions: Tensor, fills: Mapping[str, float], keys: Tensor, values: Tensor) -> Entries:
        """With new tokens, whose stats begin with ``fills``."""
        stats = {
            name: torch.cat([old, old.new_full((len(positions),), fills[name])]) for name, old in self.stats.items()
        }
        every = torch.cat([self.positions, positions])
        if self.keys is None or self.values is None:
            return Entries(every, stats, pages=self.pages)
        return Entries(every, stats, torch.cat([self.keys, keys]), torch.cat([self.values, values]))

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
    def tensors(self) -> list[Tensor]:
        """All that it holds."""
        held = (self.positions, self.keys, self.values, *self.stats.values(), *self.pages.values())
        return [tensor for tensor in held if tensor is not None]


class Store(OwnCacheLayer):
    """A cache layer whose sequences and kv heads may each hold other tokens.

    Until it forgets something it is one of Transformers' growing layers, ``keys (b, g, slots, d)`` in one piece.
    After that each head holds `Entries` of its own, and ``keys`` only tells its sequences apart.

    Args:
        owner: the compression that it is part of. policy: its policy. rank: of the layer among those that forget.
    """

    verb: ClassVar[str] = "compression"
    is_croppable = False

    def __init__(self, owner: Any, policy: Policy, rank: int) -> None:
        super().__init__(owner, 0, False)
        self.policy, self.rank = policy, rank
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self.slots = 0
        self.keys = self.values = None
        self.entries: list[list[Entries]] = []
        self.real: Tensor | None = None  # (b, slots) bool; None: all tokens are
        self.read: list[int] = []  # real tokens of each sequence's prompt
        self.queries: list[Tensor] = []  # (heads, r, d) the latest of each sequence
        self.outs: Tensor | None = None  # (b, heads, e) of the newest token
        self.shape: tuple[float, float | None, Tensor | None] = (1.0, None, None)  # scaling, cap and sinks of scores
        self.evictions = 0
        self.fresh: tuple[Tensor, Tensor] | None = None
        self.latest = lambda: None

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """All keys and values, while none is forgotten."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    @property
    def ragged(self) -> bool:
        """Whether something has been forgotten."""
        return bool(self.entries) and self.entries[0][0].keys is not None

    @property
    def tensors(self) -> list[Tensor]:
        """All that is held."""
        own = [held for held in (self.keys, self.values, self.real, self.outs) if held is not None]
        return own + self.queries + [tensor for heads in self.entries for one in heads for tensor in one.tensors]

    @property
    def bytes(self) -> int:
        """Bytes of keys, values, positions and what the policy notes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object):
        """The keys and values of all tokens while none is forgotten, else of the new ones, taken in by `take_in`."""
        self.check_owner()
        self.slots += key_states.shape[2]
        self.fresh = key_states, value_states
        if self.ragged:
            self.latest = weakref.ref(key_states)
            return key_states, value_states
        self.keys = key_states if self.keys is None else torch.cat([self.keys, key_states], dim=2)
        self.values = value_states if self.values is None else torch.cat([self.values, value_states], dim=2)
        self.latest = weakref.ref(self.keys)
        return self.keys, self.values

    def adopt(self, keys: Tensor, values: Tensor) -> None:
        """Goes on from a layer that has forgotten nothing."""
        self.keys, self.values, self.slots = keys, values, keys.shape[2]
        self.latest = weakref.ref(keys)

    def take_in(self, new: int, real: Tensor | None) -> None:
        """Notes the ``new`` tokens of a pass, of which ``real (b, slots)`` says which are no padding."""
        keys, values = self.fresh if self.fresh is not None else self.pair
        begun = [self.slots - new] * len(keys) if self.real is None else self.real.sum(1).tolist()
        self.note_padding(real, new, len(keys))
        if not self.entries and (self.policy.keeps or self.policy.reads):
            self.entries = [[self.blank(self.position(b)[:0]) for _ in range(keys.shape[1])] for b in range(len(keys))]
        for b, heads in enumerate(self.entries):
            chosen = self.chosen(b, new)
            count = new if chosen is None else len(chosen)
            positions = torch.arange(begun[b], begun[b] + count, device=keys.device)
            for h, held in enumerate(heads):
                k, v = (part[b, h, -new:] for part in (keys, values))
                k, v = (k, v) if chosen is None else (k[chosen], v[chosen])
                heads[h] = held.extended(positions, self.policy.keeps, k, v)
        self.fresh = None

    def note_padding(self, real: Tensor | None, new: int, batch: int) -> None:
        """Notes which of the new tokens are no padding."""
        if real is not None:
            self.real = real.clone()
        elif self.real is not None:
            self.real = torch.cat([self.real, self.real.new_ones(batch, new)], dim=1)
        if self.real is not None and bool(self.real.all()):
            self.real = None

    def chosen(self, b: int, new: int) -> Tensor | None:
        """Which of the last ``new`` tokens of a sequence are no padding; None for all."""
        if self.real is None or bool(self.real[b, -new:].all()):
            return None
        return self.real[b, -new:].nonzero()[:, 0]

    def lengths(self) -> list[int]:
        """Real tokens of each sequence so far, the forgotten ones too."""
        if self.real is not None:
            return self.real.sum(1).tolist()
        return [self.slots] * self.batch

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return 0 if self.keys is None else len(self.keys)

    def position(self, b: int) -> Tensor:
        """Positions of all real tokens of a sequence."""
        assert self.keys is not None
        return torch.arange(self.lengths()[b], device=self.keys.device)

    def blank(self, positions: Tensor) -> Entries:
        """Entries of which nothing is known but their positions."""
        fills = self.policy.keeps.items()
        return Entries(positions, {name: torch.full_like(positions, fill, dtype=torch.float32) for name, fill in fills})

    def held(self, b: int, h: int) -> Entries:
        """What a head holds, its keys and values too."""
        found = self.entries[b][h] if self.entries else self.blank(self.position(b))
        if found.keys is not None:
            return found
        keys, values = (part[b, h] for part in self.pair)
        if self.real is not None and not bool(self.real[b].all()):
            keys, values = keys[self.real[b]], values[self.real[b]]
        return replace(found, keys=keys, values=values)

    def views(self, b: int, q: Tensor, layers: int, budget: int = 0) -> list[View]:
        """What a policy is shown of a sequence's kv heads, and its queries ``q (heads, r, d)``."""
        seen, found, group = self.lengths()[b], [], q.shape[0] // self.kv_heads
        scaling, softcap, sunk = self.shape
        sunk = None if sunk is None else sunk[min(b, len(sunk) - 1), :, 0]
        for h in range(self.kv_heads):
            held, own = self.held(b, h), slice(h * group, (h + 1) * group)
            out = None if self.outs is None else self.outs[b, own]
            place = (self.rank, layers, h, self.kv_heads)
            about = (scaling, softcap, None if sunk is None else sunk[own])
            found.append(
                View(*place, q[own], *held.pair, held.positions, seen, *about, held.stats, out, budget, held.pages)
            )
        return found

    def evict(self, kept: Mapping[int, Sequence[Tensor]]) -> None:
        """Leaves some sequences only those entries of each kv head whose places are ``kept``."""
        assert self.keys is not None
        every = [[self.held(b, h) for h in range(self.kv_heads)] for b in range(self.batch)]
        fresh: list[list[Entries]] = []
        for b, heads in enumerate(every):
            row = []
            for h, held in enumerate(heads):
                keys, values = held.pair
                if b in kept:
                    held = held.select(kept[b][h], keys, values)
                elif not self.ragged:
                    held = replace(held, keys=keys.clone(), values=values.clone())
                row.append(held)
            fresh.append(row)
        self.entries, self.values, self.fresh = fresh, None, None
        self.keys = torch.arange(self.batch, device=self.keys.device, dtype=torch.float32).view(-1, 1, 1, 1)
        self.evictions += 1

    @property
    def kv_heads(self) -> int:
        """Number of kv heads."""
        assert self.keys is not None
        return len(self.entries[0]) if self.ragged else self.keys.shape[1]

    def spread(self, call: SoftmaxCall, entries: Sequence[Sequence[Entries]]) -> tuple[Tensor, Tensor, Tensor]:
        """``(keys, values, what may be seen)`` over all slots, all but ``entries`` hidden, for who wants A whole."""
        shape = (self.batch, self.kv_heads, self.slots)
        keys, values = (part.new_zeros(*shape, part.shape[1]) for part in entries[0][0].pair)
        there = torch.zeros(shape, dtype=torch.bool, device=keys.device)
        for b, heads in enumerate(entries):
            slots = torch.arange(self.slots, device=keys.device)
            slots = slots if self.real is None else self.real[b].nonzero()[:, 0]
            for h, held in enumerate(heads):
                at = slots[held.positions]
                keys[b, h, at], values[b, h, at] = held.pair
                there[b, h, at] = True
        seen = there.repeat_interleave(call.q.shape[1] // self.kv_heads, 1)[:, :, None]
        rows = torch.arange(self.slots - call.n, self.slots, device=keys.device)
        seen = seen & (torch.arange(self.slots, device=keys.device) <= rows[:, None])
        return keys, values, seen

    def keep_only(self, names: Container[str]) -> None:
        """Lets go of what is noted of entries under other names."""
        self.entries = [
            [replace(held, stats={n: stat for n, stat in held.stats.items() if n in names}, pages={}) for held in heads]
            for heads in self.entries
        ]

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: what was forgotten for the sake of a token does not come back with it.

        Raises:
            RuntimeError: always, but for nothing to remove.
        """
        if tokens_to_remove:
            what = f"{abs(tokens_to_remove)} tokens to take back from a cache that forgets"
            wanted = "none: decode without an assistant or prompt lookup"
            raise wrong("crop", what, wanted, RuntimeError)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Exchanges, repeats or drops sequences."""
        if self.keys is None:
            return
        rows = beam_idx.to(self.keys.device)
        self.keys = self.keys.index_select(0, rows)
        self.values = None if self.values is None else self.values.index_select(0, rows)
        self.real = None if self.real is None else self.real.index_select(0, rows)
        self.outs = None if self.outs is None else self.outs.index_select(0, rows)
        order = rows.tolist()
        self.entries = [
            [replace(one, stats=dict(one.stats), pages=dict(one.pages)) for one in self.entries[b]]
            for b in order
            if self.entries
        ]
        self.queries = [self.queries[b] for b in order if self.queries]
        self.read = [self.read[b] for b in order if self.read]

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.keys is not None:
            self.reorder_cache(torch.arange(self.batch, device=self.keys.device)[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.keys is not None:
            self.reorder_cache(torch.arange(self.batch, device=self.keys.device).repeat_interleave(repeats))

    def positions(self, b: int) -> list[Tensor]:
        """The positions that each kv head holds of a sequence."""
        if not self.entries:
            return [self.position(b)] * self.kv_heads
        return [held.positions for held in self.entries[b]]
