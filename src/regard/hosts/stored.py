"""What a cache holds that forgets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.hosts import caches
from regard.hosts.store import Store


class Stored:
    """What a cache holds that forgets.

    Args:
        cache: of a model under `compress`.
    """

    def __init__(self, cache: Any) -> None:
        self.layers = {i: layer for i, layer in enumerate(caches.own(cache).layers) if isinstance(layer, Store)}

    @property
    def bytes(self) -> int:
        """Bytes of keys, values, positions and what the policy notes."""
        return sum(layer.bytes for layer in self.layers.values())

    @property
    def pairs(self) -> int:
        """Bytes of keys and values alone; of those that are coded, the bytes of their codes, packed."""
        total = 0.0
        for layer in self.layers.values():
            for b in range(layer.batch):
                pairs = [layer.held(b, h).pair for h in range(layer.kv_heads)]
                total += sum(part.numel() * part.element_size() for pair in pairs for part in pair)
                total -= layer.coded[b] * layer.spared * layer.kv_heads if layer.coded else 0
        return round(total)

    def kept(self, layer: int, sequence: int = 0) -> list[Tensor]:
        """The positions that each kv head of a layer holds, ``(t,)`` int64 each.

        Raises:
            LookupError: no such layer that forgets.
        """
        if layer not in self.layers:
            raise wrong("layer", str(layer), f"one of {list(self.layers)}", LookupError)
        return self.layers[layer].positions(sequence)

    def table(self, sequence: int = 0) -> Tensor:
        """``(layers, kv_heads, n)`` bool: which of a sequence's ``n`` real tokens each head of each layer holds."""
        found = []
        for layer in self.layers.values():
            heads = torch.zeros(layer.kv_heads, layer.lengths()[sequence], dtype=torch.bool)
            for row, positions in zip(heads, layer.positions(sequence), strict=True):
                row[positions.cpu()] = True
            found.append(heads)
        return torch.stack(found)

    def __repr__(self) -> str:
        held = [
            len(positions)
            for layer in self.layers.values()
            for b in range(layer.batch)
            for positions in layer.positions(b)
        ]
        return f"{len(self.layers)} layers, {min(held)} to {max(held)} tokens a kv head, {self.bytes / 1e6:.1f} MB"
