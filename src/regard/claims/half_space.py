"""Keys whose scores reach a bound: how many they are, and how much of a tree is looked at to find them."""

from __future__ import annotations

import math

import torch

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.core.layout import Layout
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.sparse.half_space import HalfSpace
from regard.routers.ball_tree import BallTree


@measured(tokens=(1024, 4096), sharp=(1.0, 8.0), seed=range(3))
def reported(tokens: int, sharp: float, seed: int) -> dict[str, float]:
    """Of 8 Gaussian coordinates, the last 64 queries: keys reported over n^0.8, what the tree missed, the error.

    Sharp queries are longer by this factor, so that few keys take nearly all attention: the massive activation under
    which the paper bounds the error. How many are reported does not change by it, since bounds grow with queries.
    """
    generator = torch.Generator().manual_seed(seed)
    q, (k, v) = torch.randn(1, 1, 64, 8, generator=generator), torch.randn(2, 1, 1, tokens, 8, generator=generator)
    q = sharp * q
    mechanism = HalfSpace()
    a = mechanism.weights(q, k, Layout(causal=True))
    by_tree, dense = mechanism.by_tree(q, k, v, True), Softmax()(q, k, v, Layout(causal=True))
    return {
        "reported": (a > 0).sum(3).double().mean().item() / tokens**0.8,
        "missed": (by_tree - a @ v).abs().max().item(),
        "error": ((a @ v - dense).norm() / v.norm(dim=3).mean() / math.sqrt(64)).item(),
    }


def is_few(found: Figures) -> Finding:
    """At most twice n^0.8, nothing missed."""
    few, missed = max(found("reported")), max(found("missed"))
    return Finding.of(f"{few:.2f} n^0.8 keys, equal to all scores to {missed:.0e}", few <= 2, missed <= 1e-5)


def errs_little(found: Figures) -> Finding:
    """1% of a value at most where attention is sharp."""
    plain, sharp = (max(found("error", sharp=x)) for x in (1.0, 8.0))
    return Finding.of(f"an error of {sharp:.2%} of a value; of queries of variance one {plain:.2%}", sharp <= 0.01)


@measured(dim=(2, 4, 8, 64), tokens=(4096, 16_384, 65_536))
def looked_at(dim: int, tokens: int) -> dict[str, float]:
    """Balls that are looked at for a query, over all of them, by the bound that leaves n^0.8 Gaussian scores."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 1, 32, dim, generator=generator), torch.randn(1, 1, tokens, dim, generator=generator)
    tree = BallTree.of(k)
    bounds = HalfSpace().bounds(q, torch.full((32,), float(tokens))) * dim**0.5
    _, looked = tree.leaves(q, bounds)
    return {"balls": looked / 32, "share": looked / 32 / sum(x.shape[2] for x in tree.radii)}


def is_sublinear(found: Figures) -> Finding:
    """A power of the keys below 0.95 up to 8 dimensions."""
    sizes = (4096, 65_536)
    powers = {
        dim: math.log(found.one("balls", dim=dim, tokens=sizes[1]) / found.one("balls", dim=dim, tokens=sizes[0]), 16)
        for dim in (2, 4, 8, 64)
    }
    share = found.one("share", dim=64, tokens=sizes[1])
    told = f"in 2, 4 and 8 dimensions as n to the {listed([powers[x] for x in (2, 4, 8)], '.2f')}"
    return Finding.of(
        f"balls grow {told}; in 64 {share:.0%} of them are looked at", max(powers[x] for x in (2, 4, 8)) < 0.95
    )
