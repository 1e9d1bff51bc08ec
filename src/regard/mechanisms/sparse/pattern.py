"""Softmax attention to what a pattern shows: any pattern of the algebra as a mechanism."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.layout import Layout
from regard.core.mechanism import Example, Mechanism, Traits, accumulate_dtype, masked_softmax, repeat_heads
from regard.core.state import State, count_new
from regard.kernels import dense, packing
from regard.kernels.block_sparse import plan as block_sparse
from regard.kernels.rows import ordered
from regard.mechanisms.cached import KeyValues
from regard.patterns import Causal, Pattern, parse_pattern

ROWS = 512
"""New tokens whose mask over the cache is formed at a time."""


@dataclass(frozen=True)
class Kept(State):
    """The tokens that a later one may still see.

    Args:
        cache: their keys and values. positions: ``(batch, m)`` int64, where they stood; −1 for a slot that holds none.
    """

    cache: KeyValues
    positions: Tensor


class Patterned(Mechanism):
    """The base of softmax attention to keys that positions alone decide.

        A_ij = exp(s_ij) / Σ_{j' ∈ P(i)} exp(s_ij') for j ∈ P(i), else 0,   s_ij = scale q_i · k_j

    A subclass says what P is in `pattern_for`. Causal, P is cut at i; a mask hides more of it. A padded or packed batch
    runs document by document, those of one length together, positions counting the real tokens of each.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h.
    Cost: ``4 cells max(d, e)`` FLOPs a head, the pattern in whole blocks; memory O(n + m). State: the keys and values
    that some later query may see.

    Args:
        scale: None for ``1 / sqrt(d)``.
    """

    traits = Traits(cross=False, masked=True, rows="one", sign="nonnegative", time="linear")

    def __init__(self, scale: float | None = None) -> None:
        super().__init__()
        self.scale = scale
        self.combined: dict[Pattern, Pattern] = {}

    def pattern_for(self, m: int, layout: Layout) -> Pattern:
        """P for ``m`` tokens, the layout's causality left out."""
        raise NotImplementedError

    def bias_for(self, m: int, layout: Layout) -> block_sparse.Bias | None:
        """What is added to the scores of pairs of positions, ``(heads or 1, …)``; None for nothing."""
        return None

    def seen(self, m: int, layout: Layout) -> Pattern:
        """P, cut at the query if the layout is causal; one object for each, so that its plan is found again."""
        pattern = self.pattern_for(m, layout)
        if not layout.causal:
            return pattern
        if pattern not in self.combined:
            self.combined[pattern] = Causal() & pattern
        return self.combined[pattern]

    def support(
        self, n: int, m: int, layout: Layout, device: torch.device | str = "cpu", rows: slice | None = None
    ) -> Tensor:
        first, last, _ = (rows or slice(0, n)).indices(n)
        if layout.regular:
            return self.pattern_for(m, layout).dense(n, m, device, rows)[None] & layout.allowed(n, m, device, rows)
        batch = next(len(x) for x in (layout.key_mask, layout.segments) if x is not None)
        heads = self.pattern_for(0, layout).heads
        seen = torch.zeros(batch, heads, last - first, m, dtype=torch.bool, device=device)
        for row, tokens in packing.documents(layout, batch, m, torch.device(device)):
            queries = tokens[tokens >= m - n] - (m - n)
            mine = slice(int((queries < first).sum()), int((queries < last).sum()))
            part = self.pattern_for(len(tokens), layout).dense(len(queries), len(tokens), device, mine)
            seen[row][:, (queries[mine] - first)[:, None], tokens] = part
        return seen & layout.allowed(n, m, device, rows)

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        return self.rows(q, k, layout, slice(0, q.shape[2]), **signals)

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        seen = self.support(q.shape[2], k.shape[2], layout, q.device, rows)
        scores = q[:, :, rows] @ repeat_heads(k, q.shape[1]).mT * self.scale_of(q)
        if (bias := self.bias_for(k.shape[2], layout)) is not None:
            i, j = layout.query_positions(q.shape[2], k.shape[2], q.device), layout.positions(k.shape[2], q.device)
            scores = scores + bias(i[:, rows, None].clamp(min=0), j[:, None]).transpose(0, 1)
        return masked_softmax(scores, seen)

    def scale_of(self, q: Tensor) -> float:
        return q.shape[-1] ** -0.5 if self.scale is None else self.scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)

        def run(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
            pattern, bias = self.seen(k.shape[2], layout), self.bias_for(k.shape[2], layout)
            if bias is None:
                return block_sparse.attend(q, k, v, pattern, self.scale, mask)
            return block_sparse.attend_unfused(q, k, v, pattern, self.scale, bias, mask)

        return run(q, k, v, layout.mask) if layout.regular else packing.per_sequence(run, q, k, v, layout)

    def start(self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Kept:
        """Nothing kept."""
        cache = KeyValues.empty(batch, device, dtype)
        return Kept(cache.seen, cache, torch.empty(batch, 0, dtype=torch.int64, device=device))

    def extend(
        self, q: Tensor, k: Tensor, v: Tensor, state: Any, key_mask: Tensor | None = None, **signals: Tensor
    ) -> tuple[Tensor, Kept]:
        """Attends to what is kept and to the new tokens, then forgets what no later token can see."""
        self.check(q, k, v, Layout(causal=True), signals)
        new = k.shape[2]
        here, seen = count_new(state, key_mask, new, k.shape[0])
        cache = state.cache.append(k, v, key_mask)
        fresh = here if key_mask is None else here.masked_fill(~key_mask, -1)
        positions = torch.cat([state.positions, fresh], 1)
        grown = Kept(seen, cache, positions)
        if state.positions.shape[1] == 0 and key_mask is None:
            out = self(q, k, v, Layout(causal=True))
        else:
            out = torch.cat(
                [self.continued(q[:, :, part], grown, here[:, part]) for part in dense.split(0, new, ROWS)], dim=2
            )
        return out, self.packed(grown)

    def continued(self, q: Tensor, state: Kept, here: Tensor) -> Tensor:
        """The rows of queries at positions ``here (batch, new)`` over the keys that they see."""
        m = int(state.seen.max())
        pattern = self.seen(m, Layout(causal=True))
        i, j = here[:, :, None], state.positions[:, None]
        mask = torch.stack([pattern.head(h).visible(i, j.clamp(min=0), m) for h in range(pattern.heads)], 1)
        mask = mask & (j >= 0)[:, None]
        columns = mask.any(2).any(1).any(0).nonzero()[:, 0]
        k, v = (x.index_select(2, columns) for x in (state.cache.k, state.cache.v))
        if (bias := self.bias_for(m, Layout(causal=True))) is not None:
            wide = accumulate_dtype(q.dtype)
            k, v = (repeat_heads(x, q.shape[1]).to(wide) for x in (k, v))
            scores = (q.to(wide) * self.scale_of(q)) @ k.mT
            scores = scores + bias(i, j[..., columns].clamp(min=0)).transpose(0, 1)
            return (masked_softmax(scores, mask[..., columns]) @ v).to(q.dtype)
        piece = dense.Piece(slice(0, q.shape[2]), slice(0, len(columns)), mask=mask[..., columns])
        return dense.over(q, k, v, [piece] if len(columns) else [], self.scale).out

    def packed(self, state: Kept) -> Kept:
        """The state without the tokens that no later one can see."""
        first = int(state.seen.min())
        pattern = self.seen(first, Layout(causal=True))
        useful = pattern.future(state.positions.clamp(min=0), first) & (state.positions >= 0)
        slots = int(useful.sum(1).max()) if useful.numel() else 0
        if slots == useful.shape[1]:
            return state
        order = torch.argsort(~useful, dim=1, stable=True)[:, :slots]
        positions = state.positions.gather(1, order).masked_fill(~useful.gather(1, order), -1)
        k, v = (ordered(x, order) for x in (state.cache.k, state.cache.v))
        return Kept(state.seen, KeyValues(state.seen, k, v), positions)

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        pattern = self.seen(shape.keys, layout)
        fused = self.bias_for(shape.keys, layout) is None
        width = 2 * max(shape.head_dim, shape.values) if fused else shape.head_dim + shape.values
        flops = 2 * shape.batch * shape.heads * width
        kept = self.seen(shape.keys, Layout(causal=True)).future(torch.arange(shape.keys), shape.keys)
        slot = shape.groups * (shape.head_dim + shape.values) * shape.itemsize + 8
        cells = block_sparse.cells(pattern, shape.n, shape.keys, self.bias_for(shape.keys, layout) is not None)
        return Cost(flops * cells, shape.io_bytes, shape.batch * int(kept.sum()) * slot)


@published(
    "pattern",
    family="sparse",
    title="Generating Long Sequences with Sparse Transformers",
    arxiv="1904.10509",
    year=2019,
    aliases=("static_sparse", "block_sparse", "sparse_transformer"),
    fidelity="hand values",
    claim=(
        Claim(
            "any composition of patterns equals masked dense attention",
            cells="patterns.composed",
            holds="patterns.exact",
        ),
        Claim(
            "two layers of the strided pattern reach every earlier token",
            cells="patterns.strided",
            holds="patterns.exact",
        ),
    ),
)
class PatternAttention(Patterned):
    """Softmax attention to the keys that any pattern shows, such as ``Window(64) | Sinks(4)``.

    Args:
        of: a pattern or its text, see `regard.patterns`. scale: None for ``1 / sqrt(d)``.

    Raises:
        ValueError: a text that is no pattern; in a call, tokens that the pattern's grid does not hold.

    Paper: Child et al., arXiv 1904.10509, whose patterns are ``Causal & (Window(s) | Strided(s))`` and
    ``Causal & (Blocks(s) | GlobalKeys(…))``.
    """

    def __init__(self, of: str | Pattern = "Window(64) | Sinks(4)", scale: float | None = None):
        super().__init__(scale)
        self.pattern = parse_pattern(of)
        forgets = not bool(self.seen(0, Layout(causal=True)).future(torch.zeros(1, dtype=torch.int64) + 1000, 1 << 40))
        self.traits = Traits(
            cross=False,
            masked=True,
            rows="one" if self.sighted() else "at most one",
            sign="nonnegative",
            time="linear",
            state="constant" if forgets else "linear",
        )

    def sighted(self) -> bool:
        """Whether every query surely sees a key: itself."""
        grid = self.pattern.grid
        m = torch.tensor(grid).prod().item() if grid else 1024
        places = torch.arange(int(m))
        try:
            return all(
                bool(self.pattern.head(h).visible(places, places, int(m)).all()) for h in range(self.pattern.heads)
            )
        except (IndexError, ValueError):
            return False

    def pattern_for(self, m: int, layout: Layout) -> Pattern:
        return self.pattern

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("window or sinks", cls("Window(7) | Sinks(2)"), heads=3, kv_heads=3),
            Example("blocks and some before, grouped", cls("Blocks(8) | Sinks(3)"), heads=4, kv_heads=2),
            Example("by head", cls("PerHead(Window(5), Blocks(16, 8) | Sinks(1))")),
        ]
