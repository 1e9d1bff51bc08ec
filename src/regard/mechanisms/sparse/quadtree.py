"""Attention from coarse to fine: the children of those cells alone that got most, level by level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout, plane_of
from regard.core.mechanism import Example, accumulate_dtype, masked_softmax, repeat_heads
from regard.kernels.rows import taken
from regard.mechanisms.sparse.planar import Planar, Plane

Form = Literal["shares", "levels"]


@dataclass(frozen=True)
class Tree:
    """The cells of a map at every resolution, each with the cells of the next finer one below it.

    Args:
        planes: rows and columns of each level, fine to coarse, with those that are there to fill up parents.
        counts: of each level, how many cells of the map stand below each of its cells ``(n,)``.
        children: of each level but the finest, its cells' children ``(n, 4)``, or 2 on a line.
        above: of each level, the cell that stands over each cell of the map ``(m,)``.
    """

    planes: tuple[Plane, ...]
    counts: tuple[Tensor, ...]
    children: tuple[Tensor, ...]
    above: tuple[Tensor, ...]

    @classmethod
    def of(cls, plane: Plane, levels: int, device: torch.device) -> Tree:
        """That of a map; a map of one row is a line, whose cells have two children."""
        step = (1 if plane[0] == 1 else 2, 2)
        coarse = [-(-size // side ** (levels - 1)) for size, side in zip(plane, step, strict=True)]
        planes = [(coarse[0] * step[0] ** n, coarse[1] * step[1] ** n) for n in reversed(range(levels))]
        y, x = (torch.arange(size, device=device) for size in plane)
        above, counts, children = [], [], []
        for level, (rows, columns) in enumerate(planes):
            place = (y // step[0] ** level)[:, None] * columns + x // step[1] ** level
            above.append(place.flatten())
            counts.append(torch.bincount(above[-1], minlength=rows * columns))
            if level:
                fine = torch.arange(rows * step[0] * columns * step[1], device=device)
                parts = fine.view(rows, step[0], columns, step[1]).transpose(1, 2)
                children.append(parts.flatten(2).flatten(0, 1))
        return cls(tuple(planes), tuple(counts), tuple(children), tuple(above))

    def means(self, x: Tensor) -> list[Tensor]:
        """Means ``(b, h, n, d)`` of each level's cells over the map's cells ``(b, h, m, d)`` below them."""
        found = []
        for place, count in zip(self.above, self.counts, strict=True):
            total = x.new_zeros(*x.shape[:2], len(count), x.shape[3]).index_add(2, place, x)
            found.append(total / count.clamp(min=1)[:, None])
        return found


@published(
    "quadtree",
    family="vit",
    row=179,
    title="QuadTree Attention for Vision Transformers",
    arxiv="2201.02767",
    year=2022,
    aliases=("quadtree_attention",),
    fidelity="authors' code",
    claim=(
        Claim(
            "each cell of a finer level scores the four children of the K chosen ones, exactly 4 K keys",
            cells="coarse_to_fine.quadtree_keys",
            holds="coarse_to_fine.are_four_each",
        ),
        Claim(
            "with as many levels as leave the coarsest map as it is, the cost grows with the cells alone",
            cells="coarse_to_fine.quadtree_growth",
            holds="coarse_to_fine.is_linear",
        ),
        Claim(
            "trained to find the cells of a warped map in the other one, it finds at least 3 points more than linear "
            "attention of the same size",
            cells="coarse_to_fine.matching",
            holds="coarse_to_fine.matches_better",
        ),
    ),
)
class QuadTree(Planar):
    """Softmax attention among the coarsest cells; at each finer level to the children of the K that got most there.

        coarsest:       P = softmax_j s q_i · k_j
        form "shares":  P_ij = P_parents softmax over siblings of s q_i · k_j,   A = Σ_l what is not handed on
        form "levels":  P_ij = softmax over all children of s q_i · k_j,   A = Σ_l softmax(w)_l P_l

    q and k of coarser cells are means of those below, and values too: what A has for a coarse cell is spread evenly
    over the cells below it. In ``shares`` (the authors' A) the chosen hand their weight to their children, so that
    every level refines it; in ``levels`` (their B) levels are mixed by learned w. Each head and cell chooses alone.
    There is no gradient through the choice.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, n, d)``, ``v (b, g, n, e)`` -> ``(b, h, n, e)``; g divides h. A grid of two
    axes has four children a cell, a line two.
    Cost: ``2 (d + e)`` FLOPs a head for each pair of coarsest cells and, of each finer level, each of its cells and the
    4 K keys that it scores.

    Args:
        topk: K of each level but the finest, coarse to fine; one more level than numbers. form: see above. scale: s,
            None for ``1 / sqrt(d)``.

    Raises:
        ValueError: a number below one, none, an unknown form; in a call, a grid of three axes.

    Paper: Tang et al., arXiv 2201.02767. At sides that are no multiple of 2^(levels − 1) coarser cells at the border
    are means of the fewer below them; the authors' code refuses such maps.
    """

    def __init__(self, topk: Sequence[int] = (16, 8), form: Form = "shares", scale: float | None = None) -> None:
        super().__init__()
        if not topk or min(topk) < 1:
            raise wrong("topk", str(topk), "a number of at least 1 for each level but the finest")
        if form not in get_args(Form):
            raise wrong("form", repr(form), f"one of {', '.join(get_args(Form))}")
        self.topk, self.form, self.scale, self.levels = tuple(topk), form, scale, len(topk) + 1
        self.mix = nn.Parameter(torch.randn(self.levels)) if form == "levels" else None

    def scaled(self, q: Tensor) -> Tensor:
        return q * (q.shape[3] ** -0.5 if self.scale is None else self.scale)

    def parts(self, dtype: torch.dtype) -> Tensor | None:
        """softmax(w) of each level, coarse to fine; None in the other form."""
        return None if self.mix is None else torch.softmax(self.mix.to(dtype), 0)

    def whole(self, q: Tensor, k: Tensor, plane: Plane) -> Tensor:
        tree, wide = Tree.of(plane, self.levels, q.device), accumulate_dtype(q.dtype)
        queries = tree.means(self.scaled(q.to(wide)))
        keys = tree.means(repeat_heads(k, q.shape[1]).to(wide))
        mix, total, above, chosen = self.parts(wide), None, None, None
        for place, level in enumerate(reversed(range(self.levels))):
            scores, real = queries[level] @ keys[level].mT, tree.counts[level] > 0
            if above is None or chosen is None:
                p = masked_softmax(scores, real.expand_as(scores))
            else:
                p = self.finer(scores, real, above, chosen, tree.children[level])
            last = level == 0
            kept = p * mix[place] if mix is not None else p
            if not last:
                chosen = torch.zeros_like(p, dtype=torch.bool)
                top = p.detach().topk(min(self.topk[place], p.shape[3]), -1).indices
                chosen.scatter_(3, top, True)
                above = p
                kept = kept if mix is not None else kept.masked_fill(chosen, 0)
            cells = tree.above[level]
            spread = (kept / tree.counts[level].clamp(min=1))[:, :, cells][:, :, :, cells]
            total = spread if total is None else total + spread
        assert total is not None
        return total

    def finer(self, scores: Tensor, real: Tensor, above: Tensor, chosen: Tensor, children: Tensor) -> Tensor:
        """P of one level from its dense scores, the P of the next coarser one and what that has chosen."""
        parents = torch.empty_like(real, dtype=torch.long)
        parents[children.flatten()] = torch.arange(len(children), device=real.device).repeat_interleave(
            children.shape[1]
        )
        seen = chosen[:, :, parents][:, :, :, parents] & real
        if self.form == "levels":
            return masked_softmax(scores, seen)
        siblings = masked_softmax(scores[..., children], seen[..., children])
        handed = (above.masked_fill(~chosen, 0))[:, :, parents]
        shared = torch.zeros_like(scores)
        shared[..., children] = siblings * handed[..., None]
        return shared

    def run(self, q: Tensor, k: Tensor, v: Tensor, plane: Plane) -> Tensor:
        tree, wide = Tree.of(plane, self.levels, q.device), accumulate_dtype(q.dtype)
        queries = tree.means(self.scaled(q.to(wide)))
        keys, values = (tree.means(repeat_heads(x, q.shape[1]).to(wide)) for x in (k, v))
        mix, top, out = self.parts(wide), None, None
        for place, level in enumerate(reversed(range(self.levels))):
            real = tree.counts[level] > 0
            if top is None or out is None:
                scores = queries[level] @ keys[level].mT
                p, seen = masked_softmax(scores, real.expand_as(scores)), None
            else:
                p, seen = self.gathered(queries[level], keys[level], real, top, tree.children[level])  # pyright: ignore[reportArgumentType]
            if level:
                most = p.topk(min(self.topk[place], p.shape[-1]), -1)
                rest = p if mix is not None else p.scatter(-1, most.indices, 0)
                top = (
                    most.values,
                    most.indices if seen is None else seen[:, :, :, None].expand(*p.shape).gather(-1, most.indices),
                )
            else:
                rest = p
            message = rest @ (values[level] if seen is None else picked(values[level], seen))
            message = message if mix is None else message * mix[place]
            if seen is not None:
                assert out is not None
                message, order = (message + out[:, :, :, None]).flatten(2, 3), tree.children[level].flatten().argsort()
                message = message[:, :, order]
                if level:
                    top = tuple(x.flatten(2, 3)[:, :, order] for x in top)  # pyright: ignore[reportOptionalIterable]
            out = message
        assert out is not None
        return out[:, :, tree.above[0]].to(q.dtype)

    def gathered(
        self, q: Tensor, k: Tensor, real: Tensor, top: tuple[Tensor, Tensor], children: Tensor
    ) -> tuple[Tensor, Tensor]:
        """P of the children of each parent over the children of what it chose ``(b, h, parents, 4, 4 K)``, and which
        cells these are ``(b, h, parents, 4 K)``."""
        seen = children[top[1]].flatten(3)
        scores = q[:, :, children] @ picked(k, seen).mT
        there = real[seen][:, :, :, None].expand_as(scores)
        if self.form == "levels":
            return masked_softmax(scores, there), seen
        siblings = masked_softmax(*(x.unflatten(4, (-1, children.shape[1])) for x in (scores, there)))
        return (siblings * top[0][:, :, :, None, :, None]).flatten(4), seen

    def pairs(self, m: int, layout: Layout) -> int:
        """The most pairs of cells that are scored, at all levels."""
        tree = Tree.of(plane_of(layout, m), self.levels, torch.device("cpu"))
        sizes = [rows * columns for rows, columns in reversed(tree.planes)]
        found, most = sizes[0] ** 2, sizes[0]
        for size, count, children in zip(sizes[1:], self.topk, reversed(tree.children), strict=True):
            most = min(count, most) * children.shape[1]
            found += size * most
        return found

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        pairs = self.pairs(shape.keys, layout) if shape.keys else 0
        flops = 2 * shape.batch * shape.heads * pairs * (shape.head_dim + shape.values)
        return Cost(flops, shape.io_bytes, 0)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("5 and 3 of shares, grouped", cls((5, 3)), heads=4, kv_heads=2),
            Example("4 of levels", cls((4,), "levels"), heads=3, kv_heads=3),
            Example("2, 3 and 2 of shares", cls((2, 3, 2))),
        ]


def picked(x: Tensor, cells: Tensor) -> Tensor:
    """``x (b, h, n, d)`` at the cells ``(b, h, parents, K)`` as ``(b, h, parents, K, d)``."""
    return taken(x, cells.flatten(2).flatten(0, 1)).unflatten(2, cells.shape[2:])
