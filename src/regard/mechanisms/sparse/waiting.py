"""The Attendre layer: queries wait in a memory, and attend when they are evicted from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, Mechanism, Traits, accumulate_dtype, masked_softmax, repeat_heads
from regard.kernels import packing

ORDERS = ("lra", "lfa", "fifo")


@dataclass(frozen=True)
class Turn:
    """What happens when a chunk has come.

    Args:
        keys: tokens that come into the memory of keys. queries: those that leave the memory of queries. held: tokens
            that the memory of keys holds while these attend. left: that stay in it.
    """

    keys: range
    queries: range
    held: int
    left: int


@published(
    "wait_to_attend",
    family="sparse",
    row=115,
    title="Attendre: Wait To Attend By Retrieval With Evicted Queries in Memory-Based Transformers for Long Context "
    "Processing",
    arxiv="2401.04881",
    year=2024,
    aliases=("attendre_layer",),
    fidelity="abstract only",
    claim=Claim(
        "a question before the text that answers it is answered right in at least 95% of the texts where its query "
        "waits, and by chance where it does not: trained, with a memory of a third of the text",
        cells="waiting.prefixes",
        holds="waiting.answers_ahead",
    ),
)
class WaitToAttend(Mechanism):
    """Text comes in chunks; a query waits until ``wait`` later ones have come, then attends to what a memory retrieves.

        A_ij = softmax over R_i of q_i · k_j / √d,   R_i = the ``top`` keys with the largest q_i · k_j of the memory
        when i is evicted from the memory of queries, first in, first out

    With each chunk its keys and values enter their memory and its queries theirs; the queries that this one evicts
    attend; then the memory of keys evicts what is beyond its size: what was retrieved least recently (``lra``; to come
    counts as being retrieved), least often (``lfa``), or came first (``fifo``), of equals the older. With the last
    chunk all queries attend. So a query sees keys on both sides of it, though no more than ``memory + chunk`` keys and
    ``wait + chunk`` queries are held; each head has memories of its own, and a host's residual stream waits with its
    queries. With as much memory, ``wait`` and ``top`` as there are tokens this is bidirectional softmax attention.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, n, d)``, ``v (b, g, n, e)`` -> ``(b, h, n, e)``.
    Cost: ``2 n (memory + chunk) (d + e)`` FLOPs a head. State: the memories.

    Args:
        memory: keys that are held. wait: queries that are. chunk: tokens that come at once. top: keys that a query
            retrieves. order: of eviction, lra, lfa or fifo.

    Raises:
        ValueError: no memory, chunk or retrieved key, a negative wait, or another order; more or fewer keys than
            queries, or causal attention, of which a cache's policy `attendre` is the memory of keys.

    Paper: Yang and Hua, arXiv 2401.04881, of which no code was published: that keys leave after the queries have
    attended, so that each is seen at least once, and one clock for keys and queries, are ours.
    """

    traits = Traits(causal=False, cross=False, rows="one", sign="nonnegative", time="linear", state="constant")

    def __init__(self, memory: int = 64, wait: int = 16, chunk: int = 16, top: int = 8, order: str = "lra") -> None:
        super().__init__()
        if min(memory, chunk, top) < 1 or wait < 0:
            came = f"{memory}, {wait}, {chunk}, {top}"
            raise wrong("memory, wait, chunk, top", came, "at least 1, 0, 1 and 1")
        if order not in ORDERS:
            raise wrong("order", repr(order), f"one of {', '.join(ORDERS)}")
        self.memory, self.wait, self.chunk, self.top, self.order = memory, wait, chunk, top, order

    def turns(self, n: int) -> Iterator[Turn]:
        """What happens with each chunk of a text of n tokens."""
        asked, left = 0, 0
        for start in range(0, n, self.chunk):
            stop = min(start + self.chunk, n)
            until = n if stop == n else max(stop - self.wait, asked)
            held, left = left + stop - start, min(left + stop - start, self.memory)
            yield Turn(range(start, stop), range(asked, until), held, left)
            asked = until

    def worth(self, retrieved: Tensor, times: Tensor, places: Tensor, n: int) -> Tensor:
        """What a key is worth to the memory, int64 and no two alike: by when it was retrieved, how often, its place."""
        found = {"lra": retrieved, "lfa": times, "fifo": torch.zeros_like(places)}[self.order]
        return found * n + places

    def support(
        self, n: int, m: int, layout: Layout, device: torch.device | str = "cpu", rows: slice | None = None
    ) -> Tensor:
        seen = layout.allowed(n, m, device, rows)
        if layout.key_mask is None:
            return seen
        return seen & layout.key_mask[:, None, m - n :, None][:, :, rows or slice(0, n)]

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)

        def alone(q: Tensor, k: Tensor, rows: slice) -> Tensor:
            scores = q @ repeat_heads(k, q.shape[1]).mT * q.shape[3] ** -0.5
            return masked_softmax(scores, self.retrieved(scores.detach()))

        return packing.maps(alone, q, k, layout)

    def retrieved(self, scores: Tensor) -> Tensor:
        """R ``(b, h, n, n)`` bool of one document's scores: the definition, with a memory of marks on all keys."""
        n = scores.shape[3]
        held = torch.zeros_like(scores[:, :, 0], dtype=torch.bool)
        last, times = torch.full_like(held, -1, dtype=torch.int64), torch.zeros_like(held, dtype=torch.int64)
        places, found = torch.arange(n, device=scores.device), torch.zeros_like(scores, dtype=torch.bool)
        for turn in self.turns(n):
            own = slice(turn.keys.start, turn.keys.stop)
            held[..., own], last[..., own] = True, places[own]
            for query in turn.queries:
                order = scores[:, :, query].masked_fill(~held, -torch.inf).argsort(-1, descending=True)
                found[:, :, query].scatter_(-1, order[..., : min(self.top, turn.held)], True)
            hits = found[:, :, turn.queries.start : turn.queries.stop].sum(2)
            last, times = torch.where(hits > 0, turn.keys.stop, last), times + hits
            worth = self.worth(last, times, places, n).masked_fill(~held, -1)
            held = torch.zeros_like(held).scatter_(-1, worth.topk(turn.left, -1).indices, True)
        return found

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        return self.weights(q, k, layout)[:, :, rows]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)
        k, v = (repeat_heads(x, q.shape[1]) for x in (k, v))
        if k.shape[2] == 0:
            return q.new_zeros(*q.shape[:3], v.shape[3])
        return self.read(q, k, v) if layout.plain else packing.per_sequence(self.read, q, k, v, layout)

    def read(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """A v of documents of one length, chunk by chunk, from what the memories hold."""
        n, wide, scale = q.shape[2], accumulate_dtype(q.dtype), q.shape[3] ** -0.5
        places = torch.zeros(*q.shape[:2], 0, dtype=torch.int64, device=q.device)
        last, times, outs = places, places, []
        for turn in self.turns(n):
            new = torch.arange(turn.keys.start, turn.keys.stop, device=q.device).expand(*q.shape[:2], -1)
            places, last = torch.cat([places, new], -1), torch.cat([last, new], -1)
            times = torch.cat([times, torch.zeros_like(new)], -1)
            if turn.queries:
                keys, values = (x.take_along_dim(places[..., None], 2).to(wide) for x in (k, v))
                scores = q[:, :, turn.queries.start : turn.queries.stop].to(wide) @ keys.mT * scale
                best = scores.detach().topk(min(self.top, turn.held), -1).indices
                chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True)
                outs.append((masked_softmax(scores, chosen) @ values).to(q.dtype))
                hits = chosen.sum(2)
                last, times = torch.where(hits > 0, turn.keys.stop, last), times + hits
            if turn.left < turn.held:
                kept = self.worth(last, times, places, n).topk(turn.left, -1).indices
                places, last, times = (x.gather(-1, kept) for x in (places, last, times))
        return torch.cat(outs, 2)

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        n, d, e = shape.n, shape.head_dim, shape.values
        if n <= 64 * (self.memory + self.chunk + self.wait):
            pairs = sum(len(turn.queries) * turn.held for turn in self.turns(n))
        else:
            pairs = n * (self.memory + self.chunk)
        each = shape.batch * shape.heads
        state = each * (min(n, self.memory) * (d + e) + min(n, self.wait) * d) * shape.itemsize
        return Cost(2 * each * pairs * (d + e), shape.io_bytes, state)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("least recently", cls(7, 5, 4, 3), heads=2, kv_heads=1, longest=131),
            Example("least often", cls(11, 3, 5, 2, "lfa"), heads=3, kv_heads=3, longest=131),
            Example("first come", cls(9, 0, 3, 4, "fifo"), longest=131),
        ]
