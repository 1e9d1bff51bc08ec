"""Attention that looks at a map coarse to fine, or through a summary of it: what is scored, and what it reaches."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

import regard
from regard.claims.cells import measured, quick
from regard.claims.figures import Figures, Finding, listed
from regard.claims.testbeds.maps import apart, drawn, stirred
from regard.core.build import build_text
from regard.core.layout import Layout
from regard.train.fit import Recipe, fit

SIDE = 16


@measured(chosen=(1, 3, 5))
def quadtree_keys(chosen: int) -> dict[str, int]:
    """The fewest and the most keys to which a cell of the finest of three levels gives weight there."""
    mechanism: Any = regard.build("quadtree", topk=(4, chosen), form="levels")
    with torch.no_grad():
        mechanism.mix.copy_(torch.tensor([-math.inf, -math.inf, 0.0]))
    q, k = drawn(2, 2, 2, 96, 5)
    with torch.no_grad():
        seen = (mechanism.weights(q, k, Layout(grid=(8, 12))) > 0).sum(-1)
    return {"fewest": int(seen.min()), "most": int(seen.max())}


def are_four_each(found: Figures) -> Finding:
    """4 K, for every cell."""
    fewest, most, chosen = (found(name) for name in ("fewest", "most", "chosen"))
    figure = f"{listed(fewest, 'd')} keys for K = {listed(chosen, 'd')}"
    return Finding.of(figure, fewest == most == [4 * each for each in chosen])


@measured()
def quadtree_growth() -> dict[str, float]:
    """The exponent of the FLOPs in the cells where the coarsest level has 8 × 8 cells; their share of full attention's
    at 128 × 128."""
    costs = []
    for side in (32, 128):
        shape, layout = regard.Shape(side * side, head_dim=32, heads=2), Layout(grid=(side, side))
        tree = regard.build("quadtree", topk=(8,) * int(math.log2(side / 8)))
        costs.append((tree.cost(shape, layout).flops, regard.build("softmax").cost(shape).flops))
    (small, _), (large, full) = costs
    return {"exponent": math.log(large / small) / math.log(16), "share": large / full}


def is_linear(found: Figures) -> Finding:
    """1, to 0.05."""
    exponent, share = found.one("exponent"), found.one("share")
    return Finding.of(f"exponent {exponent:.3f}; {share:.1%} of full attention at 128 × 128", abs(exponent - 1) < 0.05)


def pairs(count: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Maps ``(count, 4, 16, 16)``, the same rolled by up to four cells with noise, and the cell where each is."""
    maps = torch.zeros(count, 4, SIDE, SIDE)
    for size in (4, 8, 16):
        noise = torch.randn(count, 4, size, size, generator=generator)
        maps = maps + F.interpolate(noise, (SIDE, SIDE), mode="bilinear")
    moves = torch.randint(-4, 5, (count, 2), generator=generator).tolist()
    cells = torch.arange(SIDE * SIDE).view(SIDE, SIDE)
    warped = torch.stack([x.roll(move, (1, 2)) for x, move in zip(maps, map(tuple, moves), strict=True)])
    where = torch.stack([cells.roll((-move[0], -move[1]), (0, 1)) for move in moves])
    return maps, warped + 0.1 * torch.randn(warped.shape, generator=generator), where.flatten(1)


class Finder(nn.Module):
    """For each cell of one map the logits of the cells of the other, read from a learned mark of each by attention."""

    def __init__(self, mechanism: str, heads: int = 4, each: int = 16) -> None:
        super().__init__()
        width = heads * each
        layers = (nn.Conv2d(4, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 3, padding=1))
        self.encoder, self.q, self.k = nn.Sequential(*layers), nn.Linear(width, width), nn.Linear(width, width)
        self.marks = nn.Parameter(torch.randn(SIDE * SIDE, width))
        self.mechanism, self.heads = build_text(mechanism, {}), heads
        self.out = nn.Linear(width, SIDE * SIDE)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        q, k = self.q(self.encoder(one).flatten(2).mT), self.k(self.encoder(other).flatten(2).mT)
        v = self.marks.expand(len(one), -1, -1)
        q, k, v = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        return self.out(self.mechanism(q, k, v, Layout(grid=(SIDE, SIDE))).transpose(1, 2).flatten(2))


@quick(mechanism=["linear"], seed=[0], steps=[2])
@measured(mechanism=("quadtree(topk=(8, 8))", "linear"), seed=range(3), steps=[400])
def matching(mechanism: str, seed: int, steps: int) -> dict[str, float]:
    """The share of cells of unseen maps that are found in the rolled one, to within a cell on each axis."""

    def loss(ready: Any, generator: Generator) -> Tensor:
        one, other, where = pairs(8, generator)
        return F.cross_entropy(ready(one, other).flatten(0, 1), where.flatten())

    torch.manual_seed(seed)
    finder = Finder(mechanism)
    fit(finder, loss, Recipe(steps, seed=seed))
    one, other, where = pairs(64, torch.Generator().manual_seed(10_000 + seed))
    with torch.no_grad():
        found = finder(one, other).argmax(-1)
    off = torch.maximum((found // SIDE - where // SIDE).abs(), (found % SIDE - where % SIDE).abs())
    return {"found": (off <= 1).float().mean().item(), "exactly": (off == 0).float().mean().item()}


def matches_better(found: Figures) -> Finding:
    """By 3 points, in each run."""
    tree, linear = (found("found", mechanism=each) for each in ("quadtree(topk=(8, 8))", "linear"))
    figure = f"{listed(tree, '.1%')} found, with linear attention {listed(linear, '.1%')}"
    return Finding.of(figure, all(a >= b + 0.03 for a, b in zip(tree, linear, strict=True)))


@measured()
def context_kernels() -> dict[str, float]:
    """With keys that are all alike and queries too: how far the kernels of cells inside are from one, of those at the
    border, and those of two heads from each other."""
    mechanism = stirred(regard.build("contmix", heads=4, windows=(3, 5), axes=2))
    grid = (9, 11)
    q, k = (drawn(1, 4, 1, 6, seed=seed).expand(1, 4, 99, 6) for seed in (0, 1))
    with torch.no_grad():
        kernels = [weights[0] for weights, _, _ in mechanism.kernels(q, k, grid)]
    inside, border, heads = [], [], []
    for weights, side in zip(kernels, (1, 2), strict=True):
        inner = weights[:, side:-side, side:-side]
        inside.append(apart(inner, inner[:, :1, :1].expand_as(inner)))
        border.append(apart(weights[:, 0, 0], inner[:, 0, 0]))
        heads.append(apart(inner[0, 0, 0], inner[1, 0, 0]))
    return {"inside": max(inside), "border": min(border), "heads": min(heads)}


def is_one_kernel(found: Figures) -> Finding:
    """Equal to 1e-12 inside; by more than 1e-3 at the border and between heads."""
    inside, border, heads = (found.one(name) for name in ("inside", "border", "heads"))
    figure = f"inside equal to {inside:.0e}, at the border {border:.2g} off, between heads {heads:.2g}"
    return Finding.of(figure, inside < 1e-12, border > 1e-3, heads > 1e-3)


@measured()
def context_reach() -> dict[str, float]:
    """How much one key in a corner moves the weights of the opposite corner's window."""
    mechanism = stirred(regard.build("contmix", heads=2, windows=(3, 5), axes=2))
    q, k = drawn(2, 1, 2, 15 * 17, 6)
    changed = k.clone()
    changed[:, :, 0] += 5
    layout = Layout(grid=(15, 17))
    with torch.no_grad():
        a, b = (mechanism.weights(q, each, layout)[:, :, -1] for each in (k, changed))
    return {"moved": apart(a, b), "weight": b[:, :, 0].max().item()}


def reaches_beyond(found: Figures) -> Finding:
    """By more than 1e-3, though the key itself has no weight there."""
    moved, weight = found.one("moved"), found.one("weight")
    return Finding.of(f"weights move by {moved:.2g}, the key's own is {weight:g}", moved > 1e-3, weight == 0)
