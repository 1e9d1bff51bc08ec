"""The two parts of LayerNorm, and what each does for the attention behind it."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

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
    fidelity="hand values",
    claim=(
        Claim(
            "projection and scaling together are LayerNorm", cells="theory.two_parts", holds="common.within(most=1e-6)"
        ),
        Claim(
            "of random keys many are unselectable, of scaled ones none",
            cells="theory.selectable",
            holds="theory.none_once_scaled",
        ),
        Claim(
            "with the projection a majority is learned in fewer steps, by queries along 1",
            cells="norm_parts.majority",
            holds="norm_parts.projection_is_sooner",
        ),
        Claim(
            "a language model whose norms scale has fewer unselectable keys, and does better",
            cells="norm_parts.in_language",
            holds="norm_parts.scaling_is_better",
        ),
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


class Majority(nn.Module):
    """One layer of a transformer that tells, at every token, which class most tokens of the sequence are of.

        x ← E y,   x ← x + W_o softmax(Q n(x) · K n(x) / √d) V n(x),   x ← x + FF(LayerNorm x),   logits = x Eᵀ

    n is LayerNorm with or without a part, and the query of a token as it meets the keys is ``Kᵀ Q n(x)``. A query along
    1 weighs all projected keys alike, which is how to count.

    Shapes: ``classes (b, n)`` -> logits ``(b, n, classes)``.

    Args:
        classes: how many. dim: d. projection: whether n has it. seed: of the initial weights.

    Paper: Brody, Alon and Yahav, arXiv 2305.02582, section 3; as the authors' code has it, but that without the
    projection that divides keys by √d where here and in the paper's text they have that length.
    """

    def __init__(self, classes: int = 20, dim: int = 8, projection: bool = True, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.norm = nn.Embedding(classes, dim), LayerNormParts(projection, eps=0)
        self.maps, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.after = nn.LayerNorm(dim, eps=0)
        self.network = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, classes: Tensor) -> Tensor:
        x = self.embedding(classes)
        q, k, v = self.maps(self.norm(x)).chunk(3, -1)
        x = x + self.out((q @ k.mT / q.shape[2] ** 0.5).softmax(-1) @ v)
        return (x + self.network(self.after(x))) @ self.embedding.weight.T

    def angle(self, classes: Tensor) -> Tensor:
        """Degrees, up to 90, between 1 and each token's query as it meets the keys."""
        q_map, k_map, _ = self.maps.weight.chunk(3)
        met = self.norm(self.embedding(classes)) @ q_map.T @ k_map
        cosine = met.sum(-1).abs() / (met.norm(dim=-1) * met.shape[-1] ** 0.5)
        return torch.rad2deg(cosine.clamp(max=1).acos())


def majorities(
    count: int, generator: Generator, length: int = 50, classes: int = 20, least: int = 6
) -> tuple[Tensor, Tensor]:
    """Sequences of classes ``(count, length)``, and the class of each that is ``least`` tokens ahead of all others.

    How often each class comes is drawn with uneven chances, sequences without such a class are drawn again.
    """
    kept, labels = torch.zeros(0, length, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    while len(kept) < count:
        chances = torch.rand(count, classes, generator=generator).clamp(1e-6).log().neg() ** 2
        drawn = torch.multinomial(chances, length, replacement=True, generator=generator)
        counts = torch.zeros(count, classes, dtype=torch.int64).scatter_add(1, drawn, torch.ones_like(drawn))
        first, second = counts.topk(2).values.unbind(1)
        clear = first - second >= least
        kept, labels = torch.cat([kept, drawn[clear]]), torch.cat([labels, counts.argmax(1)[clear]])
    return kept[:count], labels[:count]


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
