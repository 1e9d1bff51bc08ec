"""Tokens that send themselves: what is left of their messages, and what those that send least are worth."""

from __future__ import annotations

from itertools import pairwise
from statistics import mean
from typing import Any

import torch

from regard.claims.cells import measured, quick
from regard.claims.figures import Figures, Finding, interval
from regard.claims.testbeds.digits import accuracy, digits
from regard.claims.testbeds.maps import apart, drawn, stirred
from regard.networks.vision.dependency_vit import DependencyViT

SIZES: dict[str, Any] = {"width": 32, "heads": 4, "depth": 3, "ratio": 2, "patch": 2, "grid": 4, "channels": 1}


@measured()
def messages() -> dict[str, float]:
    """How far the columns of A are in sum from the messages, and the most that one grew by from layer to layer."""
    net = stirred(DependencyViT(7, 12, 3, 4, 2, 4, 3))
    with torch.no_grad():
        sent = net.sent(drawn(3, 3, 18, 21))
    worst = max(apart(each.weights.sum((1, 2)), each.message) for each in sent)
    grown = max((after.message - before.message).max().item() for before, after in pairwise(sent))
    return {"apart": worst, "grown": grown}


def is_kept(found: Figures) -> Finding:
    """To rounding, and none grew."""
    worst, grown = found.one("apart"), found.one("grown")
    return Finding.of(f"sums differ by {worst:.0e}; no message grew", worst <= 1e-12, grown <= 0)


@quick(seed=[0], steps=[30])
@measured(seed=range(5), steps=[2400])
def pruned(seed: int, steps: int) -> dict[str, float]:
    """Accuracy on held-out digits with all tokens, without the half that sends least behind the second of three
    layers, and without a random half."""
    net = DependencyViT(10, seed=seed, **SIZES)
    found = {"all": accuracy(net, seed, steps)}
    images, labels = digits(seed)[2:]
    for name in ("least", "random"):
        net.prune, net.after = 0.5, (2,)
        chance = torch.Generator().manual_seed(seed) if name == "random" else None
        handle = net.blocks[1].register_forward_hook(
            lambda _, __, out, chance=chance: out if chance is None else (out[0], shuffled(out[1], chance))  # pyright: ignore
        )
        with torch.no_grad():
            found[name] = (net(images).argmax(1) == labels).double().mean().item()
        handle.remove()
    return found


def shuffled(message: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The messages of each image, those of a random half far below those of the others."""
    low = torch.rand(message.shape, generator=generator).argsort(1) < message.shape[1] // 2
    return torch.where(low, 1e-30 * message, message)


def costs_little(found: Figures) -> Finding:
    """A point at most, and less than at random."""
    whole, least, random = (found(name) for name in ("all", "least", "random"))
    told = f"{interval(whole, '.1%')} with all, {interval(least, '.1%')} without the half that sends least"
    figure = f"{told}, {mean(random):.1%} without a random half"
    return Finding.of(figure, mean(whole) - mean(least) <= 0.01, mean(least) > mean(random))
