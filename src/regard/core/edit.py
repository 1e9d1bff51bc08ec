"""Interventions on attention: what an edit may change in one call of a layer, and where."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from regard.core.dial import Dialled
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.tile import Tokens

Rows = slice | Sequence[int] | Literal["all", "last"]
Part = Literal["resid", "attn", "mlp", "q_pre", "k_pre"]
Spans = Sequence[tuple[int, int]]
Heads = Sequence[int] | Mapping[int, Sequence[int]]


@dataclass(frozen=True)
class Place:
    """Where in a model and in its sequences one call of an attention layer stands.

    Slots count all tokens of a row of the batch, padding included; positions count its real tokens alone, from zero, so
    that padding shifts nothing.

    Args:
        layer: index of the attention layer, in order of execution. heads, kv_heads: its heads.
        rows: ``(n,)`` int64, slots of the queries. start: slot of the first key of the call.
        queries: ``(batch, n)`` bool, False = padding. keys: ``(batch, stop)`` bool, the same for all slots so far.
        tokens: what they are, None where unknown. cross: whether the keys are another sequence.
        sequence: the number of the sequence (or batch of them), which goes on while its cache does.
        part: which part of the block it is about, ``"attention"`` for the call itself.
        columns: gives ``(sums, counts)``, each ``(batch, heads, m)``: of each column of the unedited A over the real
            queries of the call, and how many of these may see the key; computed when it is called.
        notes: what is remembered of the sequence by name, tensors of one row for each of the batch: they go along with
            the cache's rows, where a beam search exchanges these.
        again: whether gradient checkpointing computes the call once more.
    """

    layer: int
    heads: int
    kv_heads: int
    rows: Tensor
    start: int
    queries: Tensor
    keys: Tensor
    tokens: Tokens | None = None
    cross: bool = False
    sequence: int = 0
    part: str = "attention"
    columns: Callable[[], tuple[Tensor, Tensor]] | None = None
    again: bool = False
    notes: dict[str, Tensor] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Number of queries."""
        return self.rows.shape[0]

    @property
    def m(self) -> int:
        """Number of keys of the call, those before ``start`` left out."""
        return self.keys.shape[1] - self.start

    @cached_property
    def positions(self) -> Tensor:
        """``(batch, stop)`` int64: how many real tokens stand before each slot; −1 for padding."""
        return torch.where(self.keys, self.keys.cumsum(1) - 1, -1)

    @cached_property
    def query_positions(self) -> Tensor:
        """``(batch, n)`` int64: those of the queries; −1 for padding; in another sequence than the keys', indices."""
        if self.cross:
            return torch.where(self.queries, self.rows, -1)
        return torch.where(self.queries, self.positions[:, self.rows], -1)

    @property
    def key_positions(self) -> Tensor:
        """``(batch, m)`` int64: those of the keys; −1 for padding."""
        return self.positions[:, self.start :]

    def of_rows(self, rows: Tensor) -> Place:
        """The same of some of the queries, which ``rows`` index."""
        return replace(self, rows=self.rows[rows], queries=self.queries[:, rows])

    def same(self, other: Place) -> bool:
        """Whether an edit would do the same in both."""
        pairs = ((self.rows, other.rows), (self.queries, other.queries), (self.keys, other.keys))
        known = [None if tokens is None else tokens.ids for tokens in (self.tokens, other.tokens)]
        alike = known[0] is known[1] or equal(*known)
        named = [(place.layer, place.part, place.start) for place in (self, other)]
        return named[0] == named[1] and alike and all(equal(*p) for p in pairs)


def equal(one: Any, other: Any) -> bool:
    """Whether both are tensors of the same entries."""
    return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)


@dataclass(frozen=True)
class Where:
    """Which layers, heads, query rows, keys and sequences an edit is confined to; what is None is not restricted.

    Positions count the tokens of the unpadded text from zero, whichever way the batch is padded and the prompt is cut.

    Args:
        layers: indices of attention layers, in order of execution. heads: of each layer; a mapping from layer to heads
            chooses both.
        rows: query positions, a slice of them, or ``"last"`` for the newest real token of each pass.
        keys: spans ``(start, stop)`` of key positions, or a mapping from rows of the batch to theirs.
        tokens: ids of the tokens that keys have to be.
        batch: rows of the batch.
    """

    layers: Iterable[int] | None = None
    heads: Heads | None = None
    rows: Rows | None = None
    keys: Spans | Mapping[int, Spans] | None = None
    tokens: Sequence[int] | None = None
    batch: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.layers is not None:
            object.__setattr__(self, "layers", frozenset(self.layers))
        if isinstance(self.rows, str) and self.rows not in ("all", "last"):
            raise wrong("rows", repr(self.rows), "positions, a slice of them, 'last' or 'all'")
        if isinstance(self.rows, slice) and self.rows.step not in (None, 1):
            raise wrong("rows", repr(self.rows), "a slice of neighbours")
        rows = self.keys.values() if isinstance(self.keys, Mapping) else [self.keys or ()]
        for span in (span for spans in rows for span in spans):
            if len(span) != 2 or not 0 <= span[0] <= span[1]:
                raise wrong("keys", repr(span), "spans (start, stop) of positions, from 0")

    def takes(self, layer: int) -> bool:
        """Whether the layer is one of them."""
        if isinstance(self.heads, Mapping) and layer not in self.heads:
            return False
        return self.layers is None or layer in self.layers

    @property
    def named_layers(self) -> frozenset[int]:
        """The layers that are named, none of them if all are meant."""
        named = frozenset(self.heads) if isinstance(self.heads, Mapping) else frozenset()
        return named | frozenset(self.layers or ())

    def chosen_heads(self, place: Place) -> Tensor:
        """``(heads,)`` bool.

        Raises:
            ValueError: the layer has not so many.
        """
        named = self.heads[place.layer] if isinstance(self.heads, Mapping) else self.heads
        if named is None:
            return torch.ones(place.heads, dtype=torch.bool, device=place.rows.device)
        return among(named, place.heads, f"heads of layer {place.layer}", place.rows.device)

    def chosen_batch(self, place: Place) -> Tensor:
        """``(batch,)`` bool."""
        size, device = place.queries.shape[0], place.rows.device
        return (
            torch.ones(size, dtype=torch.bool, device=device)
            if self.batch is None
            else among(self.batch, size, "batch", device)
        )

    def chosen_rows(self, place: Place) -> Tensor:
        """``(batch, n)`` bool: the queries, in the chosen rows of the batch; padding is none."""
        at, seen = place.query_positions, place.queries & self.chosen_batch(place)[:, None]
        if self.rows is None or (isinstance(self.rows, str) and self.rows == "all"):
            return seen
        if isinstance(self.rows, str):
            return seen & (at == at.amax(1, keepdim=True))
        return seen & within(at, self.rows)

    def chosen_keys(self, place: Place) -> Tensor:
        """``(batch, m)`` bool: the keys of the call, in the chosen rows of the batch; padding is none.

        Raises:
            ValueError: ids are asked for, and the pass was given none.
        """
        at = place.key_positions
        found = (at >= 0) & self.chosen_batch(place)[:, None]
        if self.keys is not None:
            found = found & in_spans(at, self.keys)
        if self.tokens is not None:
            if place.tokens is None or place.tokens.ids.shape != place.positions.shape:
                raise wrong("tokens", "a pass whose token ids are not known", "keys=, or input_ids from the first pass")
            ids = place.tokens.ids[:, place.start :]
            found = found & torch.isin(ids, torch.as_tensor(list(self.tokens), device=ids.device))
        return found

    def entries(self, place: Place) -> Tensor:
        """``(batch, heads, n)`` bool: the rows of A that are meant."""
        return self.chosen_heads(place)[None, :, None] & self.chosen_rows(place)[:, None]


def among(named: Sequence[int], size: int, what: str, device: torch.device) -> Tensor:
    """``(size,)`` bool of the indices that are named, which have to be there."""
    indices = [int(index) for index in named]
    if any(not 0 <= index < size for index in indices):
        raise wrong(what, str(indices), f"some of 0 to {size - 1}")
    found = torch.zeros(size, dtype=torch.bool, device=device)
    found[indices] = True
    return found


def in_spans(at: Tensor, spans: Spans | Mapping[int, Spans]) -> Tensor:
    """Which of the positions ``at (batch, m)`` lie in spans, or in those of their row of the batch."""
    if isinstance(spans, Mapping):
        among(list(spans), len(at), "rows of the batch in keys", at.device)
        return torch.cat([in_spans(row[None], spans.get(index, ())) for index, row in enumerate(at)])
    inside = [(at >= start) & (at < stop) for start, stop in spans]
    return torch.stack([torch.zeros_like(at, dtype=torch.bool), *inside]).any(0)


def within(at: Tensor, rows: slice | Sequence[int]) -> Tensor:
    """Which positions are in a slice, or among those listed."""
    if isinstance(rows, slice):
        found = at >= (rows.start or 0)
        return found if rows.stop is None else found & (at < rows.stop)
    return torch.isin(at, torch.as_tensor(list(rows), device=at.device))


class Edit(Dialled):
    """An intervention on a model's attention while it runs; a subclass overrides those methods that it needs.

    Each returns what stands in the place of what it was given, or None to leave that as it is, bit by bit. What lies
    outside of ``where`` (layers, heads, query rows, rows of the batch) is left alone whatever a method returns. While
    it is idle none of them is called.

    Args:
        where: what it is confined to.
    """

    parts: tuple[Part, ...] = ()
    """Of which parts of a block `hidden` is given the states; of the class, or of an instance that narrows them."""
    group_count: int = 2
    """Into how many groups `groups` parts the keys."""
    resumable: ClassVar[bool] = True
    """Whether a row depends on nothing after it, so that decoding edits as one pass over the whole text does."""

    called: ClassVar[str] = "an edit"

    def __init__(self, where: Where | None = None) -> None:
        self.where = Where() if where is None else where

    def but(self, **changed: Any) -> Self:
        """The same edit with some attributes changed, its ``where`` among them."""
        other = copy(self)
        for name, value in changed.items():
            setattr(other, name, value)
        return other

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={value!r}" for name, value in self.arguments().items())
        return f"{type(self).__name__}({told})"

    def arguments(self) -> dict[str, Any]:
        """What its constructor takes to make it again, those that are not their defaults; attributes have their names.

        Raises:
            TypeError: an argument is kept under no such name, here or in ``where``.
        """
        found = {}
        for name, parameter in inspect.signature(type(self)).parameters.items():
            holder = next((one for one in (self, self.where) if name in vars(one)), None)
            if holder is None:
                what = f"{type(self).__name__}, which keeps no attribute of this name"
                raise wrong(name, what, "an attribute for every argument of the constructor", TypeError)
            value = getattr(holder, name)
            if isinstance(value, frozenset | range):
                value = sorted(value)
            if parameter.default is parameter.empty or not plainly_equal(value, parameter.default):
                found[name] = value
        return found

    def queries(self, q: Tensor, k: Tensor, place: Place) -> tuple[Tensor, Tensor] | None:
        """Queries ``(b, heads, n, d)`` and keys ``(b, kv_heads, m, d)``, positions already in them.

        All keys of the call are given, those of earlier tokens too: what a cache holds stays as the model computed it.
        Where a layer's state holds no keys, as of a swapped one, those of the new tokens are.
        """
        return None

    def inputs(self, x: Tensor, place: Place) -> Tensor | None:
        """States ``(b, n, channels)``, of the new tokens, that queries and keys are made of for the edit's rows alone.

        Its rows attend with queries and keys made of what is returned, to all keys of the call that ``where`` names,
        those of earlier tokens too, and to the values as they are; the model's other rows, and its cache, see none of
        it. Two edits of inputs may not be about the same row of the same head.
        """
        return None

    def values(self, v: Tensor, place: Place) -> Tensor | None:
        """Values ``(b, kv_heads, m, e)``, of the same tokens as the keys."""
        return None

    def scores(self, place: Place) -> Tensor | None:
        """What is added to the scores, broadcastable to ``(b, heads, n, m)``; −∞ hides a key."""
        return None

    def groups(self, place: Place) -> Tensor | None:
        """A partition of the keys for `masses`: ``(b, 1 or heads, m)`` int64, group of each key, from 0.

        None for the keys that ``where`` names (1) and the others (0).
        """
        return None

    def masses(self, m: Tensor, place: Place) -> Tensor | None:
        """The mass of each group, ``m (b, heads, n, g)``, moved: within a group the shares stay as they are.

        Rows are to keep their sum; what a row cannot see has no mass, and gets none.
        """
        return None

    def heads(self, z: Tensor, place: Place) -> Tensor | None:
        """The heads' outputs ``(b, heads, n, e)``, before they meet the output projection."""
        return None

    def hidden(self, x: Tensor, place: Place) -> Tensor | None:
        """States ``(b, n, channels)`` of one of ``parts``, which ``place.part`` names.

        ``"resid"`` is what comes into the block of the layer, or, at one layer more than there are, what leaves the
        last; ``"attn"`` and ``"mlp"`` are what a block's attention and its MLP add to that; ``"q_pre"`` and ``"k_pre"``
        are what the modules ``q_proj`` and ``k_proj`` of its attention give, ``(b, n, heads · d)``, before positions
        are turned into it: the cache holds keys of what is returned.
        """
        return None


def plainly_equal(one: Any, other: Any) -> bool:
    """Whether two arguments are the same, tensors never."""
    return not isinstance(one, Tensor) and not isinstance(other, Tensor) and bool(one == other)


def sampled(*edits: Edit) -> list[Sample]:
    """Edits as examples for their laws."""
    return [Sample(f"{index}: {edit!r}"[:60], edit) for index, edit in enumerate(edits)]


def uses(edit: Edit, method: str) -> bool:
    """Whether an edit has a method of its own."""
    return getattr(type(edit), method) is not getattr(Edit, method)
