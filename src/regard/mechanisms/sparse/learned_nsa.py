"""Native sparse attention as its paper has it: a learned compression of overlapping blocks, keys of each branch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layer import LayerSpec
from regard.core.layout import Layout
from regard.core.mechanism import (
    Example,
    Mechanism,
    Signal,
    Traits,
    accumulate_dtype,
    check_sizes,
    masked_softmax,
    repeat_heads,
)
from regard.core.state import State, count_new
from regard.kernels import chosen, dense
from regard.kernels import packing as alone
from regard.kernels.tiled import split
from regard.mechanisms.cached import KeyValues
from regard.mechanisms.sparse.nsa import TILE, NativeSparse, near
from regard.mechanisms.sparse.routed import in_order
from regard.patterns.choice import Choice, Rows
from regard.projections.rotary import Rotary
from regard.routers.base import products

Parts = Callable[[Tensor, Tensor, Tensor], Tensor]


class Compression(nn.Module):
    """φ: one vector of each block of a few tokens, ``W₂ relu(W₁ (x + P) + b₁) + b₂`` of the tokens side by side.

    P, the position of a token in its block, W and b are learned, the same for all heads. Shapes: ``(b, g, m, size)`` ->
    ``(b, g, blocks, size)``, of the blocks that are whole; in the precision of sums.

    Args:
        size: of a token's vector. length: tokens in a block. stride: tokens between the starts of two. inner: channels
            between the two maps.
    """

    def __init__(self, size: int, length: int, stride: int, inner: int) -> None:
        super().__init__()
        self.length, self.stride = length, stride
        self.positions = nn.Parameter(torch.zeros(length, size))
        self.up, self.down = nn.Linear(length * size, inner), nn.Linear(inner, size)

    def count(self, m: int) -> int:
        """How many blocks of ``m`` tokens are whole."""
        return max((m - self.length) // self.stride + 1, 0)

    def forward(self, x: Tensor) -> Tensor:
        wide = accumulate_dtype(x.dtype)
        if not self.count(x.shape[2]):
            return x[:, :, :0].to(wide)
        blocks = x.to(wide).unfold(2, self.length, self.stride).mT + self.positions.to(wide)
        inner = F.relu(F.linear(blocks.flatten(3), self.up.weight.to(wide), self.up.bias.to(wide)))
        return F.linear(inner, self.down.weight.to(wide), self.down.bias.to(wide))

    @property
    def flops(self) -> int:
        """FLOPs of the products for one block."""
        return 2 * (self.up.weight.numel() + self.down.weight.numel())


@dataclass(frozen=True)
class Branches(State):
    """All that three branches know of the past.

    Args:
        cache: keys of the chosen blocks, turned, of the window, turned, and of the compression, side by side; and the
            values of each. k, v: the compressed blocks that every sequence has completed, keys turned; four axes of
            size zero before the first token.
    """

    cache: KeyValues
    k: Tensor
    v: Tensor


@published(
    "nsa",
    family="sparse",
    title="Native Sparse Attention: Hardware-Aligned and Natively Trainable Sparse Attention",
    arxiv="2502.11089",
    year=2025,
    aliases=("native_sparse_attention",),
    fidelity="third-party code",
    claim=Claim(
        text="its layer is faster than dense attention at 32k tokens on a CPU",
        cells="routed.learned_native",
        holds="routed.learned_is_faster",
    ),
)
class LearnedNativeSparse(NativeSparse):
    """Three attentions of one query, each with a gate and keys and values of its own.

        A_i = c_i C_i + s_i S_i + w_i W_i

    C is softmax attention to compressed blocks: ``length`` tokens from every ``stride``-th on become one key φ_k and
    one value φ_v, each by a learned network of two layers that adds positions inside of the block; the query sees those
    that are complete. S is softmax attention to the ``budget`` blocks of ``block`` tokens that C pays most, the own,
    the previous and the first always among them; W to the last ``window`` keys. What C pays a block j of tokens is

        p_j = Σ over the group's heads Σ_{m < block/stride} Σ_{n < length/stride} p[(block/stride)(j + 1) − 1 − m − n]

    of its weights p on compressed blocks, counted from 0: each of these as often as strides of it lie in the block. All
    heads of a group choose together. c, s and w are the signals ``compressed``, ``selected`` and ``near``; k and v are
    those of S, the signals ``compressed_key`` and ``compressed_value``, ``near_key`` and ``near_value`` those of C and
    W. Positions turn queries and keys (RoPE), a compressed key by that of its first token. As φ_v is no matrix the
    output of C is not linear in what it compresses.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)``, gates ``(b, h, n)`` -> ``(b, h, n, e)``; causal.
    Cost: ``4 n (m / stride + budget · block + window) max(d, e)`` FLOPs a head, those of the choice and of φ. State:
    three keys and values for each token, and the compressed ones.

    Args:
        head_dim, value_dim: d and e, the last as head_dim if None. block: keys in a block that is chosen. budget: such
            blocks for each query. window: nearest keys. length, stride: of compressed blocks. inner: channels inside of
            φ, None for ``length · d``. base: of the rotary positions, None for none.

    Raises:
        ValueError: a size below one, a budget below the three forced blocks, lengths that are no multiple of the
            stride, compressed blocks that are longer than chosen ones.

    Paper: Yuan et al., arXiv 2502.11089: blocks of 64, 16 of them, a window of 512, compressed blocks of 32 every 16.
    How φ is made, and where positions act, it does not say: φ is as in native-sparse-attention-pytorch, positions as in
    native-sparse-attention-triton.
    """

    signals = MappingProxyType(
        {
            **NativeSparse.signals,
            "compressed_key": Signal("the key that is compressed", heads="kv_heads", dim="key"),
            "compressed_value": Signal("the value that is compressed", heads="kv_heads", dim="value"),
            "near_key": Signal("the key in the window", heads="kv_heads", dim="key"),
            "near_value": Signal("the value in the window", heads="kv_heads", dim="value"),
        }
    )
    traits = Traits(bidirectional=False, cross=False, flops="at most", linear=False)
    layer = LayerSpec(rotary=False)

    def __init__(
        self,
        head_dim: int,
        value_dim: int | None = None,
        block: int = 64,
        budget: int = 16,
        window: int = 512,
        length: int = 32,
        stride: int = 16,
        inner: int | None = None,
        base: float | None = 10_000.0,
    ) -> None:
        super().__init__(block, budget, window)
        if min(length, stride) < 1 or length % stride or block % stride or length > block:
            wanted = f"a stride that divides both the length and the block of {block}, and a length up to the block"
            raise wrong("length, stride", f"{length}, {stride}", wanted)
        self.head_dim, self.value_dim = head_dim, head_dim if value_dim is None else value_dim
        self.length, self.stride, self.base = length, stride, base
        inner = length * head_dim if inner is None else inner
        self.keys, self.values = (Compression(size, length, stride, inner) for size in (head_dim, self.value_dim))

    weights = Mechanism.weights
    rows = Mechanism.rows

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        check_sizes(q, q.shape[1], self.head_dim)
        if v is not None and v.shape[3] != self.value_dim:
            raise wrong("v", f"value_dim {v.shape[3]}", str(self.value_dim))
        for of, like in (("key", k), ("value", v)):
            for name in (f"compressed_{of}", f"near_{of}"):
                if like is not None and signals[name].shape != like.shape:
                    raise wrong(name, f"shape {tuple(signals[name].shape)}", f"that of the {of}s, {tuple(like.shape)}")

    def turned(self, x: Tensor, positions: Tensor) -> Tensor:
        """``x (b, h, t, d)`` by ``positions (b or 1, t)``, in the precision of sums."""
        wide, even = x.to(accumulate_dtype(x.dtype)), self.head_dim - self.head_dim % 2
        return wide if self.base is None or not even else Rotary(even, self.base)(wide, positions)

    def compressed(self, k: Tensor, v: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
        """The keys, turned, and values of all whole blocks of tokens, of which the first is the ``first``-th block."""
        keys = self.keys(k)
        number = torch.arange(first, first + keys.shape[2], device=k.device)
        return self.turned(keys, number[None] * self.stride), self.values(v)

    def complete(self, rows: Rows, count: int) -> Tensor:
        """``(batch or 1, 1, n, count)`` bool: the compressed blocks that a query sees."""
        ends = torch.arange(count, device=rows.here.device) * self.stride + self.length - 1
        return ends <= rows.here[:, None, :, None]

    def past(self, rows: Rows, count: int) -> int:
        """How many of ``count`` compressed blocks any of the queries sees."""
        return min(max((int(rows.here.max()) + 1 - self.length) // self.stride + 1, 0), count) if rows.n else 0

    def define(
        self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(causal=True), **signals: Tensor
    ) -> Tensor:
        self.check(q, k, v, layout, signals)

        def run(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            (n, d), m, scale = q.shape[2:], keys.shape[2], q.shape[3] ** -0.5
            heads, places = q.shape[1], torch.arange(m, device=q.device)
            rows = self.router.rows(places.new_tensor(range(m - n, m))[None], m, True)
            q = self.turned(q, rows.here)
            (k, near_k, packed_k), (v, near_v, packed_v) = keys.split(d, 3), values.split(self.value_dim, 3)
            k, near_k = self.turned(k, places[None]), self.turned(near_k, places[None])
            short_k, short_v = self.compressed(packed_k, packed_v)
            paid = masked_softmax(q @ repeat_heads(short_k, heads).mT * scale, self.complete(rows, short_k.shape[2]))
            seen = self.router.choose(self.shares(paid, k.shape[1], rows), rows).spread()
            window = near(rows.here, places, self.window)
            outs = [paid @ repeat_heads(short_v, heads)]
            for key, value, shown in ((k, v, seen), (near_k, near_v, window)):
                scores = q @ repeat_heads(key, heads).mT * scale
                outs.append(masked_softmax(scores, shown) @ repeat_heads(value, heads))
            return torch.cat(outs, 3)

        return self.called(run, q, k, v, layout, signals)

    def shares(self, paid: Tensor, groups: int, rows: Rows) -> Tensor:
        """What each block of tokens is paid, ``(b, h, n, blocks)``, by the sums of the paper."""
        count, each = paid.shape[3], self.router.block // self.stride
        shared = paid.unflatten(1, (groups, -1)).sum(2)
        found = paid.new_zeros(*shared.shape[:3], rows.blocks)
        for j in range(rows.blocks):
            for m in range(each):
                for n in range(self.length // self.stride):
                    if 0 <= (i := each * (j + 1) - 1 - m - n) < count:
                        found[..., j] += shared[..., i].detach()
        return repeat_heads(found, paid.shape[1])

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(causal=True), **signals: Tensor
    ) -> Tensor:
        def outs(q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
            n, m = q.shape[2], keys[0].shape[2]
            here, places = (torch.arange(start, m, device=q.device)[None] for start in (m - n, 0))
            turned = [self.turned(x, places).to(x.dtype) for x in keys[:2]]
            short = self.compressed(keys[2], values[2])
            return self.attended(q, turned, values, short, self.router.rows(here, m, True))

        self.check(q, k, v, layout, signals)
        if layout.regular:
            return self.gated(outs(q, *self.each_of(k, v, signals)), signals)

        def run(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return torch.cat(outs(q, keys.split(self.head_dim, 3), values.split(self.value_dim, 3)), 3)

        return self.called(run, q, k, v, layout, signals)

    def called(self, run: Parts, q: Tensor, k: Tensor, v: Tensor, layout: Layout, signals: dict[str, Tensor]) -> Tensor:
        """``run`` of the queries and of all keys and all values side by side, its branches by their gates."""
        keys, values = self.joined(k, v, signals)
        out = run(q, keys, values) if layout.regular else alone.per_sequence(run, q, keys, values, layout)
        return self.gated(out.split(self.value_dim, 3), signals)

    def each_of(self, k: Tensor, v: Tensor, signals: dict[str, Tensor]) -> list[list[Tensor]]:
        """Keys, and values, of the chosen blocks, the window and the compression."""
        return [[x, signals[f"near_{of}"], signals[f"compressed_{of}"]] for x, of in ((k, "key"), (v, "value"))]

    def joined(self, k: Tensor, v: Tensor, signals: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The same side by side."""
        keys, values = self.each_of(k, v, signals)
        return torch.cat(keys, 3), torch.cat(values, 3)

    def gated(self, outs: Sequence[Tensor], signals: dict[str, Tensor]) -> Tensor:
        """The outputs of the three branches by their gates."""
        return self.mixed(lambda of: outs[list(NativeSparse.signals).index(of)], signals)

    def prepared(self, keys: Tensor, places: Tensor) -> Tensor:
        """All keys side by side, those of the first two branches turned."""
        k, near_k, packed = keys.split(self.head_dim, 3)
        both = (self.turned(x, places).to(keys.dtype) for x in (k, near_k))
        return torch.cat([*both, packed], 3)

    def attended(
        self, q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], short: tuple[Tensor, Tensor], rows: Rows
    ) -> list[Tensor]:
        """``(b, h, n, e)`` of each branch: the compressed blocks, the chosen ones, the window."""
        exact = self.turned(q, rows.here)
        q, (short_k, short_v) = exact.to(q.dtype), short
        tiles = [(some, self.past(rows.at(some), short_k.shape[2])) for some in split(0, rows.n, TILE)]
        parts = [
            dense.Piece(some, slice(0, count), mask=self.complete(rows.at(some), count), alone=True)
            for some, count in tiles
            if count
        ]
        return [
            dense.over(q, short_k.to(q.dtype), short_v.to(q.dtype), parts).out,
            self.selected(
                q, keys[0], values[0], rows, lambda some: self.chosen(exact[:, :, some], short_k, rows.at(some))
            ),
            self.windowed(q, keys[1], values[1], rows),
        ]

    @torch.no_grad()
    def chosen(self, q: Tensor, short: Tensor, rows: Rows) -> Choice:
        """The blocks of each query, by the compressed keys ``short (b, g, count, d)``."""
        found = []
        for some in split(0, rows.n, TILE):
            mine = rows.at(some)
            seen = short[:, :, : self.past(mine, short.shape[2])]
            found.append(self.router.choose(self.paid(q[:, :, some], seen, mine), mine).index)
        if not found:
            return self.router.choose(q[..., :0], rows)
        return Choice(repeat_heads(torch.cat(found, 2), q.shape[1]), rows)

    def paid(self, q: Tensor, short: Tensor, rows: Rows) -> Tensor:
        """`shares` of some queries for each group, by running sums: over compressed blocks, then over their strides."""
        count, each, over = short.shape[2], self.router.block // self.stride, self.length // self.stride
        if not rows.blocks:
            return q[:, : short.shape[1], :, :0]
        weights = masked_softmax(products(q, short) * q.shape[3] ** -0.5, self.complete(rows, count))
        shared = weights.unflatten(1, (short.shape[1], -1)).sum(2)
        room = max(rows.blocks * each - count, 0)
        strides = F.pad(shared, (over - 1, room))[..., : rows.blocks * each + over - 1].unfold(3, over, 1).sum(-1)
        return strides.unflatten(3, (rows.blocks, each)).sum(-1)

    def start(self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
        """Nothing seen."""
        cache = KeyValues.empty(batch, device, dtype)
        nothing = cache.k.to(accumulate_dtype(dtype))
        return Branches(cache.seen, cache, nothing, nothing)

    def extend(
        self, q: Tensor, k: Tensor, v: Tensor, state: Any, key_mask: Tensor | None = None, **signals: Tensor
    ) -> tuple[Tensor, Any]:
        """Compresses the blocks that the new tokens complete, and attends to them, to the chosen and the last ones."""
        self.check(q, k, v, Layout(causal=True), signals)
        here, seen = count_new(state, key_mask, k.shape[2], k.shape[0])
        keys, values = self.joined(k, v, signals)
        cache = state.cache.append(self.prepared(keys, here), values, key_mask)
        keys, values = in_order(cache)
        short = self.continued(state, keys, values)
        rows = self.router.rows(here[:1] if cache.key_mask is None else here, keys.shape[2], True)
        kept = [x[:, :, : self.keys.count(int(seen.min()))] for x in short]
        apart = keys.split(self.head_dim, 3), values.split(self.value_dim, 3)
        return self.gated(self.attended(q, *apart, short, rows), signals), Branches(seen, cache, *kept)

    def continued(self, state: Branches, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The compressed blocks of all tokens, those that the state has left as they are."""
        first = state.k.shape[2]
        rest = slice(first * self.stride, None)
        packed = keys[:, :, rest, 2 * self.head_dim :], values[:, :, rest, 2 * self.value_dim :]
        new = self.compressed(*packed, first)
        return (torch.cat([state.k, new[0]], 2), torch.cat([state.v, new[1]], 2)) if first else new

    def cost(self, shape: Shape, layout: Layout = Layout(causal=True)) -> Cost:
        router, (n, m), wide = self.router, (shape.n, shape.keys), max(shape.head_dim, shape.values)
        count, groups = self.keys.count(m), shape.batch * shape.groups
        early = self.early(n, m)
        cells = chosen.cells(n - early, m, router.block, 1, min(router.budget, -(-m // router.block)))
        cells += early * (m - n + early)
        flops = 2 * (n - early) * count * shape.head_dim + 4 * wide * (
            n * count + cells + n * min(m, self.window + min(n, TILE))
        )
        numbers = 3 * m * shape.itemsize + count * max(shape.itemsize, 4)
        learned = groups * count * (self.keys.flops + self.values.flops)
        moved = shape.io_bytes + 2 * groups * m * (shape.head_dim + shape.values) * shape.itemsize
        state = groups * numbers * (shape.head_dim + shape.values)
        return Cost(shape.batch * shape.heads * flops + learned, moved, state)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("blocks of 4, grouped", cls(5, 7, 4, 4, 6, 4, 2), heads=4, kv_heads=2),
            Example("blocks of 32, no positions", cls(5, 7, 32, 3, 17, 12, 4, 9, None), heads=3, kv_heads=3),
        ]
