"""A of a call that the model computed whole, and how it is shown to the probes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from regard.core.errors import wrong
from regard.core.tile import Tile
from regard.hosts.forward_pass import Pass
from regard.hosts.places import tokens_of
from regard.hosts.session import Layer
from regard.hosts.softmax_call import BLOCK, LEAST_ROWS

if TYPE_CHECKING:
    from regard.hosts.watch import Watched


@dataclass(frozen=True)
class Caught:
    """A of one call, dense.

    Args:
        dense: ``(batch, heads, n, m)``. visible: of the same shape, what may be seen; None for all.
    """

    dense: Tensor
    visible: Tensor | None = None

    @property
    def n(self) -> int:
        return self.dense.shape[2]

    @property
    def m(self) -> int:
        return self.dense.shape[3]

    @property
    def device(self) -> torch.device:
        return self.dense.device

    @property
    def bytes(self) -> int:
        """What A takes in float32."""
        return 4 * self.dense.numel()

    def select(self, heads: list[int]) -> Caught:
        """Some heads alone."""
        return Caught(self.dense[:, heads], None if self.visible is None else self.visible[:, heads])

    def blocks(self, rows: Tensor | None = None) -> list[Tensor]:
        """The ascending ``rows``, or all of them, in blocks of about `BLOCK` entries of A."""
        rows = torch.arange(self.n, device=self.device) if rows is None else rows
        size = max(LEAST_ROWS, BLOCK // max(self.dense[:, :, 0].numel(), 1))
        return list(rows.split(size))

    def weights(self, rows: Tensor) -> Tensor:
        """The ``rows`` of A, ``(batch, heads, rows, m)``, in float32 or float64."""
        found = self.dense[:, :, rows]
        return found.to(torch.promote_types(found.dtype, torch.float32))

    def causal(self, place: Pass) -> bool:
        """Whether its queries are the last tokens of the pass, and see no later key; one alone says so by its cache."""
        if self.m != place.past + self.n or (self.n == 1 and place.cache is None):
            return False
        if self.n == 1 or self.visible is None:
            return self.n == 1
        later = torch.ones(self.n, self.m, dtype=torch.bool, device=self.device).triu(place.past + 1)
        return not bool((self.visible & later).any())


class Reading:
    """Shows the session of a watch what a model's own code attends to."""

    def __init__(self, watched: Watched) -> None:
        self.watched = watched

    @torch.no_grad()
    def caught(self, module: nn.Module, weights: Tensor, visible: Tensor | None) -> None:
        """A that the module has multiplied with its values."""
        watched, source = self.watched, Caught(weights, visible)
        name = watched.names[id(module)]
        place, turn = watched.passes.locate(name)
        name = name if turn == 0 else f"{name}#{turn}"
        causal = source.causal(place)
        layer = watched.noted(name, lambda index: described(index, name, source, causal, place))
        if layer.causal and not causal:
            what = f"{source.m} keys for {source.n} queries in {name}, after {place.past} tokens"
            wanted = "a causal call as before, over a cache that holds every token"
            raise wrong("past_key_values", what, wanted, RuntimeError)
        if watched.choice.takes(layer.index):
            heads = watched.choice.heads(layer.index, layer.heads)
            source = source if heads is None else source.select(heads)
            for tile in self.tiles(layer, source, place):
                for probe in watched.probes:
                    probe.update(tile)
            watched.retain(layer.index, source)
        if watched.seen is not None:
            watched.seen(layer.index)

    def tiles(self, layer: Layer, source: Caught, place: Pass) -> Iterator[Tile]:
        """The rows of A, in the slots of the whole sequence."""
        past = place.past if layer.causal else 0
        keys, queries = real(source, layer, place, past)
        tokens = None if layer.cross else tokens_of(place, keys)
        blocks, share = self.watched.choice.blocks(source, layer.index, past)
        for rows in blocks:
            yield Tile(
                layer=layer.index,
                weights=source.weights(rows),
                rows=rows + past,
                start=0,
                m=source.m,
                queries=queries[:, rows],
                key_mask=keys,
                causal=layer.causal,
                visible=None if source.visible is None else source.visible[:, :, rows],
                tokens=tokens,
                sequence=self.watched.passes.sequence,
                share=share,
                cross=layer.cross,
            )


def described(index: int, name: str, source: Caught, causal: bool, place: Pass) -> Layer:
    """The layer of a call; its code alone knows the size of its heads and how it scores."""
    heads = source.dense.shape[1]
    cross = not causal and (place.encoded or source.n != source.m)
    return Layer(index, name, heads, heads, 0, causal, cross, None, None, None, False)


def real(source: Caught, layer: Layer, place: Pass, past: int) -> tuple[Tensor, Tensor]:
    """``(keys (batch, m), queries (batch, n))`` bool: which of them are no padding."""
    batch, device = source.dense.shape[0], source.device
    given = place.keys if place.keys is not None and len(place.keys) == batch else None
    keys = torch.ones(batch, source.m, dtype=torch.bool, device=device)
    queries = torch.ones(batch, source.n, dtype=torch.bool, device=device)
    if given is not None and given.shape[1] == past + source.n:
        queries = given[:, past:].to(device)
    if given is not None and given.shape[1] == source.m and not layer.cross:
        keys = given.to(device)
    elif source.visible is not None:
        keys = source.visible.any(1).any(1)
    if source.visible is not None:
        queries = queries & source.visible.any(1).any(2)
    return keys, queries
