"""Edits of attention on key–value lookup in SmolLM2: searched on some contexts, measured on others, with controls."""

from __future__ import annotations

import copy
import math
import random
from functools import cache

import torch
from torch import Tensor

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.claims.testbeds.key_values import (
    CONTEXT,
    DEPTHS,
    PAIRS,
    SPANS,
    Lookups,
    Made,
    ask,
    drawn,
    gain,
    looked_up,
    read_contexts,
    smollm2,
)
from regard.core.edit import Edit
from regard.edits.act import ACT
from regard.edits.found_in_the_middle import FoundInTheMiddle, SpanMasses
from regard.edits.tilt import Highlight, KnockOut
from regard.edits.zero_tuning import ZeroTuning
from regard.hosts.steer import steer

SEARCHED, HELD_OUT = 6, 14
"""Contexts that are searched, and those that are held out; five lookups in each."""
LATE = slice(CONTEXT, None)
UPPER = range(15, 30)


@cache
def held_out() -> tuple[Lookups, Tensor, Tensor]:
    """Contexts that no search sees, and what the model makes of them without an edit."""
    lookups = drawn(HELD_OUT, 2)
    return lookups, *looked_up(lookups)


@cache
def searched() -> tuple[Lookups, Tensor]:
    """Contexts to search on, likewise."""
    lookups = drawn(SEARCHED, 1)
    return lookups, looked_up(lookups)[0]


def measure(name: str, *edits: Edit | Made) -> dict[str, float]:
    """The gain of edits on the contexts held out, with its interval, by depth, and how many are recalled whole."""
    lookups, plain, right = held_out()
    edited, now = looked_up(lookups, *edits)
    mean, low, high = gain(plain, edited)
    found = {"gain": mean, "low": low, "high": high, "recalled": now.float().mean().item()}
    by_depth = {f"at {depth}": value for depth, value in zip(DEPTHS, (edited - plain).mean(0).tolist(), strict=True)}
    return {f"{name} {what}": value for what, value in (found | by_depth).items()} | {
        "recalled": right.float().mean().item()
    }


@measured()
def highlight() -> dict[str, float]:
    """The asked line highlighted, another line, and the asked line knocked out, for the question's rows."""
    source = random.Random(3)
    other = {depth: source.choice([pair for pair in range(PAIRS) if pair != depth]) for depth in DEPTHS}
    found = measure("asked", lambda depth: Highlight([SPANS[depth]], 1.0, rows=LATE))
    found |= measure("other", lambda depth: Highlight([SPANS[other[depth]]], 1.0, rows=LATE))
    return found | measure("knocked out", lambda depth: KnockOut([SPANS[depth]], rows=LATE))


def highlighted(found: Figures) -> Finding:
    """Highlighting the right line helps, its interval above zero and above another line's; knocking it out hurts."""
    asked, other, out = (found.one(f"{name} gain") for name in ("asked", "other", "knocked out"))
    low, high = found.one("asked low"), found.one("asked high")
    figure = (
        f"log-probability of a digit {asked:+.2f} ({low:+.2f} to {high:+.2f}), another line highlighted {other:+.2f}, "
        f"the line knocked out {out:+.2f}; recalled {found.one('asked recalled'):.0%} of {found.one('recalled'):.0%}"
    )
    return Finding.of(figure, low > 0, asked > other, out < 0)


@measured()
def zero_tuning() -> dict[str, float]:
    """γ searched over all heads, then measured with the same factor at random other tokens beside it."""
    lookups, plain = searched()
    grid = {gamma: gain(plain, looked_up(lookups, ZeroTuning(gamma))[0])[0] for gamma in (0.5, 0.8, 1.25, 2.0)}
    gamma = max(grid, key=lambda value: grid[value])
    found = {f"searched {value}": mean for value, mean in grid.items()} | {"gamma": gamma}
    found |= measure("first", ZeroTuning(gamma))
    source, unseen = random.Random(4), held_out()
    for control in range(3):
        at = source.randrange(1, CONTEXT)
        edited, _ = looked_up(unseen[0], Highlight([(at, at + 1)], math.log(gamma)))
        found[f"token {control}"] = gain(unseen[1], edited)[0]
    return found


def zero_tuned(found: Figures) -> Finding:
    """The searched γ gains on contexts held out, its interval above zero, and more than at any random token."""
    controls = [found.one(f"token {control}") for control in range(3)]
    low, high, mean = (found.one(f"first {what}") for what in ("low", "high", "gain"))
    figure = (
        f"γ = {found.one('gamma'):g}: log-probability of a digit {mean:+.3f} ({low:+.3f} to {high:+.3f}), "
        f"at random tokens {min(controls):+.3f} to {max(controls):+.3f}"
    )
    return Finding.of(figure, low > 0, mean > max(controls))


@measured()
def act() -> dict[str, float]:
    """ACT with the authors' α and β in their layers, all heads."""
    return measure("all heads", ACT(layers=range(2, 29)))


def calibrated(found: Figures) -> Finding:
    """Sinks in the text give back their mass and the lookups do not lose."""
    low, high, mean = (found.one(f"all heads {what}") for what in ("low", "high", "gain"))
    figure = f"all heads, α = 0.1, β = 0.4: log-probability of a digit {mean:+.3f} ({low:+.3f} to {high:+.3f})"
    return Finding.of(figure, low > 0)


@measured()
def found_in_the_middle() -> dict[str, float]:
    """The bias of places fitted on the searched contexts, τ searched there, then measured."""
    lookups, plain = searched()
    bias = bias_of_places(lookups)
    grid = {}
    for temperature in (0.02, 0.1, 0.5):
        edit = FoundInTheMiddle(SPANS, bias, temperature, rows=LATE)
        grid[temperature] = gain(plain, looked_up(lookups, edit)[0])[0]
    best = max(grid, key=lambda value: grid[value])
    found = {f"searched {value}": mean for value, mean in grid.items()} | {"temperature": best}
    return found | measure("upper half", FoundInTheMiddle(SPANS, bias, best, rows=LATE))


def bias_of_places(lookups: Lookups) -> dict[int, Tensor]:
    """By layer ``(heads, pairs)``: the attention of a question to a line that it does not ask for."""
    sums: dict[int, Tensor] = {}
    read = read_contexts(lookups)
    counts = torch.zeros(PAIRS)
    for index, depth in enumerate(DEPTHS):
        reading = SpanMasses(SPANS, layers=UPPER, rows=LATE)
        with steer(smollm2()[0], reading):
            ask(copy.deepcopy(read), lookups.asked[:, index])
        unasked = torch.arange(PAIRS) != depth
        counts += unasked
        for layer, means in reading.means().items():
            sums[layer] = sums.get(layer, torch.zeros_like(means)) + means * unasked
    return {layer: (total / counts).float() for layer, total in sums.items()}


def middle_found(found: Figures) -> Finding:
    """Lookups in the middle gain and those at the ends do not lose more than 0.1."""
    mean, low, high = (found.one(f"upper half {what}") for what in ("gain", "low", "high"))
    at = {depth: found.one(f"upper half at {depth}") for depth in DEPTHS}
    inner = sum(at[depth] for depth in (2, 5, 7)) / 3
    figure = (
        f"τ = {found.one('temperature'):g}: log-probability of a digit {mean:+.3f} ({low:+.3f} to {high:+.3f}), in the "
        f"middle {inner:+.3f}, of the first {at[0]:+.3f} and the last {at[9]:+.3f}"
    )
    return Finding.of(figure, low > 0, inner > 0, min(at[0], at[9]) > -0.1)
