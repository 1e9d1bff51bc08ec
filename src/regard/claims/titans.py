"""Attention joined with a memory that learns while it reads: the three forms of Titans."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.claims.cells import Cells, measured
from regard.claims.figures import Figures, Finding, listed
from regard.networks.lm import LM, Config
from regard.networks.titans import FORMS, TitansLM
from regard.tasks.needles import Needle
from regard.train.fit import Recipe, fit
from regard.train.lm import accuracy_of, predicted

WINDOW, VOCABULARY = 32, 62
RATE, JOINED = 3e-3, 1e-3
"""Of learning: with the higher one, memories joined with attention diverged after 240 and 420 steps (as gate, as
context), as they were given values of norms from 10 to 20 to learn."""


@measured(form=tuple(FORMS))
def states(form: str) -> dict[str, float]:
    """Bytes of the state after 4,000 tokens over those after 100."""
    model = TitansLM(Config(32, 32, "softmax*2", heads=2), form, 16, 4, "titans(chunk=8, hidden=2)", seed=0)
    ids = torch.randint(32, (1, 4000), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sizes = [model.extend(ids[:, :n], model.start(1))[1].bytes for n in (100, 4000)]
    return {"grown": sizes[1] / sizes[0]}


def do_not_grow(found: Figures) -> Finding:
    """Not by a byte."""
    grown = found("grown")
    return Finding.of(f"{listed(grown, '.3f')} times the bytes after 4,000 tokens", max(grown) == 1)


@measured(form=("window", "memory", *FORMS), seed=range(2), steps=[1500])
def needle(form: str, seed: int, steps: int) -> dict[str, float]:
    """The share of 4 needles that two layers find in 1,024 tokens, trained on 128, and in 128.

    ``window`` has windows alone, ``memory`` a memory behind a window, each as a layer. Not `AssociativeRecall`, whose
    filler has the keys too: of 32 ids each stands thirty times in 1,024 tokens, with other ids behind it.
    """
    task = Needle(4, 4, VOCABULARY)
    config = Config(VOCABULARY, 64, "softmax*2", heads=2)
    if form in FORMS:
        model = TitansLM(config, form, WINDOW, 4, seed=seed)
    else:
        behind = "titans" if form == "memory" else f"window(size={WINDOW})"
        model = LM(replace(config, layers=f"window(size={WINDOW}), {behind}"), seed)

    def loss(ready: nn.Module, generator: torch.Generator) -> Tensor:
        return F.cross_entropy(*predicted(ready, task, 128, 16, generator))

    fit(model, loss, Recipe(steps, JOINED if form in FORMS else RATE, seed=seed))
    return {"long": accuracy_of(model, task, 1024, 128)[0], "short": accuracy_of(model, task, 128, 256)[0]}


def mechanism() -> Cells:
    """The memory as a layer of its own."""
    return needle.where(form=("window", "memory"))


def joined() -> Cells:
    """The memory joined with attention, one seed of each form, twice as many steps of the lower rate."""
    return needle.where(form=("window", *FORMS), seed=[0], steps=[3000])


def finds(found: Figures) -> Finding:
    """At eight times the trained length, with every seed 20 points more than windows alone."""
    long, short = found.by("form", "long"), found.by("form", "short")
    told = "; ".join(
        f"{form} {listed(shares, '.1%')} (in 128 {listed(short[form], '.1%')})" for form, shares in long.items()
    )
    alone = long.pop("window")
    more = [share - other for shares in long.values() for share, other in zip(shares, alone, strict=True)]
    return Finding.of(f"4 needles found in 1,024 tokens: {told}", min(more) >= 0.2)
