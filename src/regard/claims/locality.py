"""How far a locality dial keeps attention in its block, and how many blocks are recruited."""

from __future__ import annotations

import torch
from scipy.stats import spearmanr
from torch import Generator

from regard.claims.cells import measured, null, quick
from regard.claims.figures import Figures, Finding, interval, listed
from regard.studies.localist import Localist, entropy_bound, recruit

DIALS = (0.0, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.01, 0.02, 0.04)


@quick(dial=(0.0, 0.01, 0.04), seed=[0], steps=[100])
@null(penalised=[False])
@measured(dial=DIALS, penalised=[True], seed=range(5), steps=[3000])
def dialled(dial: float, penalised: bool, seed: int, steps: int) -> dict[str, float]:
    """Mass inside of the query's block, the share of W's parts between blocks that are zero, entropy and its bound.

    Null: nothing is penalised, whatever the dial says.
    """
    world = Localist()
    w, a = world.train(dial if penalised else 0.0, steps, seed)
    parts, own = world.parts(w), torch.eye(world.blocks, dtype=torch.bool)
    same = world.block[:, None] == world.block
    logs = a.clamp(min=1e-30).log()
    margin = logs.masked_fill(~same, torch.inf).amin(-1) - logs.masked_fill(same, -torch.inf).amax(-1)
    within = world.tokens // world.blocks
    bound = entropy_bound(margin.clamp(min=0), within, world.tokens - within)
    entropy = -torch.special.xlogy(a, a).sum(-1)
    return {
        "inside": world.inside(a).mean().item(),
        "zeros": (parts[~own] == 0).double().mean().item(),
        "entropy": entropy.mean().item(),
        "over": (entropy - bound)[margin > 0].max().item() if (margin > 0).any() else 1.0,
        "ahead": (margin > 0).double().mean().item(),
    }


def is_monotone(found: Figures) -> Finding:
    """Spearman's ρ of dial and mass is at least 0.9, on average over seeds."""
    inside = found.by("dial", "inside")
    curves = list(zip(*inside.values(), strict=True))
    ranks = [0.0 if len(set(curve)) < 2 else float(spearmanr(list(inside), curve).statistic) for curve in curves]  # pyright: ignore
    told = ", ".join(f"{dial:g}: {interval(values, '.2f')}" for dial, values in inside.items())
    figure = f"Spearman's ρ {interval(ranks, '.2f')}; mass in the block by dial {told}"
    return Finding.of(figure, sum(ranks) >= 0.9 * len(ranks))


def is_bounded(found: Figures) -> Finding:
    """Where all weights between blocks are zero, in every seed, and rows lead by a margin in half of the cases."""
    cut = [row for row in found.rows if row["zeros"] == 1 and row["inside"] > 0.5]
    over = max((row["over"] for row in cut), default=1.0)
    ahead = min((row["ahead"] for row in cut), default=0.0)
    figure = f"{len(cut)} networks without weights between blocks: entropy over its bound by {over:.3f} at most"
    return Finding.of(f"{figure}, {ahead:.0%} of rows with a margin", bool(cut), over <= 1e-5, ahead >= 0.5)


@quick(seed=[0])
@null(apart=[0.0])
@measured(blocks=(2, 4, 7), apart=[1.0], seed=range(5))
def recruited(blocks: int, apart: float, seed: int) -> dict[str, float]:
    """How many blocks are recruited for tokens of so many; null: no blocks in the data."""
    generator = Generator().manual_seed(seed)
    centres = 3 * apart * torch.randn(blocks, 6, generator=generator)
    x = centres[torch.randint(blocks, (300,), generator=generator)] + torch.randn(300, 6, generator=generator)
    return {"found": float(recruit(x.double()))}


def finds_blocks(found: Figures) -> Finding:
    """In every seed."""
    by = found.by("blocks", "found")
    figure = "; ".join(f"{listed(values, '.0f')} of {blocks}" for blocks, values in by.items())
    return Finding.of(f"recruited {figure}", all(abs(x - blocks) <= 1 for blocks, each in by.items() for x in each))
