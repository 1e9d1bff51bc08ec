"""Keys and values of a cache as a codec leaves them: what policies that forget are held against, at equal bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regard.codecs.named import codec_of
from regard.core.errors import wrong
from regard.hosts.store import Store
from regard.policies.simple import Coded


class Coding:
    """Codes what a layer holds beyond its budget.

    Args:
        policy: which codec, and what stays whole.
    """

    def __init__(self, policy: Coded) -> None:
        self.policy, self.codec = policy, codec_of(policy.codec)

    @torch.no_grad()
    def __call__(self, store: Store, budgets: Sequence[int], decoding: bool) -> None:
        """Codes the entries of those sequences that hold more than ``budgets``, each entry once.

        Raises:
            ValueError: codes of so many bits that all together are over the budget still; a cache that has forgotten.
        """
        if store.ragged:
            raise wrong("cache", "one that has forgotten something", "one that holds all of its tokens")
        keys, values = store.pair
        store.coded = store.coded or [0] * store.batch
        whole, codes = bits_of(keys, values), sum(self.codec.bits(d) * d for d in (keys.shape[3], values.shape[3]))
        store.spared = (whole - codes) / 8
        for b, count in enumerate(store.lengths()):
            if not self.policy.due(count - budgets[b], decoding):
                continue
            first, last = self.policy.sinks + store.coded[b], count - self.policy.recent
            if last <= first:
                continue
            places = self.places(store, b)[first:last]
            for part in (keys, values):
                part[b, :, places] = self.codec.through(part[b, :, places])
            store.coded[b] += last - first
            if count * whole - store.coded[b] * 8 * store.spared > budgets[b] * whole:
                what = f"{budgets[b]} tokens a head, of {count} with {codes:.0f} bits each, whole ones have {whole}"
                raise wrong("budget", what, "more, or a codec of fewer bits")

    def places(self, store: Store, b: int) -> Tensor:
        """The slots of a sequence's real tokens."""
        if store.real is None:
            return torch.arange(store.slots, device=store.pair[0].device)
        return store.real[b].nonzero()[:, 0]


def bits_of(keys: Tensor, values: Tensor) -> int:
    """Bits of an entry that is whole."""
    return sum(8 * part.element_size() * part.shape[3] for part in (keys, values))
