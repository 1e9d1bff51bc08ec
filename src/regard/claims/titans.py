"""Attention joined with a memory that learns while it reads: the three forms of Titans."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.networks.lm import LM, Config
from regard.networks.titans import FORMS, TitansLM
from regard.tasks.associative import AssociativeRecall
from regard.train.fit import Recipe, fit
from regard.train.lm import accuracy_of, predicted

WINDOW = 32


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


@measured(form=("window", *FORMS), seed=[0], steps=[600])
def needle(form: str, seed: int, steps: int) -> dict[str, float]:
    """The share of 4 pairs that two layers recall after 1,024 tokens, trained on 128, and after 128."""
    task, config = AssociativeRecall(4, 32), Config(32, 64, "softmax*2", heads=2)
    if form == "window":
        model = LM(Config(32, 64, f"window(size={WINDOW})*2", heads=2), seed)
    else:
        model = TitansLM(config, form, WINDOW, 4, seed=seed)

    def loss(ready: nn.Module, generator: torch.Generator) -> Tensor:
        return F.cross_entropy(*predicted(ready, task, 128, 16, generator))

    fit(model, loss, Recipe(steps, 3e-3, seed=seed))
    return {"long": accuracy_of(model, task, 1024, 64)[0], "short": accuracy_of(model, task, 128, 256)[0]}


def finds(found: Figures) -> Finding:
    """At eight times the trained length, each form 20 points more than the window alone."""
    shares = {form: found.one("long", form=form) for form in ("window", *FORMS)}
    told = ", ".join(f"{form} {share:.1%}" for form, share in shares.items())
    best = [shares[form] for form in FORMS]
    return Finding.of(f"recall of 4 pairs after 1,024 tokens: {told}", min(best) >= shares["window"] + 0.2)
