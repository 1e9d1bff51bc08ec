"""Mixtures of heads: gates of one are multi-head attention, fewer heads cost little, and all of them are used."""

from __future__ import annotations

import argparse
import inspect

import torch
from torch import Generator, Tensor, nn

import regard
from regard.blocks.attention import Attention
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.networks import LM, Config
from regard.projections.base import Grouped
from regard.projections.mixture import load_balance, routed_tokens, to_mixture
from regard.train.fit import Recipe, fit

KEPT = 80_000
"""Bytes to train on; the rest, some 20,000, are held out."""


@measured(router=("norm", "softmax"), shared=(0, 2))
def gates_of_one(router: str, shared: int) -> dict[str, float]:
    """How far a converted projection with all heads routed is from what it was."""
    torch.manual_seed(0)
    plain = Grouped(Sizes(24, 4, 2, 5, 7)).double()
    mixed = to_mixture(plain, shared, router=router)  # pyright: ignore
    x = torch.randn(2, 17, 24, dtype=torch.float64)
    both = (Attention(regard.build("softmax"), p).double()(x, Layout(causal=True)) for p in (mixed, plain))
    return {"apart": torch.sub(*both).abs().max().item()}


def source() -> Tensor:
    return torch.tensor(list(inspect.getsource(argparse).encode("ascii", "replace")))


def windows(codes: Tensor, generator: Generator, low: int, high: int, count: int, n: int = 64) -> Tensor:
    starts = torch.randint(low, high - n, (count, 1), generator=generator)
    return codes[starts + torch.arange(n)]


@measured(projection=("grouped", "moh(shared=2, routed=4)"), seed=range(2), steps=[400])
def trained(projection: str, seed: int, steps: int) -> dict[str, float | None]:
    """Held-out loss of a language model of bytes with 8 heads, and the largest variation of a layer's loads."""
    codes = source()
    model = LM(Config(128, width=64, heads=8, layers="softmax*2", projection=projection), seed=seed)

    def loss(ready: nn.Module, generator: Generator) -> Tensor:
        with routed_tokens(model) as calls:
            value = model.loss(windows(codes, generator, 0, KEPT, 16))
        return value + 0.01 * sum(load_balance(*mixture.route(x)) for mixture, x in calls)

    fit(model, loss, Recipe(steps, seed=seed))
    held_out = windows(codes, torch.Generator().manual_seed(99), KEPT, len(codes), 256)
    with torch.no_grad(), routed_tokens(model) as calls:
        value = model.loss(held_out).item()
    loads = [mixture.route(x)[1].double().mean((0, 1)) for mixture, x in calls]
    varied = max(((load.std(correction=0) / load.mean()).item() for load in loads), default=None)
    return {"loss": value, "variation": varied}


def loses_little(found: Figures) -> Finding:
    """On average at most 0.02 nats more than all heads."""
    some, every = (found("loss", projection=projection) for projection in ("moh(shared=2, routed=4)", "grouped"))
    gaps = [a - b for a, b in zip(some, every, strict=True)]
    return Finding.of(
        f"loss {', '.join(f'{gap:+.3f}' for gap in gaps)} from that of all heads", sum(gaps) / len(gaps) <= 0.02
    )


def are_used_alike(found: Figures) -> Finding:
    """Loads vary by less than half of their mean."""
    worst = max(found("variation", projection="moh(shared=2, routed=4)"))
    return Finding.of(f"loads vary by {worst:.2f} at most", worst < 0.5)
