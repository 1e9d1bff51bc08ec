"""A tree of balls around keys, which tells those whose products with a query reach a bound without looking at all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.core.mechanism import accumulate_dtype

ROUNDING = 1e-5
"""By how much of its size a ball's bound is raised, so that rounding loses no key."""


@dataclass(frozen=True)
class BallTree:
    """Keys cut in halves along the coordinate of the largest spread, and again, down to leaves.

    A ball holds the keys of a node: ``q · k ≤ q · c + ‖q‖ r`` for each of them.

    Args:
        order: ``(b, g, leaves · leaf)`` int64, the keys leaf by leaf, m and above for none. leaf: keys of a leaf.
        centres, radii: of each level, from the root, ``(b, g, nodes, d)`` and ``(b, g, nodes)``; a node of no keys has
            the radius −∞. m: number of keys.
    """

    order: Tensor
    leaf: int
    centres: tuple[Tensor, ...]
    radii: tuple[Tensor, ...]
    m: int

    @classmethod
    @torch.no_grad()
    def of(cls, k: Tensor, leaf: int = 32) -> BallTree:
        """That of ``k (b, g, m, d)``."""
        if leaf < 1:
            raise wrong("leaf", str(leaf), "at least 1 key")
        (b, g, m), depth = k.shape[:3], 0
        while leaf << depth < m:
            depth += 1
        size = leaf << depth
        keys = torch.nn.functional.pad(k.to(accumulate_dtype(k.dtype)), (0, 0, 0, size - m))
        order = torch.arange(size, device=k.device).expand(b, g, -1)
        centres, radii = [], []
        for level in range(depth + 1):
            members = order.unflatten(2, (1 << level, -1))
            real = (members < m)[..., None]
            points = keys.take_along_dim(order[..., None], 2).unflatten(2, (1 << level, -1))
            count = real.sum(3)
            centre = (points * real).sum(3) / count.clamp(min=1)
            apart = (points - centre[..., None, :]).square()
            radius = (apart.sum(-1) * real[..., 0]).amax(3).sqrt()
            centres.append(centre)
            radii.append(torch.where(count[..., 0] > 0, radius, -torch.inf))
            if level < depth:
                axis = (apart * real).sum(3).argmax(3)[..., None, None]
                along = points.take_along_dim(axis, 4)[..., 0].masked_fill(~real[..., 0], torch.inf)
                order = members.take_along_dim(along.argsort(dim=3, stable=True), 3).flatten(2)
        return cls(order, leaf, tuple(centres), tuple(radii), m)

    @torch.no_grad()
    def leaves(self, q: Tensor, least: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], int]:
        """Which leaves may hold a key whose product with a query is at least ``least (b, h, n)``.

        Returns:
            batch, head, query and leaf of each, ``(found,)`` int64; and how many balls were looked at.
        """
        q, group = q.to(self.centres[0].dtype), max(q.shape[1] // max(self.order.shape[1], 1), 1)
        sizes, looked = q.norm(dim=3), 0
        at = torch.ones_like(least, dtype=torch.bool).nonzero().unbind(1)
        node = torch.zeros_like(at[0])
        for level, (centres, radii) in enumerate(zip(self.centres, self.radii, strict=True)):
            if level:
                at = tuple(x.repeat_interleave(2) for x in at)
                node = (2 * node[:, None] + torch.arange(2, device=node.device)).flatten()
            looked += len(node)
            ball = at[0], at[1] // group, node
            size, radius = sizes[at], radii[ball]
            highest = (q[at] * centres[ball]).sum(1) + size * radius
            highest = highest + ROUNDING * (highest.abs() + size)
            kept = (highest >= least[at].to(highest.dtype)) & (radius > -torch.inf)
            at, node = tuple(x[kept] for x in at), node[kept]
        return (*at, node), looked  # pyright: ignore[reportReturnType]

    def keys(self, at: tuple[Tensor, Tensor, Tensor, Tensor], group: int) -> Tensor:
        """``(found, leaf)`` int64: the keys of each of these leaves."""
        return self.order.unflatten(2, (-1, self.leaf))[at[0], at[1] // group, at[3]]
