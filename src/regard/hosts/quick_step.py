"""A step of a cache that has forgotten nothing, by the short way: all keys are at hand, and nobody wants to see A."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from regard.hosts.ragged import by_heads
from regard.hosts.store import Store
from regard.kernels import flash

if TYPE_CHECKING:
    from regard.hosts.compress import Compression

SILENT = frozenset({"cache", "dropout", "past_key_values", "position_ids", "scaling", "use_cache"})
"""Arguments of an attention function that say nothing of A in a step without dropout, or that are heeded here."""


class QuickStep:
    """Computes single tokens of the layers of a compression as the long way would, or leaves them to it.

    It is taken on a CPU, without gradients, where nothing else is attached, no token is padding, the policy notes
    nothing of the entries, and the layer was called by the long way before with the same cache.

    Args:
        compression: whose layers.
    """

    def __init__(self, compression: Compression) -> None:
        policy = compression.policy
        self.compression = weakref.ref(compression)
        self.able = not (policy.keeps or policy.needs_out or policy.needs_states or policy.reads or compression.coding)
        self.known: dict[int, tuple[Any, Any, str]] = {}

    def note(self, module: nn.Module, name: str, store: Store, cache: Any) -> None:
        """Notes that a module's keys are kept by a store of a cache."""
        if self.able:
            self.known[id(module)] = weakref.ref(store), weakref.ref(cache), name

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **given: Any
    ) -> Tensor | None:
        """``A v (b, 1, heads, d)``; None where the long way is to be taken."""
        known = self.known.get(id(module))
        if known is None or mask is not None or query.shape[2] != 1 or torch.is_grad_enabled():
            return None
        compression, (found, cache, name) = self.compression(), known
        store: Store | None = found()
        if compression is None or store is None or not self.fits(compression, store, key):
            return None
        if not key.is_cpu or key.shape != value.shape or not self.passes_by(compression):
            return None
        told = given.keys() <= SILENT or {argument for argument, said in given.items() if said is not None} <= SILENT
        if not told or (module.training and given.get("dropout")):
            return None
        scaling = given.get("scaling")
        scaling = query.shape[3] ** -0.5 if scaling is None else scaling
        compression.installed.passes.locate(name)  # pyright: ignore[reportOptionalMemberAccess]
        if store.ragged:
            out = by_heads(store.step(), query, scaling)
        else:
            out = flash.attend(query, key, value, False, None, scaling)[0]
        store.fresh, compression.cache, compression.ran = None, cache(), True
        if compression.policy.rows:
            compression.remember(store, list(query))
        compression.shrink(store, decoding=True)
        return out.transpose(1, 2).contiguous()

    @staticmethod
    def fits(compression: Compression, store: Store, key: Tensor) -> bool:
        """Whether the keys are all that a store holds, with one new token of each sequence."""
        if store.latest() is not key or store.fresh is None or store.fresh[0].shape[2] != 1:
            return False
        return store.real is None and (not store.noted or store.ragged) and store.owner() is compression

    @staticmethod
    def passes_by(compression: Compression) -> bool:
        """Whether nobody but the compression has to do with the running pass."""
        attachment = compression.installed
        if attachment is None or len(attachment.parts) != 1 or attachment.silent or attachment.noted is not None:
            return False
        passes = attachment.passes
        if not passes.stack or passes.owner != threading.get_ident():
            return False
        return not passes.stack[-1].weights  # where a token is padding there is a mask
