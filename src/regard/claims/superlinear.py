"""Anchors and spans: that no position is left out, what a token costs, and a needle that is found."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from regard.claims.cells import measured, null, quick
from regard.claims.figures import Figures, Finding, listed
from regard.core.cost import Shape
from regard.core.layout import Layout
from regard.mechanisms.sparse.superlinear import Superlinear
from regard.networks.lm import LM, Config
from regard.tasks.needles import Needle
from regard.train.fit import Recipe, fit
from regard.train.lm import accuracy_of, predicted

LENGTHS = (1024, 4096, 16_384, 65_536)
LAYERS = {"superlinear": "window(size=48), superlinear(window_index=1)", "windows": "window(size=48)*2"}
"""Layers whose first one tells a token of those before it, as far as a span is long in `ASKED` tokens."""
DEEP = "window(size=48)*3, superlinear(window_index=1)"
"""Four layers, windows of which tell a token of the 140 before it: as far as a span of 4k tokens is long."""
TRAINED, ASKED = 128, 512
"""Tokens that are trained on, and tokens in which the needle is looked for."""


@null(behind=[1.0])
@quick(tokens=[1024])
@measured(tokens=LENGTHS, window_index=(0, 3), behind=[2.0])
def covered(tokens: int, window_index: int, behind: float) -> dict[str, float]:
    """Past positions that are in no candidate span and not in the window, over all of the last 1,024 queries."""
    mechanism = Superlinear(behind=behind, window_index=window_index)
    here = torch.arange(tokens - 1024, tokens)
    anchors = here[:, None] - mechanism.distances(tokens)
    first, last = mechanism.bounds(anchors.masked_fill(anchors < 0, -1), here)
    first = torch.cat([first, (here - mechanism.window + 1).clamp(min=0)[:, None]], 1)
    known = torch.nn.functional.pad(last.masked_fill(anchors < 0, -1), (1, 0), value=-1).cummax(1).values
    return {"missed": float((first - known - 1).clamp(min=0).sum())}


def leaves_none_out(found: Figures) -> Finding:
    """None is missed."""
    missed = sum(found("missed"))
    queries = 1024 * len(found("missed"))
    return Finding.of(f"{missed:,.0f} positions of {queries:,} queries, up to 65,536 tokens, are missed", missed == 0)


@measured(tokens=LENGTHS)
def per_token(tokens: int) -> dict[str, float]:
    """Counted FLOPs of one more token, of one head of 16 channels."""
    mechanism, generator = Superlinear(), torch.Generator().manual_seed(0)
    q, asked = torch.randn(2, 1, 1, 1, 16, generator=generator)
    k, v = torch.randn(2, 1, 1, tokens, 16, generator=generator)
    state = mechanism.start(1).append(k[:, :, :-1], v[:, :, :-1], None)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        mechanism.extend(q, k[:, :, -1:], v[:, :, -1:], state, search=asked)
    return {"flops": float(counter.get_total_flops())}


def grows_as_root(found: Figures) -> Finding:
    """The exponent is 0.5 to 0.05."""
    flops = [found.one("flops", tokens=n) for n in LENGTHS]
    power = math.log(flops[-1] / flops[0], LENGTHS[-1] / LENGTHS[0])
    return Finding.of(f"n^{power:.3f} from 1,024 to 65,536 tokens", abs(power - 0.5) <= 0.05)


@null(jumps=[2])
@quick(tokens=[4096, 65_536])
@measured(tokens=(4096, 65_536, 1_048_576), jumps=[3])
def three_steps(tokens: int, jumps: int) -> dict[str, float]:
    """FLOPs of one more token, and how many of the last queries' past positions no path of three steps leads to."""
    mechanism, here = Superlinear(behind=3.0, steps=jumps), torch.tensor([tokens - 1])
    shape = Shape(1, tokens, head_dim=16)
    reached = (here[:, None] - mechanism.distances(tokens))[0]
    for step in range(1, jumps - 1):
        far, apart = (int(x) for x in mechanism.refinement(here + 1, step))
        moved = torch.arange(0, far + 1, apart)
        reached = (reached[:, None] - moved).flatten()
        reached = reached[reached >= 0].unique()
    first, last = mechanism.bounds(reached[None, :, None].transpose(1, 2), here)
    known = torch.nn.functional.pad(last, (1, 0), value=-1).cummax(2).values[..., :-1]
    missed = (first - known - 1).clamp(min=0).sum() + (tokens - 1 - last.max()).clamp(min=0)
    return {"flops": float(mechanism.cost(shape, Layout(causal=True)).flops), "missed": float(missed)}


def grows_as_third_root(found: Figures) -> Finding:
    """The exponent is a third to 0.05, and none is missed."""
    rows = sorted(found.rows, key=lambda row: row["tokens"])
    power = math.log(rows[-1]["flops"] / rows[0]["flops"], rows[-1]["tokens"] / rows[0]["tokens"])
    missed = max(found("missed"))
    told = f"n^{power:.3f} from {rows[0]['tokens']:,} to {rows[-1]['tokens']:,} tokens; {missed:.0f} positions missed"
    return Finding.of(told, abs(power - 1 / 3) <= 0.05, missed == 0)


@quick(steps=[20], trained=[64], asked=[128])
@measured(seed=range(2), steps=[800], trained=[1024], asked=[4096])
def far_needle(seed: int, steps: int, trained: int, asked: int) -> dict[str, float]:
    """The share of needles that four layers find in four times as many tokens as they were trained on at most.

    Each step is of texts of that length, a half, a quarter or an eighth of it, as many as have 4,096 tokens together:
    of long ones alone nothing was learned in 1,000 steps.
    """
    task, model = Needle(vocabulary=32), LM(Config(32, 32, DEEP, heads=4, inner=64), seed)

    def loss(ready: nn.Module, generator: torch.Generator) -> Tensor:
        length = trained >> int(torch.randint(4, (), generator=generator))
        return F.cross_entropy(*predicted(ready, task, length, 4 * trained // length, generator))

    fit(model, loss, Recipe(steps, 5e-3, seed=seed))
    return {"near": accuracy_of(model, task, trained, 64)[0], "far": accuracy_of(model, task, asked, 64)[0]}


def is_found_at_4k(found: Figures) -> Finding:
    """At least 95%."""
    near, far = found("near"), found("far")
    told = f"{listed(near, '.1%')} in the most tokens that were trained on, {listed(far, '.1%')} in four times as many"
    return Finding.of(told, min(far) >= 0.95)


@measured(arm=tuple(LAYERS), seed=range(2), steps=[400])
def needle(arm: str, seed: int, steps: int) -> dict[str, float]:
    """The share of needles that two layers find among as many tokens as they were trained on, and four times as many.

    Windows reach the last 95 of them.
    """
    task, model = Needle(vocabulary=32), LM(Config(32, 32, LAYERS[arm], heads=4, inner=64), seed)

    def loss(ready: nn.Module, generator: torch.Generator) -> Tensor:
        return F.cross_entropy(*predicted(ready, task, TRAINED, 16, generator))

    fit(model, loss, Recipe(steps, 5e-3, seed=seed))
    return {"near": accuracy_of(model, task, TRAINED, 64)[0], "far": accuracy_of(model, task, ASKED, 64)[0]}


def is_found(found: Figures) -> Finding:
    """At least 95% with spans, at most half by windows."""
    told, held = [], []
    for arm in LAYERS:
        near, far = (found(name, arm=arm) for name in ("near", "far"))
        told.append(f"{arm} {listed(near, '.1%')} in {TRAINED} tokens, {listed(far, '.1%')} in {ASKED}")
        held.append(min(far) >= 0.95 if arm == "superlinear" else max(far) <= 0.5)
    return Finding.of("; ".join(told), *held)
