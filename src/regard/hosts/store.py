"""One layer of a cache that forgets: for each sequence and kv head the keys and values that are left of it."""

from __future__ import annotations

import weakref
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.core.policy import Policy, View
from regard.hosts.entries import Entries, Piece, extended, moved, selected
from regard.hosts.growing import Room, grown
from regard.hosts.softmax_call import SoftmaxCall
from regard.hosts.state_cache import OwnCacheLayer


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
        self.rooms: list[Room | None] = [None, None]  # the memory that keys and values grow in
        self.noted: list[list[Entries]] = []
        self.owed = range(0)  # positions of the newest tokens, which are in the pieces and not in what is noted
        self.pieces: list[Piece | None] = []  # the memory that the entries of each sequence are in
        self.real: Tensor | None = None  # (b, slots) bool; None: all tokens are
        self.read: list[int] = []  # real tokens of each sequence's prompt
        self.queries: list[Tensor] = []  # (heads, r, d) the latest of each sequence
        self.outs: Tensor | None = None  # (b, heads, e) of the newest token
        self.shape: tuple[float, float | None, Tensor | None] = (1.0, None, None)  # scaling, cap and sinks of scores
        self.evictions = 0
        self.coded: list[int] = []  # entries of each sequence's heads that stand for their codes
        self.spared = 0.0  # bytes, of the codes of one of them
        self.fresh: tuple[Tensor, Tensor] | None = None
        self.latest = lambda: None

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """All keys and values, while none is forgotten."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    @property
    def entries(self) -> list[list[Entries]]:
        """What each kv head of each sequence holds; nothing while nothing is forgotten and no policy notes anything."""
        if self.owed:
            positions = torch.arange(self.owed.start, self.owed.stop, device=self.noted[0][0].positions.device)
            for b, (heads, piece) in enumerate(zip(self.noted, self.pieces, strict=True)):
                assert piece is not None
                piece.note(positions)
                found = zip(heads, piece.views(), strict=True)
                self.noted[b] = [held.extended(parts, len(self.owed), self.policy.keeps) for held, parts in found]
            self.owed = range(0)
        return self.noted

    @entries.setter
    def entries(self, found: list[list[Entries]]) -> None:
        self.noted, self.owed = found, range(0)

    @property
    def ragged(self) -> bool:
        """Whether something has been forgotten."""
        return bool(self.noted) and self.noted[0][0].keys is not None

    @property
    def tensors(self) -> list[Tensor]:
        """All memory that is taken."""
        pair = zip((self.keys, self.values), self.rooms, strict=True)
        own = [held if room is None else room.whole for held, room in pair if held is not None]
        own += [held for held in (self.real, self.outs) if held is not None]
        for b, heads in enumerate(self.entries):
            piece = self.pieces[b]
            own += piece.tensors if piece is not None else [part for held in heads for part in held.parts]
            own += [part for held in heads for part in held.noted]
        return own + self.queries

    @property
    def bytes(self) -> int:
        """Bytes of keys and values, with the room for the next ones, positions and what the policy notes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object):
        """The keys and values of all tokens while none is forgotten, else of the new ones, taken in by `take_in`."""
        self.check_owner()
        self.slots += key_states.shape[2]
        self.fresh = key_states, value_states
        if self.ragged:
            self.latest = weakref.ref(key_states)
            return key_states, value_states
        if self.keys is None or self.values is None:
            self.keys, self.values = key_states, value_states
        else:
            self.keys, self.rooms[0] = grown(self.keys, key_states, 2, self.rooms[0])
            self.values, self.rooms[1] = grown(self.values, value_states, 2, self.rooms[1])
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
            before = [torch.arange(count, device=keys.device) for count in begun]
            self.entries = [[self.blank(positions) for _ in range(keys.shape[1])] for positions in before]
            self.pieces = [None] * len(before)
        for b, heads in enumerate(self.entries):
            chosen = self.chosen(b, new)
            count = new if chosen is None else len(chosen)
            positions = torch.arange(begun[b], begun[b] + count, device=keys.device)
            k, v = (part[b, :, -new:] if chosen is None else part[b, :, -new:][:, chosen] for part in (keys, values))
            self.entries[b], self.pieces[b] = extended(heads, self.pieces[b], self.policy.keeps, positions, k, v)
        self.fresh = None

    def step(self) -> list[tuple[Tensor, Tensor]]:
        """Takes in the one new token of each sequence, none of them padding: keys and values of each kv head.

        Where there is room behind what is held, that is all: what `entries` says of the token is owed until somebody
        asks. ``(t, d)`` and ``(t, e)``, of one sequence after the other.
        """
        if self.fresh is None or not self.has_room(len(self.owed)):
            self.take_in(1, None)
            return [held.pair for heads in self.entries for held in heads]
        found = []
        for piece, keys, values in zip(self.pieces, *self.fresh, strict=True):
            assert piece is not None
            piece.write(keys, values)
            found += piece.pairs()
        self.owed, self.fresh = range(self.slots - 1 - len(self.owed), self.slots), None
        return found

    def has_room(self, owed: int) -> bool:
        """Whether one more token of each sequence can be written behind those held, each in a piece of its own."""
        pieces = self.pieces
        if None in pieces or (len(pieces) > 1 and len({id(piece) for piece in pieces}) < len(pieces)):
            return False
        every = zip(pieces, self.noted, strict=True)
        return all(piece is not None and piece.has_room(heads, 1, owed) for piece, heads in every)

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

    def entry_bytes(self, b: int) -> int:
        """Bytes of one entry of a sequence."""
        held = self.held(b, 0)
        return sum(tensor.element_size() * tensor[:1].numel() for tensor in (*held.parts, *held.noted))

    def size(self, b: int) -> float:
        """Entries of each kv head of a sequence, on average."""
        if not self.noted:
            return self.lengths()[b]
        return len(self.owed) + sum(held.positions.shape[0] for held in self.noted[b]) / len(self.noted[b])

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
        pieces: list[Piece | None] = list(self.pieces) or [None] * self.batch
        for b, heads in enumerate(every):
            if b in kept:
                every[b], pieces[b] = selected(heads, pieces[b], kept[b])
            elif not self.ragged:
                every[b], pieces[b] = moved(heads)
        self.entries, self.pieces = every, pieces
        self.values, self.fresh, self.rooms = None, None, [None, None]
        self.keys = torch.arange(self.batch, device=self.keys.device, dtype=torch.float32).view(-1, 1, 1, 1)
        self.evictions += 1

    @property
    def kv_heads(self) -> int:
        """Number of kv heads."""
        assert self.keys is not None
        return len(self.noted[0]) if self.ragged else self.keys.shape[1]

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

    def note_outs(self, out: Tensor) -> None:
        """Keeps the heads' outputs of each sequence's newest token, of ``out (b, heads, n, e)``."""
        found = out.new_zeros(*out.shape[:2], out.shape[3]) if self.outs is None else self.outs.clone()
        for b in range(self.batch):
            chosen = self.chosen(b, out.shape[2])
            if chosen is None or len(chosen):  # a pass may bring a sequence nothing but padding
                found[b] = out[b, :, -1 if chosen is None else int(chosen[-1])]
        self.outs = found

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
        self.rooms = [None, None]
        self.real = None if self.real is None else self.real.index_select(0, rows)
        self.outs = None if self.outs is None else self.outs.index_select(0, rows)
        order = rows.tolist()
        self.entries = [
            [replace(one, stats=dict(one.stats), pages=dict(one.pages)) for one in self.entries[b]]
            for b in order
            if self.entries
        ]
        self.pieces = [self.pieces[b] for b in order if self.pieces]
        self.queries = [self.queries[b] for b in order if self.queries]
        self.read = [self.read[b] for b in order if self.read]
        self.coded = [self.coded[b] for b in order if self.coded]

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
