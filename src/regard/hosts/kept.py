"""The cache of a swapped layer: the mechanism's own state, in the place of keys and values."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from regard.core.errors import wrong
from regard.core.state import State


class Kept(CacheLayerMixin):
    """One layer of a Transformers cache that holds a mechanism's state, and hands new keys and values through.

    Args:
        state: after the tokens so far. slots: number of those tokens, padding included, by which masks are sized.
        sliding: whether Transformers makes this layer's masks with its sliding window.
    """

    def __init__(self, state: State, slots: int, sliding: bool) -> None:
        super().__init__()
        self.state, self.slots, self.is_sliding = state, slots, sliding
        self.is_initialized = True

    @property
    def bytes(self) -> int:
        """Bytes of the state."""
        return self.state.bytes

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is left to do."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object):
        """The new keys and values alone; the mechanism takes them in when it attends."""
        self.slots += key_states.shape[2]
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.slots + query_length, 0

    def get_seq_length(self) -> int:
        return self.slots

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        raise wrong("past_key_values", "a cache of swapped layers to reset", "a new cache", RuntimeError)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.state = self.state.select(beam_idx.to(self.state.seen.device))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.state = self.state.select(torch.arange(len(self.state.seen), device=self.state.seen.device)[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        count = torch.arange(len(self.state.seen), device=self.state.seen.device)
        self.state = self.state.select(count.repeat_interleave(repeats))

    def offload(self) -> None:
        """States are small, and stay where they are."""

    def prefetch(self) -> None:
        """See `offload`."""
