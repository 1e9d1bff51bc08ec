"""Softmax attention to the blocks of keys that a router chooses for each query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import did_you_mean, wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, Mechanism, Traits, masked_softmax, repeat_heads
from regard.core.state import State, count_new
from regard.kernels import chosen
from regard.kernels import packing as alone
from regard.kernels.rows import ordered
from regard.mechanisms.cached import KeyValues
from regard.mechanisms.scored.softmax import Softmax
from regard.patterns.choice import Choice
from regard.routers.base import Forced, Router, Summary
from regard.routers.blocks import SCORES


@dataclass(frozen=True)
class Known(State):
    """All keys and values, and what is summed up of the blocks of keys that are complete.

    Args:
        cache: every key and value so far. summary: of the blocks that any sequence has completed, as the router
            sums them up, a sequence's own up to its last complete one; empty before the first.
    """

    cache: KeyValues
    summary: Summary


class Routed(Mechanism):
    """The base of softmax attention to blocks of keys that a router chooses.

        A_ij = exp(s_ij) / Σ_{j' ∈ C(i)} exp(s_ij') for j ∈ C(i), else 0,   s_ij = q_i · k_j / √d

    A is ``weights``; C is the router's choice, inside of whose blocks a causal query sees the keys up to itself. Blocks
    count the real tokens of a sequence or document, so a padded or packed batch is each of them alone. Gradients flow
    through the attention, and not through the choice.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h.
    Cost: scores of all blocks, and ``4 cells max(d, e)`` FLOPs a head. State: all keys and values, and the summary.

    Args:
        router: what chooses.
    """

    traits = Traits(cross=False, rows="one", sign="nonnegative", flops="at most")

    def __init__(self, router: Router) -> None:
        super().__init__()
        self.router = router
        sure = "own" in router.forced
        if not router.causal:
            self.traits = replace(self.traits, leaks=True, resumable=False, suffix=False)
        self.traits = replace(self.traits, rows="one" if sure else "at most one")

    def choice(self, q: Tensor, k: Tensor, causal: bool) -> Choice:
        """The router's, of the last queries over the keys of one regular layout."""
        n, m = q.shape[2], k.shape[2]
        return self.router(q, k, self.router.rows(torch.arange(m - n, m, device=q.device)[None], m, causal))

    def scored(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys as their scores are made of them."""
        return q, k

    def support(
        self, n: int, m: int, layout: Layout, device: torch.device | str = "cpu", rows: slice | None = None
    ) -> Tensor:
        return layout.among_tokens(n, m, device, rows)

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        return self.rows(q, k, layout, slice(0, q.shape[2]), **signals)

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)

        def run(q: Tensor, k: Tensor, rows: slice) -> Tensor:
            return self.map(q, k, layout.causal, rows)

        start, stop, _ = rows.indices(q.shape[2])
        return run(q, k, slice(start, stop)) if layout.regular else alone.maps(run, q, k, layout, rows)

    def map(self, q: Tensor, k: Tensor, causal: bool, rows: slice) -> Tensor:
        """Some rows of A of one regular layout."""
        seen = self.choice(q, k, causal).spread(rows)
        q, k = self.scored(q, k)
        return masked_softmax(q[:, :, rows] @ repeat_heads(k, q.shape[1]).mT * q.shape[-1] ** -0.5, seen)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            asked, keys = self.scored(q, k)
            return chosen.attend(asked, keys, v.to(asked.dtype), self.choice(q, k, layout.causal)).out.to(q.dtype)

        return run(q, k, v) if layout.regular else alone.per_sequence(run, q, k, v, layout)

    def start(self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Known:
        """Nothing seen."""
        cache = KeyValues.empty(batch, device, dtype)
        return Known(cache.seen, cache, ())

    def extend(
        self, q: Tensor, k: Tensor, v: Tensor, state: Any, key_mask: Tensor | None = None, **signals: Tensor
    ) -> tuple[Tensor, Known]:
        """Sums up the blocks that the new tokens complete, and attends to the chosen ones."""
        self.check(q, k, v, Layout(causal=True), signals)
        grown, here = self.grown(k, v, state, key_mask)
        cache = grown.cache
        m = cache.k.shape[2] if cache.key_mask is None else int(grown.seen.max())
        summary = self.summed(grown) or self.router.summary(in_order(cache)[0])
        choice = self.router(q, cache.k, self.router.rows(here, m, True), summary)
        return attended(q, cache, choice), grown

    def grown(self, k: Tensor, v: Tensor, state: Known, key_mask: Tensor | None) -> tuple[Known, Tensor]:
        """The state with the new tokens, and where they stand: ``(batch or 1, new)``."""
        here, seen = count_new(state, key_mask, k.shape[2], k.shape[0])
        cache = state.cache.append(k, v, key_mask)
        summary = self.renewed(cache, state.summary, state.seen, seen)
        return Known(seen, cache, summary), here[:1] if cache.key_mask is None else here

    def all_of(self, state: Known) -> tuple[Tensor, Tensor, Summary | None]:
        """Keys and values by position, and the summary of all of their blocks that may be chosen."""
        return *in_order(state.cache), self.summed(state)

    def summed(self, state: Known) -> Summary | None:
        """The summary of all blocks that may be chosen, or None if there are none."""
        most = int(state.seen.max()) // self.router.block
        return tuple(x[:, :, :most] for x in state.summary) if most else None

    def renewed(self, cache: KeyValues, old: Summary, before: Tensor, seen: Tensor) -> Summary:
        """The summary with the blocks that sequences have completed, each with its own, between so many tokens."""
        block = self.router.block
        done, now = before // block, seen // block
        moved = [(first, end) for first, end in zip(done.tolist(), now.tolist(), strict=True) if end > first]
        if not moved:
            return old
        first, end = min(pair[0] for pair in moved), max(pair[1] for pair in moved)
        new = self.router.summary(keys_in_order(cache, first * block, end * block))
        if first >= blocks_of(old):
            return tuple(torch.cat(pair, 2) for pair in zip(old, new, strict=True)) if old else new
        number = torch.arange(first, end, device=seen.device)
        own = ((number >= done[:, None]) & (number < now[:, None]))[:, None]
        return tuple(put(x, fresh, own, first) for x, fresh in zip(old, new, strict=True))

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        router, (n, m) = self.router, (shape.n, shape.keys)
        cells = chosen.cells(n, m, router.block, router.size, min(router.budget, -(-m // router.block)))
        flops = router.flops(n, m, shape.head_dim) + 4 * cells * max(shape.head_dim, shape.values)
        itemsize = max(shape.itemsize, 4)
        summed = shape.batch * shape.groups * (m // router.block) * router.width(shape.head_dim) * itemsize
        return Cost(shape.batch * shape.heads * flops, shape.io_bytes, shape.cache_bytes + summed)


class OfPrompts(Routed):
    """The base of those that choose for whole prompts, in which a text that goes on attends to all of it."""

    def start(self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
        """An empty cache."""
        return KeyValues.empty(batch, device, dtype)

    def extend(
        self, q: Tensor, k: Tensor, v: Tensor, state: Any, key_mask: Tensor | None = None, **signals: Tensor
    ) -> tuple[Tensor, Any]:
        """A prompt as one call has it; later tokens attend to all keys."""
        self.check(q, k, v, Layout(causal=True), signals)
        grown = state.append(k, v, key_mask)
        of = self if grown.k.shape[2] == k.shape[2] else Softmax()
        return of(q, grown.k, grown.v, Layout(causal=True, key_mask=grown.key_mask)), grown


def blocks_of(summary: Summary) -> int:
    """How many blocks are summed up."""
    return summary[0].shape[2] if summary else 0


def put(old: Tensor, new: Tensor, own: Tensor, first: int) -> Tensor:
    """``old (b, g, x, …)`` with those of ``new (b, g, y, …)`` that are ``own (b, 1, y)`` from ``first`` on."""
    end = first + new.shape[2]
    short = max(end - old.shape[2], 0)
    kept = torch.cat([old[:, :, first:end], torch.zeros_like(new[:, :, :short])], 2)
    middle = torch.where(own[(...,) + (None,) * (new.dim() - 3)], new, kept)
    return torch.cat([old[:, :, :first], middle, old[:, :, end:]], 2)


def in_order(cache: KeyValues) -> tuple[Tensor, Tensor]:
    """Keys and values by position: padding, which has none, behind the real tokens of its sequence."""
    if cache.key_mask is None:
        return cache.k, cache.v
    order = order_of(cache.key_mask)
    return ordered(cache.k, order), ordered(cache.v, order)


def keys_in_order(cache: KeyValues, first: int, end: int) -> Tensor:
    """Some keys by position."""
    if cache.key_mask is None:
        return cache.k[:, :, first:end]
    return ordered(cache.k, order_of(cache.key_mask)[:, first:end])


def order_of(real: Tensor) -> Tensor:
    """``(b, most)``: where the tokens ``real (b, m)`` of each sequence are, in order, then others."""
    return torch.argsort(~real, dim=1, stable=True)[:, : int(real.sum(1).max())]


def attended(q: Tensor, cache: KeyValues, choice: Choice) -> Tensor:
    """Attention to chosen blocks, for a few queries without a copy of all keys where padding comes first alone."""
    if cache.key_mask is None:
        return chosen.attend(q, cache.k, cache.v, choice).out
    m = cache.k.shape[2]
    first = (torch.arange(m, device=q.device) >= (m - cache.seen)[:, None]) == cache.key_mask
    if q.shape[2] > chosen.FEW or not bool(first.all()):
        return chosen.attend(q, *in_order(cache), choice).out
    outs = []
    for row, count in enumerate(cache.seen.tolist()):
        one, rows = slice(row, row + 1), replace(choice.rows, here=choice.rows.here[row : row + 1], m=count)
        keys, values = (x[one, :, m - count :] for x in (cache.k, cache.v))
        outs.append(chosen.attend(q[one], keys, values, Choice(choice.index[one], rows)).out)
    return torch.cat(outs)


@published(
    "routed",
    family="sparse",
    title="Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference",
    arxiv="2406.10774",
    year=2024,
    aliases=("routed_blocks",),
    claim=Claim(
        text="untrained, with 256 keys a query chosen by blocks of 8, a language model keeps its recall where a window "
        "of as many keys loses it",
        cells="routed.recalls",
        holds="routed.keeps_recall",
    ),
)
class RoutedBlocks(Routed):
    """Softmax attention to the blocks of keys that score best for each query, in a model as it is.

    The blocks are those of `regard.routers.blocks`: scored by their ``mean``, their ``bound`` (Quest's), the ``middle``
    of both, their ``first`` key, or, to judge a score by, as an ``oracle`` would choose them and at ``random``. The
    defaults are for models that were not trained for it: small blocks, and the first and the previous one always taken.

    Args:
        score: what a block is judged by. block: keys in a block. budget: blocks for each query, the forced among them.
        forced: some of own, previous, first. size: queries that choose together; one alone loses least.

    Raises:
        ValueError: an unknown score, and what `Router` refuses.

    Paper: the bound and its use without training: Tang et al., arXiv 2406.10774, with blocks of 16 keys.
    """

    def __init__(
        self,
        score: str = "middle",
        block: int = 8,
        budget: int = 32,
        forced: Sequence[Forced] = ("own", "previous", "first"),
        size: int = 1,
    ) -> None:
        if score not in SCORES:
            raise wrong("score", repr(score), f"one of {', '.join(SCORES)}{did_you_mean(score, SCORES)}")
        super().__init__(SCORES[score](block, budget, forced, size))

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("middle of mean and bound", cls(block=4, budget=4), heads=3, kv_heads=3),
            Example("the bound, grouped", cls("bound", block=3, budget=5), heads=4, kv_heads=2),
            Example("coarse blocks of random choice", cls("random", block=37, budget=4)),
            Example("rows of queries by the mean", cls("mean", block=8, budget=4, size=4), heads=4, kv_heads=2),
        ]
