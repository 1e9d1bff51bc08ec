"""The cache of a swapped layer: the mechanism's own state, in the place of keys and values."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from regard.core.errors import wrong
from regard.core.mechanism import Mechanism
from regard.core.state import State
from regard.hosts import caches

RECALL = 4096
"""Tokens that the latest pass may have had at most for some of them to be taken back."""


@dataclass(frozen=True)
class Held:
    """What is left of one attention call's past.

    Args:
        mechanism: that goes on from it. state: after the tokens so far. before: ahead of the latest pass, None where
            that cannot be taken back. latest: q, k, v and mask of the latest pass.
        keys: ``(b, kv_heads, tokens, d)``, all so far, where a watch has seen them from the first on.
    """

    mechanism: Mechanism
    state: State
    before: State | None = None
    latest: tuple[Tensor, Tensor, Tensor, Tensor | None] | None = None
    keys: Tensor | None = None

    def showing(self, k: Tensor) -> Held:
        """The same, remembering its keys from now on if it has none yet."""
        begun = self.keys is None and not bool(self.state.seen.any()) and self.before is None
        return replace(self, keys=k[:, :, :0].detach()) if begun else self

    def extend(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> tuple[Tensor, Held]:
        """``(A v, what is left after it)`` of the new tokens."""
        out, state = self.mechanism.extend(q, k, v, self.state, key_mask)
        every = None if self.keys is None else torch.cat([self.keys, k.detach()], dim=2)
        if not 1 < q.shape[2] <= RECALL:
            return out, Held(self.mechanism, state, keys=every)
        return out, Held(self.mechanism, state, self.state, (q.detach(), k.detach(), v.detach(), key_mask), every)

    def shorter(self, count: int) -> Held:
        """Without the last ``count`` tokens of the latest pass."""
        stop = 0 if self.latest is None else self.latest[0].shape[2] - count
        if self.before is None or self.latest is None or stop < 0:
            what = f"{count} tokens to take back from a swapped layer"
            raise wrong("crop", what, f"some of the latest pass, if that had 2 to {RECALL}", RuntimeError)
        every = None if self.keys is None else self.keys[:, :, : self.keys.shape[2] - self.latest[0].shape[2]]
        if stop == 0:
            return Held(self.mechanism, self.before, keys=every)
        q, k, v, keys = self.latest
        q, k, v = (part[:, :, :stop] for part in (q, k, v))
        begun = Held(self.mechanism, self.before, keys=every)
        return begun.extend(q, k, v, None if keys is None else keys[:, :stop])[1]

    def select(self, rows: Tensor) -> Held:
        """That of some ``rows`` of the batch."""
        every = None if self.keys is None else self.keys[rows.to(self.keys.device)]
        return Held(self.mechanism, self.state.select(rows.to(self.state.seen.device)), keys=every)


class OwnCacheLayer(CacheLayerMixin):
    """A layer of ours in a Transformers cache: it answers for all tokens so far, whatever it holds of them.

    Args:
        owner: that put it there. slots: number of tokens so far, padding included, by which masks are sized.
        sliding: whether Transformers makes this layer's masks with its sliding window.
    """

    verb: ClassVar[str]
    """What its owner does, for errors."""

    def __init__(self, owner: Any, slots: int, sliding: bool) -> None:
        super().__init__()
        self.owner, self.slots, self.is_sliding = weakref.ref(owner), slots, sliding
        self.latest: Any = lambda: None
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is left to do."""

    def check_owner(self) -> Any:
        """Its owner.

        Raises:
            RuntimeError: that has been taken off the model.
        """
        owner = self.owner()
        if owner is None or owner.installed is None:
            what, wanted = f"a cache of a {self.verb} that is out again", f"the {self.verb}, or a new cache"
            raise wrong("past_key_values", what, wanted, RuntimeError)
        return owner

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        new = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.slots + new, 0

    def get_seq_length(self) -> int:
        return self.slots

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1

    def offload(self) -> None:
        """What is left is small, and stays where it is."""

    def prefetch(self) -> None:
        """See `offload`."""


class StateCacheLayer(OwnCacheLayer):
    """One layer of a Transformers cache that holds a mechanism's state, and hands new keys and values through.

    What stands in its ``keys`` only says that there are some, as models ask.
    """

    verb: ClassVar[str] = "swap"
    is_croppable = True

    def __init__(self, owner: Any, slots: int, sliding: bool) -> None:
        super().__init__(owner, slots, sliding)
        self.held: dict[int, Held] = {}  # by the index of the attention call: a layer may make several

    @property
    def bytes(self) -> int:
        """Bytes of the states."""
        return sum(held.state.bytes for held in self.held.values())

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object):
        """The new keys and values alone; the mechanism takes them in when it attends."""
        self.check_owner()
        self.slots += key_states.shape[2]
        self.latest = weakref.ref(key_states)
        return key_states, value_states

    def crop(self, tokens_to_remove: int) -> None:
        """Takes so many tokens of the latest pass back, given as a negative number; a positive one is what to keep."""
        count = -tokens_to_remove if tokens_to_remove <= 0 else max(self.slots - tokens_to_remove, 0)
        if count:
            self.held = {call: held.shorter(count) for call, held in self.held.items()}
            self.slots -= count

    def reset(self) -> None:
        raise wrong("past_key_values", "a cache of swapped layers to reset", "a new cache", RuntimeError)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.held = {call: held.select(beam_idx) for call, held in self.held.items()}

    def batch_select_indices(self, indices: Tensor) -> None:
        for held in self.held.values():
            rows = torch.arange(len(held.state.seen), device=indices.device)[indices]
            return self.reorder_cache(rows)

    def batch_repeat_interleave(self, repeats: int) -> None:
        for held in self.held.values():
            return self.reorder_cache(torch.arange(len(held.state.seen)).repeat_interleave(repeats))


@dataclass(frozen=True)
class Home:
    """Where an attention call keeps its past.

    Args:
        cache: that its module was given, None for none. index: of the layer in it. layer: this.
    """

    cache: Any
    index: int | None
    layer: Any

    @classmethod
    def of(cls, cache: Any, k: Tensor, module: nn.Module) -> Home:
        """That of the layer that has just handed out the keys ``k``, or else of the module's own layer."""
        index = getattr(module, "layer_idx", None)
        own = caches.layer(cache, index)
        if own is not None and handed(own) is k:
            return cls(cache, index, own)
        layers = getattr(caches.own(cache), "layers", [])
        index = next((i for i, layer in enumerate(layers) if handed(layer) is k), index)
        return cls(cache, index, caches.layer(cache, index))

    @property
    def kept(self) -> StateCacheLayer | None:
        """The layer, if it holds states."""
        return self.layer if isinstance(self.layer, StateCacheLayer) else None

    @property
    def replaceable(self) -> bool:
        """Whether it is one of Transformers' growing caches, in whose place a state can stand."""
        return type(self.layer) in (DynamicLayer, DynamicSlidingWindowLayer)

    def replace(self, swap: Any, slots: int) -> StateCacheLayer:
        """Puts a layer of the swap's states, after so many tokens, in the layer's place."""
        kept = StateCacheLayer(swap, slots, self.layer.is_sliding)
        kept.keys = self.layer.keys.new_zeros(1, 1, 1, 1)
        self.put(kept)
        return kept

    def put(self, layer: OwnCacheLayer) -> None:
        """Puts one of ours in the layer's place."""
        caches.own(self.cache).layers[self.index] = layer


def handed(layer: Any) -> Any:
    """The keys that a cache's layer has handed out, None for none."""
    return layer.latest() if isinstance(layer, OwnCacheLayer) else getattr(layer, "keys", None)
