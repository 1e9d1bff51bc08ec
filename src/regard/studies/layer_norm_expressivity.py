"""The two parts of LayerNorm, and what each does for the attention behind it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong


@published(
    "layer_norm_parts",
    family="theory",
    kind="study",
    row=312,
    title="On the Expressivity Role of LayerNorm in Transformers' Attention",
    arxiv="2305.02582",
    year=2023,
    aliases=("layernorm_expressivity",),
    claim=Claim(
        text="projection and scaling together are LayerNorm; of random keys many are unselectable, of scaled ones "
        "none; the majority of a list is learned sooner with the projection, by queries that turn towards "
        "the 1-vector",
        status="partly",
        figure="LayerNorm to 1e-6; 200 keys in 8 dimensions: 18% unselectable, 0 once scaled, as linear programs say; "
        "majority is not reproduced: queries turned from 58° to 52° of the 1-vector, in another run from 70° to 77°",
        command="pytest tests/claims/test_layer_norm.py",
    ),
)
class LayerNormParts(nn.Module):
    """LayerNorm without gain and bias, as a projection and a scaling, either of which can be left out.

        projection: x ← x − (x · 1 / d) 1,   scaling: x ← √d x / √(|x|² + d ε)

    The projection makes every key orthogonal to 1, so that a query along 1 attends to all keys alike; the scaling puts
    keys onto a sphere, where none lies in the hull of others, so that each can be attended to most.

    Shapes: ``(…, d)`` -> ``(…, d)``.

    Args:
        projection, scaling: whether the part is there. eps: ε.

    Paper: Brody, Alon and Yahav, arXiv 2305.02582.
    """

    def __init__(self, projection: bool = True, scaling: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.projection, self.scaling, self.eps = projection, scaling, eps

    def forward(self, x: Tensor) -> Tensor:
        if self.projection:
            x = x - x.mean(-1, keepdim=True)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) if self.scaling else x


def unselectable(keys: Tensor, tolerance: float = 1e-9) -> Tensor:
    """``(n,)`` bool: which keys lie in the convex hull of the others, so that no query attends to them most.

    Of the differences to the other keys the point of the hull nearest to zero is found (Wolfe's algorithm, exact after
    finitely many steps): it is zero, to ``tolerance`` of the largest difference, just for these.

    Args:
        keys: ``(n, d)``, n ≥ 2.

    Raises:
        ValueError: fewer than two keys.
    """
    if keys.dim() != 2 or keys.shape[0] < 2:
        raise wrong("keys", f"shape {tuple(keys.shape)}", "(n, d) with n of at least 2")
    found = []
    for i in range(keys.shape[0]):
        apart = torch.cat([keys[:i], keys[i + 1 :]]).double() - keys[i].double()
        found.append(nearest_to_zero(apart).norm() <= tolerance * apart.norm(dim=1).max())
    return torch.stack(found)


def nearest_to_zero(points: Tensor, tolerance: float = 1e-12) -> Tensor:
    """The point ``(d,)`` of the convex hull of ``points (n, d)`` that has the least norm."""
    size = points.square().sum(1).max()
    kept, weights = [int(points.square().sum(1).argmin())], points.new_ones(1)
    while True:
        x = weights @ points[kept]
        products = points @ x
        best = int(products.argmin())
        if best in kept or x @ x - products[best] <= tolerance * size:
            return x
        kept, weights = [*kept, best], torch.cat([weights, weights.new_zeros(1)])
        while True:
            affine = least_combination(points[kept])
            if (affine > tolerance).all():
                weights = affine
                break
            falling = affine <= tolerance
            step = (weights[falling] / (weights[falling] - affine[falling]).clamp(min=1e-300)).min().clamp(max=1)
            weights = (1 - step) * weights + step * affine
            stays = weights > tolerance
            stays[weights.argmax()] = True
            kept, weights = [k for k, stay in zip(kept, stays.tolist(), strict=True) if stay], weights[stays]
            weights = weights / weights.sum()


def least_combination(points: Tensor) -> Tensor:
    """Coefficients, that sum to one, of the point of least norm in the affine hull of ``points (k, d)``."""
    origin, directions = points[0], points[1:] - points[0]
    rest = -torch.linalg.lstsq(directions.mT, origin[:, None], driver="gelsd").solution[:, 0]
    return torch.cat([1 - rest.sum()[None], rest])
