"""Attention tied by a tree: how near it is to softmax, and how many pairs it scores."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import regard
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.mechanisms.structured.tree import Hierarchy, tied

TREES = {
    "even": [7, 7, 7, 8, 8, 8, 8, 9, 9, -1],
    "deep": [7, 7, 8, 9, 9, 10, 11, 8, 10, 10, 11, -1],
    "flat": [7, 7, 7, 7, 7, 7, 7, -1],
}


def blocks(tree: Hierarchy) -> Tensor:
    """The number of the block of each pair of tokens, ``(n, n)``: of two siblings, or of a token with itself."""
    n = tree.leaves
    numbers = torch.diag(torch.arange(n) + 1)
    for height, (child, node) in enumerate(tree.nodes_of_tokens(), 1):
        beside = (node[:, None] == node) & (child[:, None] != child)
        numbers = torch.where(beside, height * 10_000 + child[:, None] * 100 + child, numbers)
    return numbers.unique(return_inverse=True)[1]


def divergence_of(a: Tensor, scores: Tensor) -> Tensor:
    """``Σ_i KL(A_i ‖ softmax(s_i))``; of matrices ``(…, n, n)``."""
    return (torch.special.xlogy(a, a) - a * scores.log_softmax(-1)).sum((-2, -1))


def drawn(tree: Hierarchy, count: int, generator: torch.Generator) -> Tensor:
    """Random matrices that are tied by the tree: those of random scores of blocks."""
    n = tree.leaves
    return torch.cat([
        tied(scale * torch.randn(count // 4, n, n, generator=generator, dtype=torch.float64), tree)
        for scale in (0.5, 1.0, 2.0, 4.0)
    ])  # fmt: skip


def minimised(scores: Tensor, tree: Hierarchy) -> float:
    """The least divergence of a tied matrix, from the dual of the convex program: whatever it finds, none is lower.

    Of weights w of blocks with m entries each and sums of targets t, ``min Σ m w log w − t w`` under ``S w = 1`` is
    ``max_ν −Σ m w(ν) − Σ ν`` with ``w(ν) = exp((t − Sᵀ ν) / m − 1)``.
    """
    number, targets = blocks(tree).numpy(), scores.log_softmax(-1).numpy()
    count = int(number.max()) + 1
    sums = np.stack([np.bincount(row, minlength=count) for row in number])
    many = np.bincount(number.flatten(), minlength=count)
    linear = np.bincount(number.flatten(), weights=targets.flatten(), minlength=count)

    def weights(dual: np.ndarray) -> np.ndarray:
        return np.exp((linear - sums.T @ dual) / many - 1)

    found = minimize(
        lambda dual: float(many @ weights(dual) + dual.sum()),
        np.zeros(tree.leaves),
        jac=lambda dual: 1 - sums @ weights(dual),
        hess=lambda dual: sums * (weights(dual) / many) @ sums.T,
        method="trust-exact",
        options={"gtol": 1e-11, "maxiter": 500},
    )
    return -float(found.fun)


@measured(tree=tuple(TREES), seed=range(3))
def divergence(tree: str, seed: int) -> dict[str, float]:
    """The divergence from softmax: of the tied matrix, the least of 1,000 drawn ones, and that of a minimiser."""
    generator, shape = torch.Generator().manual_seed(seed), Hierarchy.of(TREES[tree])
    q, k = torch.randn(2, shape.leaves, 5, generator=generator, dtype=torch.float64)
    scores = q @ k.mT
    own = divergence_of(tied(scores, shape), scores).item()
    least = divergence_of(drawn(shape, 1000, generator), scores).min().item()
    return {"own": own, "drawn": least, "apart": minimised(scores, shape) - own}


def is_nearest(found: Figures) -> Finding:
    """At most that of every drawn one, and the minimiser's to 1e-9."""
    own, least, apart = (found(name) for name in ("own", "drawn", "apart"))
    more = min(drawn - ours for ours, drawn in zip(own, least, strict=True))
    worst = max(map(abs, apart))
    figure = (
        f"divergence {min(own):.2f} to {max(own):.2f}; drawn ones at least {more:.2f} more, a minimiser {worst:.0e}"
    )
    return Finding.of(figure, more >= 0, worst < 1e-9)


@measured(n=(512, 1024, 2048, 4096))
def scored(n: int) -> dict[str, float]:
    """Pairs of nodes that are scored for each token, with eight children each."""
    q = torch.randn(1, 1, n, 4)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        regard.build("tree", branching=8)(q, q, q)
    return {"pairs": counter.get_total_flops() / 2 / (4 + 4) / n}


def is_linear(found: Figures) -> Finding:
    """At most 2 · 8 for each token at every length."""
    pairs = found("pairs")
    return Finding.of(f"{min(pairs):.1f} to {max(pairs):.1f} pairs a token of 512 to 4,096", max(pairs) <= 16)
