"""Layers that attend by turns to a window and to all: what they keep, and what they find."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.claims.projections import CAUSAL, WIDTH, attention, extended, hidden
from regard.core.layout import Layout
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.sparse.global_nsa import GlobalNative
from regard.networks.alternating_nsa import alternating_nsa
from regard.networks.lm import LM, Config
from regard.projections.group_latent import GroupLatent
from regard.projections.rotary import Rotary
from regard.tasks.associative import AssociativeRecall
from regard.train.fit import Recipe, fit
from regard.train.lm import accuracy_of, predicted

WINDOW = 16


@measured()
def all_selected() -> dict[str, float]:
    """How far it is from softmax attention with every block selected, over 83 tokens."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 83, 8, dtype=torch.float64)
    on = torch.ones(2, 4, 83, dtype=torch.float64)
    got = GlobalNative(4, 21)(q, k, v, Layout(causal=True), compressed=0 * on, selected=on)
    return {"apart": (got - Softmax()(q, k, v, Layout(causal=True))).abs().max().item()}


@measured()
def absorbed_groups() -> dict[str, float]:
    """How far the absorbed form is from the expanded one, with two groups, in one call and in four."""
    torch.manual_seed(0)
    expanded, turn, x = GroupLatent(WIDTH, 4, 2, 6, 5, 4, 7, 10).double(), Rotary(4), hidden(19)
    want, layer = attention(expanded, turn)(x, CAUSAL), attention(expanded.as_form("absorbed"), turn)
    return {"apart": max((out - want).abs().max().item() for out in (layer(x, CAUSAL), extended(layer, x)[0]))}


@measured()
def cached() -> dict[str, float]:
    """Bytes of the state after 8,192 tokens over those of native sparse attention, 16 heads over 4, as many layers."""
    own = alternating_nsa(64, 256, 4, heads=16, groups=4, rank=16, plain=16, rotary=0, inner=8, seed=0)
    nsa = LM(Config(64, 256, "mean_nsa*4", heads=16, kv_heads=4, inner=8), 0)
    return {"share": own.state_bytes(8192) / nsa.state_bytes(8192)}


def is_half(found: Figures) -> Finding:
    """At most."""
    share = found.one("share")
    return Finding.of(f"{share:.1%} of the bytes after 8,192 tokens", share <= 0.5)


@measured(kind=("alternating", "nsa"), seed=range(2), steps=[600])
def needle(kind: str, seed: int, steps: int) -> dict[str, float]:
    """The share of 4 pairs that four layers recall after 8 windows of 16 tokens, blocks of 8, three of them chosen."""
    task = AssociativeRecall(4, 32)
    if kind == "nsa":
        layers = f"mean_nsa(block=8, budget=4, window={WINDOW})*4"
        model = LM(Config(32, 64, layers, heads=4, kv_heads=2, inner=64), seed)
    else:
        model = alternating_nsa(32, 64, 4, 4, 2, 16, 16, 8, WINDOW, 8, 4, 64, seed)

    def loss(ready: nn.Module, generator: torch.Generator) -> Tensor:
        return F.cross_entropy(*predicted(ready, task, 8 * WINDOW, 16, generator))

    fit(model, loss, Recipe(steps, 3e-3, seed=seed))
    return {"found": accuracy_of(model, task, 8 * WINDOW, 128)[0]}


def finds_as_well(found: Figures) -> Finding:
    """On average."""
    own, nsa = (found("found", kind=kind) for kind in ("alternating", "nsa"))
    figure = f"recall of 4 pairs {listed(own, '.1%')}, with three branches everywhere {listed(nsa, '.1%')}"
    return Finding.of(figure, sum(own) >= sum(nsa))
