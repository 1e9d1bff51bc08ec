"""Multi-token attention: scores of neighbouring queries and keys, and weights of several heads, act together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layer import Gate, Norm
from regard.core.layout import Layout
from regard.core.mechanism import Example, LayerSpec, Mechanism, Traits, accumulate_dtype, masked_softmax, repeat_heads
from regard.core.state import State
from regard.kernels import packing, tiled
from regard.kernels.rows import ordered
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
class Mixed:
    """``s_h = Σ_g u_hg c_g`` of the convolved scores c of the heads of a group.

    Args:
        score: c. before: u, ``(groups, size, size)``.
    """

    score: Convolved
    before: Tensor

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return *self.score.parameters, self.before

    @property
    def halo(self) -> tuple[int, int, int]:
        return self.score.halo

    def __call__(self, q: Tensor, k: Tensor, span: Span) -> Tensor:
        return mixed(self.score(q, k, span), self.before)


@dataclass(frozen=True)
class Spread:
    """The weights themselves: ``A_h = Σ_g w_hg Σ_ab φ_gab P_g,i−a,j+b`` of ``P = exp(s − lse)``, zero where hidden.

    Args:
        score: s. kernel: φ, ``(h, query_taps, key_taps)``. mix: w, None for none. keys: ``(b, m)``, which keys are
            real, None for all. shift: m − n. The lse of a row is the last coordinate of its query.
    """

    score: Convolved | Mixed
    kernel: Tensor
    mix: Tensor | None
    keys: Tensor | None
    shift: int

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        mix = () if self.mix is None else (self.mix,)
        return *self.score.parameters, self.kernel, *mix

    @property
    def own(self) -> tuple[int, int]:
        """Rows above a tile and columns on either side that φ reads."""
        return self.kernel.shape[1] - 1, self.kernel.shape[2] // 2

    @property
    def halo(self) -> tuple[int, int, int]:
        (above, side), (first, left, right) = self.own, self.score.halo
        return above + first, side + left, side + right

    def __call__(self, q: Tensor, k: Tensor, span: Span) -> Tensor:
        above, side = self.own
        first, start = span.rows.start - above, span.cols.start - side
        rows, cols = slice(first, span.rows.stop), slice(start, span.cols.stop + side)
        scores, lse = self.score(q[..., :-1], k, Span(rows, cols)), q[:, :, self.score.halo[0] :, -1:]
        maps = torch.exp((scores - lse).masked_fill(~self.seen(rows, cols, q.device), -torch.inf))
        return mixed(F.conv2d(maps, self.kernel.to(q.dtype)[:, None], groups=len(self.kernel)), self.mix)

    def seen(self, rows: slice, cols: slice, device: torch.device) -> Tensor:
        """``(b or 1, 1, rows, cols)`` bool: pairs of tokens that there are, the key no later than the query."""
        i, j = torch.arange(rows.start, rows.stop, device=device), torch.arange(cols.start, cols.stop, device=device)
        pairs = ((j <= i[:, None] + self.shift) & (i[:, None] >= 0) & (j >= 0))[None, None]
        if self.keys is None:
            return pairs
        m = self.keys.shape[1]
        real = F.pad(self.keys, (max(-cols.start, 0), max(cols.stop - m, 0)))[:, max(cols.start, 0) :]
        return pairs & real[:, None, None, : cols.stop - cols.start]


def given(scores: Tensor, span: Span) -> Tensor:
    """The normaliser of scores that are weights already."""
    return scores


def mixed(maps: Tensor, mix: Tensor | None) -> Tensor:
    """``(b, h, n, m)`` with the heads of each group weighed by ``mix (groups, size, size)``."""
    if mix is None:
        return maps
    groups = maps.unflatten(1, (len(mix), -1)).flatten(3)
    return (mix.to(maps.dtype) @ groups).view_as(maps)


@dataclass(frozen=True)
class ConvCache(State):
    """Every key and value so far, and the last queries.

    Args:
        cache: the keys and values. tail: ``(b, h, tail, d)``, zeros before the first query.
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
    """Causal softmax attention convolved over queries and keys, before and after the softmax, whose heads are mixed.

        P_h = softmax_j(Σ_g u_hg Σ_ab θ_gab s_g,i−a,j+b),   s_ij = q_i · k_j / √d where i sees j, else 0
        A_h = Σ_g w_hg Σ_ab φ_gab P_g,i−a,j+b  where i sees j, else 0;   g over the heads of h's group

    θ is ``kernel``, over the last ``query_taps`` queries and ``key_taps`` keys around j, φ ``after``; u is ``before``,
    w is ``mix``. All start as the identity. Neighbours are counted in real tokens of one document.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; causal.
    Cost: for each score of the tiles 2 (d + query_taps key_taps + e group) FLOPs; memory O(n + m). State: all keys and
    values, and query_taps − 1 queries. With φ the tiles are made twice, wider by its taps, and the state keeps as many
    queries more.

    Args:
        heads: of q. query_taps, key_taps: of the kernel, key_taps odd. group: how many heads are mixed after the
            softmax, 1 for none; None for 2 if the heads are even, else 1. after_query_taps, after_key_taps: of φ, odd
            the latter, 0 for none. group_before: how many heads are mixed before the softmax, 1 for none.

    Raises:
        ValueError: a size below one, even key taps, a group that does not divide the heads, or q of other heads.

    Paper: Golovneva et al., arXiv 2504.00927. Its models convolve by 6 × 11 before and after the softmax and mix all
    heads both times. A head's output is normed and gated by one number made from it.
    """

    traits = Traits(bidirectional=False, cross=False, suffix=False)
    layer = LayerSpec(norm=Norm(eps=1e-5), gate=Gate("sigmoid", of="output", bias=True))

    def __init__(
        self,
        heads: int = 4,
        query_taps: int = 6,
        key_taps: int = 11,
        group: int | None = None,
        after_query_taps: int = 0,
        after_key_taps: int = 0,
        group_before: int = 1,
    ) -> None:
        super().__init__()
        group = 1 + (heads % 2 == 0) if group is None else group
        if heads < 1:
            raise wrong("heads", str(heads), "at least 1")
        self.kernel = identity(heads, query_taps, key_taps, "query_taps, key_taps")
        self.after = None
        if after_query_taps or after_key_taps:
            self.after = identity(heads, after_query_taps, after_key_taps, "after_query_taps, after_key_taps")
        for name, size in (("group", group), ("group_before", group_before)):
            if size < 1 or heads % size:
                raise wrong(name, str(size), f"a divisor of the {heads} heads")
        self.group = group
        self.mix = nn.Parameter(torch.eye(group).repeat(heads // group, 1, 1)) if group > 1 else None
        self.before = None
        if group_before > 1:
            self.before = nn.Parameter(torch.eye(group_before).repeat(heads // group_before, 1, 1))
        if group == 1 and self.after is None:
            self.traits = replace(self.traits, sign="nonnegative")

    @property
    def tail(self) -> int:
        """How many queries before the new ones are read."""
        return self.kernel.shape[1] - 1 + (0 if self.after is None else self.after.shape[1] - 1)

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
        start, stop, _ = rows.indices(q.shape[2])
        first = max(start - self.tail, 0)
        seen = CAUSAL.allowed(q.shape[2], k.shape[2], q.device)[:, :, first:stop]
        scores = q[:, :, first:stop] @ repeat_heads(k, q.shape[1]).mT * q.shape[-1] ** -0.5
        if scores.numel():
            scores = mixed(convolved(scores.masked_fill(~seen, 0), self.kernel), self.before)
        maps = masked_softmax(scores, seen)
        if self.after is not None and maps.numel():
            maps = convolved(maps, self.after).masked_fill(~seen, 0)
        return mixed(maps[:, :, start - first :], self.mix)

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
        shift = k.shape[2] - q.shape[2]
        score = Convolved(self.kernel, q.shape[-1] ** -0.5, shift)
        score = score if self.before is None else Mixed(score, self.before)
        if self.after is not None:
            lse = tiled.attend_lse(q.to(wide), k.to(wide), v[..., :0].to(wide), layout, score).lse
            queries = torch.cat([q.to(wide), lse.masked_fill(lse == -torch.inf, 0)[..., None]], -1)
            spread = Spread(score, self.after, self.mix, keys, shift)
            return tiled.attend(queries, k, v, layout, spread, cast(Any, given)).to(q.dtype)
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
        cache, above = state.cache.append(k, v, key_mask), self.tail
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
        (heads, taps, width), mixes = self.kernel.shape, 0 if self.before is None else self.before.shape[1]
        inner, d, values = taps * width + mixes, shape.head_dim, shape.values
        above, side = (0, 0) if self.after is None else (self.after.shape[1] - 1, self.after.shape[2] // 2)
        each = self.tiles(shape, 0, 0, d, inner, values * (self.group if self.after is None else 0))
        if self.after is not None:
            outer = self.after[0].numel() + (0 if self.mix is None else self.group)
            each += self.tiles(shape, above, side, d, inner, outer + values)
        tokens = shape.groups * shape.keys * (d + values) + heads * self.tail * d
        return Cost(2 * shape.batch * heads * each, shape.io_bytes, shape.batch * tokens * shape.itemsize)

    def tiles(self, shape: Shape, above: int, side: int, product: int, convolved: int, weighed: int) -> int:
        """Multiplications of a head's tiles, so much wider: for each product, convolved score and weight in them."""
        (_, taps, width), columns = self.kernel.shape, tiled.width(shape.batch * shape.heads)
        count = 0
        for rows in tiled.split(0, shape.n, tiled.ROWS):
            height, seen = rows.stop - rows.start, tiled.visible(rows, shape.n, shape.keys, True)
            tiles = -(-seen // columns)
            count += (height + above + taps - 1) * (seen + tiles * (2 * side + width - 1)) * product
            count += (height + above) * (seen + tiles * 2 * side) * convolved + height * seen * weighed
        return count

    @classmethod
    def examples(cls) -> Sequence[Example]:
        torch.manual_seed(0)
        made = [Example("6 × 11, pairs", cls(4, 6, 11, 2), 4, 2), Example("3 × 5, no mixing", cls(3, 3, 5, 1), 3, 3)]
        made.append(Example("keys alone, all mixed", cls(3, 1, 3, 3), 3, 3))
        made.append(Example("before and after the softmax", cls(4, 2, 3, 2, 3, 5, group_before=4), 4, 2))
        made.append(Example("after it", cls(2, 1, 1, 1, 2, 3), 2, 2))
        for example in made:
            for parameter in example.mechanism.parameters():
                nn.init.normal_(parameter, std=0.3)
        return made


def identity(heads: int, queries: int, keys: int, names: str) -> nn.Parameter:
    """``(heads, queries, keys)`` with which a convolution leaves everything as it is."""
    if min(queries, keys) < 1 or keys % 2 == 0:
        raise wrong(names, f"{queries}, {keys}", "at least 1 each, the latter odd")
    kernel = torch.zeros(heads, queries, keys)
    kernel[:, -1, keys // 2] = 1
    return nn.Parameter(kernel)


def convolved(maps: Tensor, kernel: Tensor) -> Tensor:
    """``Σ_ab θ_hab x_h,i−a,j+b`` of ``maps (b, h, n, m)``, zeros beyond their edges."""
    side = kernel.shape[2] // 2
    padded = F.pad(maps, (side, side, kernel.shape[1] - 1, 0))
    return F.conv2d(padded, kernel.to(maps.dtype)[:, None], groups=len(kernel))


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
