"""Multi-token attention: scores of neighbouring queries and keys, and weights of several heads, act together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, LayerSpec, Mechanism, Traits, accumulate_dtype, masked_softmax, repeat_heads
from regard.core.state import State
from regard.kernels import packing, tiled
from regard.kernels.tiled import Span
from regard.mechanisms.cached import KeyValues

CAUSAL = Layout(causal=True)


@dataclass(frozen=True)
class Convolved:
    """``c_ij = Σ_ab θ_ab s_{i−a, j+b}`` of ``s = scale q·k``, zero where j is later than i.

    Args:
        kernel: θ, ``(h, query_taps, key_taps)``, its last row at a = 0, its middle column at b = 0. shift: m − n.
    """

    kernel: Tensor
    scale: float
    shift: int

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return (self.kernel,)

    @property
    def halo(self) -> tuple[int, int, int]:
        side = self.kernel.shape[2] // 2
        return self.kernel.shape[1] - 1, side, side

    def __call__(self, q: Tensor, k: Tensor, span: Span) -> Tensor:
        above, left, right = self.halo
        first, last = span.rows.start + self.shift - above, span.cols.stop + right
        scores = q @ k.mT * self.scale
        if last > first + 1:
            rows = torch.arange(first, span.rows.stop + self.shift, device=q.device)
            cols = torch.arange(span.cols.start - left, last, device=q.device)
            scores = scores.masked_fill(cols > rows[:, None], 0)
        return F.conv2d(scores, self.kernel.to(q.dtype)[:, None], groups=self.kernel.shape[0])


@dataclass(frozen=True)
class ConvCache(State):
    """Every key and value so far, and the last queries.

    Args:
        cache: the keys and values. tail: ``(b, h, query_taps − 1, d)``, zeros before the first query.
    """

    cache: KeyValues
    tail: Tensor


@published(
    "multi_token",
    family="scored",
    row=158,
    title="Multi-Token Attention",
    arxiv="2504.00927",
    year=2025,
    aliases=("mta", "multi_token_attention"),
    missing="the second convolution, after the softmax; the gate made from a head's own output",
    fidelity="authors' code",
    claim=(
        Claim("untrained it is softmax attention", cells="multi_token.untrained", holds="common.within(most=1e-6)"),
        Claim("nothing leaks from later tokens", cells="multi_token.edited", holds="multi_token.nothing_leaks"),
        Claim(
            ("finds the block that holds the letters of a question where softmax attention of the same size does not"),
            cells="multi_token.toy_task",
            holds="multi_token.finds_the_block",
        ),
    ),
)
class MultiToken(Mechanism):
    """Causal softmax attention whose scores are convolved over queries and keys, and whose heads are mixed in groups.

        P_h = softmax_j(Σ_ab θ_hab s_h,i−a,j+b),   s_ij = q_i · k_j / √d where i sees j, else 0
        A_h = Σ_g w_hg P_g                          over the heads g of h's group

    θ is ``kernel``, over the last ``query_taps`` queries and ``key_taps`` keys around j; w is ``mix``. Both start as
    the identity. Neighbours are counted in real tokens of one document.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; causal.
    Cost: for each score of the tiles 2 (d + query_taps key_taps + e group) FLOPs; memory O(n + m). State: all keys and
    values, and query_taps − 1 queries.

    Args:
        heads: of q. query_taps, key_taps: of the kernel, key_taps odd. group: how many heads are mixed, 1 for none;
            None for 2 if the heads are even, else 1.

    Raises:
        ValueError: a size below one, an even key_taps, a group that does not divide the heads, or q of other heads.

    Paper: Golovneva et al., arXiv 2504.00927, where a head's normed output is gated by one number made from it; here a
    gate for each element is made from the hidden state. Its second convolution, after the softmax, is left out.
    """

    traits = Traits(bidirectional=False, cross=False, suffix=False)
    layer = LayerSpec(norm=True, gate="sigmoid")

    def __init__(self, heads: int = 4, query_taps: int = 6, key_taps: int = 11, group: int | None = None) -> None:
        super().__init__()
        group = 1 + (heads % 2 == 0) if group is None else group
        if min(heads, query_taps, key_taps) < 1 or key_taps % 2 == 0:
            given = f"{heads}, {query_taps}, {key_taps}"
            raise wrong("heads, query_taps, key_taps", given, "at least 1 each, key_taps odd")
        if group < 1 or heads % group:
            raise wrong("group", str(group), f"a divisor of the {heads} heads")
        kernel = torch.zeros(heads, query_taps, key_taps)
        kernel[:, -1, key_taps // 2] = 1
        self.kernel, self.group = nn.Parameter(kernel), group
        self.mix = nn.Parameter(torch.eye(group).repeat(heads // group, 1, 1)) if group > 1 else None
        if group == 1:
            self.traits = replace(self.traits, sign="nonnegative")

    def weights(self, q: Tensor, k: Tensor, layout: Layout = CAUSAL, **signals: Tensor) -> Tensor:
        return self.rows(q, k, layout, slice(0, q.shape[2]), **signals)

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        if layout.plain:
            return self.defined(q, k, rows)
        columns = torch.eye(k.shape[2], dtype=q.dtype, device=q.device).expand(*k.shape[:2], -1, -1)

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.defined(q, k, slice(0, q.shape[2])) @ repeat_heads(v, q.shape[1])

        return packing.per_sequence(run, q, k, columns, layout)[:, :, rows]

    def defined(self, q: Tensor, k: Tensor, rows: slice) -> Tensor:
        """The equation for one whole sequence: ``(b, h, rows, m)``."""
        (start, stop, _), (taps, width) = rows.indices(q.shape[2]), self.kernel.shape[1:]
        first = max(start - taps + 1, 0)
        allowed = CAUSAL.allowed(q.shape[2], k.shape[2], q.device)
        scores = q[:, :, first:stop] @ repeat_heads(k, q.shape[1]).mT * q.shape[-1] ** -0.5
        if scores.numel() == 0:
            return scores[:, :, start - first :]
        scores = scores.masked_fill(~allowed[:, :, first:stop], 0)
        scores = F.pad(scores, (width // 2, width // 2, taps - 1 - (start - first), 0))
        scores = F.conv2d(scores, self.kernel.to(q.dtype)[:, None], groups=q.shape[1])
        maps = masked_softmax(scores, allowed[:, :, start:stop])
        if self.mix is None:
            return maps
        groups = maps.unflatten(1, (-1, self.group))
        return torch.einsum("xhg,bxgij->bxhij", self.mix.to(q.dtype), groups).flatten(1, 2)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = CAUSAL, **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)
        if layout.segments is not None:
            return packing.per_sequence(self.attended, q, k, v, layout)
        keys, queries = layout.key_mask, layout.real_queries(q.shape[2])
        if keys is None or queries is None:
            return self.attended(q, k, v)
        x = close(q, k, v, keys, queries)
        return ordered(self.attended(x.q, x.k, x.v, x.keys), x.rank)

    def attended(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None = None) -> Tensor:
        """A v of sequences with no padding between their tokens; ``key_mask (b, m)`` marks that before them."""
        heads, wide, layout = q.shape[1], accumulate_dtype(q.dtype), Layout(causal=True, key_mask=keys)
        score = Convolved(self.kernel, q.shape[-1] ** -0.5, k.shape[2] - q.shape[2])
        if self.mix is None:
            return tiled.attend(q, k, v, layout, score)
        groups = repeat_heads(v, heads).unflatten(1, (-1, self.group)).transpose(2, 3).flatten(3)  # (b, x, m, h e)
        found = tiled.attend(q.to(wide), k.to(wide), repeat_heads(groups, heads).to(wide), layout, score)
        found = found.unflatten(1, (-1, self.group)).unflatten(4, (self.group, -1))  # (b, x, g, n, h, e)
        mixed = (found * self.mix.to(wide).mT[:, :, None, :, None]).sum(2)
        return mixed.transpose(2, 3).flatten(1, 2).to(q.dtype)

    def start(self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> ConvCache:
        """Nothing seen."""
        cache = KeyValues.empty(batch, device, dtype)
        return ConvCache(cache.seen, cache, cache.k)

    def extend(
        self, q: Tensor, k: Tensor, v: Tensor, state: Any, key_mask: Tensor | None = None, **signals: Tensor
    ) -> tuple[Tensor, ConvCache]:
        """Attends with the last queries beside the new ones: ``(out, state)``."""
        self.check(q, k, v, CAUSAL, signals)
        cache, above = state.cache.append(k, v, key_mask), self.kernel.shape[1] - 1
        tail = state.tail if state.tail.shape[1] else q.new_zeros(*q.shape[:2], above, q.shape[3])
        joined = torch.cat([tail, q], 2)
        if cache.key_mask is None:
            out = self.attended(joined, cache.k, cache.v)
        else:
            new = joined.new_ones(q.shape[0], q.shape[2], dtype=torch.bool) if key_mask is None else key_mask
            x = close(joined, cache.k, cache.v, cache.key_mask, F.pad(new, (above, 0), value=True))
            out, joined = ordered(self.attended(x.q, x.k, x.v, x.keys), x.rank), x.q
        return out[:, :, above:], ConvCache(cache.seen, cache, joined[:, :, q.shape[2] :])

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        if q.shape[1] != self.kernel.shape[0]:
            raise wrong("q", f"{q.shape[1]} heads", f"the {self.kernel.shape[0]} heads of the kernel")

    def cost(self, shape: Shape, layout: Layout = CAUSAL) -> Cost:
        (heads, taps, width), n, m = self.kernel.shape, shape.n, shape.keys
        columns = tiled.width(shape.batch * heads)
        products = convolved = 0
        for rows in tiled.split(0, n, tiled.ROWS):
            height, seen = rows.stop - rows.start, tiled.visible(rows, n, m, True)
            products += (height + taps - 1) * (seen + -(-seen // columns) * (width - 1))
            convolved += height * seen
        each = products * shape.head_dim + convolved * (taps * width + shape.values * self.group)
        tokens = shape.groups * m * (shape.head_dim + shape.values) + heads * (taps - 1) * shape.head_dim
        return Cost(2 * shape.batch * heads * each, shape.io_bytes, shape.batch * tokens * shape.itemsize)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        torch.manual_seed(0)
        made = [Example("6 × 11, pairs", cls(4, 6, 11, 2), 4, 2), Example("3 × 5, no mixing", cls(3, 3, 5, 1), 3, 3)]
        made.append(Example("keys alone, all mixed", cls(3, 1, 3, 3), 3, 3))
        for example in made:
            for parameter in example.mechanism.parameters():
                nn.init.normal_(parameter, std=0.3)
        return made


@dataclass(frozen=True)
class Close:
    """Sequences whose real tokens stand beside each other at the end, padding before them as zeros.

    Args:
        keys: ``(b, m)``, which are real. rank: ``(b, n)``, where each of the given queries is now.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    keys: Tensor
    rank: Tensor


def close(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, queries: Tensor) -> Close:
    """The tokens without padding between them, given which ``key_mask (b, m)`` and ``queries (b, n)`` are real."""
    order, across = (torch.argsort(real.long(), dim=1, stable=True) for real in (queries, keys))
    q, k = (x.masked_fill(~real[:, None, :, None], 0) for x, real in ((q, queries), (k, keys)))
    moved = (ordered(q, order), ordered(k, across), ordered(v, across))
    return Close(*moved, keys.gather(1, across), order.argsort(1))


def ordered(x: Tensor, order: Tensor) -> Tensor:
    """The tokens of ``(b, heads, tokens, …)`` in the ``order (b, tokens)``."""
    return x.take_along_dim(order[:, None, :, None], 2)
