"""Inverted pyramids: where their exchanges begin, and what they cost beside their largest network alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from regard.blocks.spatial import flat
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.claims.testbeds.maps import drawn
from regard.networks.vision.piip import PIIP, PYRAMIDS, Branch, Tokens


@measured(deformable=(True, False))
def alone(deformable: bool) -> dict[str, bool]:
    """Whether every branch of an untrained pyramid gives what its layers alone give of its image."""
    net = PIIP((Branch(32, 2, 2, 2), Branch(16, 4, 1, 3), Branch(8, 2, 1, 5)), 2, deformable, steps=2, places=3)
    net, images, same = net.double().eval(), drawn(2, 3, 80, 52), True
    with torch.no_grad():
        found = net.features(images)
        for place, image in enumerate(net.sized(images)):
            x = net.tokens[place](image)
            want = flat(x)
            for layer in net.layers[place].children():
                want = layer(want, (x.shape[2], x.shape[3]))
            same = same and torch.equal(flat(found[place]), want)
    return {"same": same}


def is_alone(found: Figures) -> Finding:
    """Bit by bit, with both kinds of exchange."""
    return Finding.of(f"{sum(found('same'))} of {len(found.rows)} bit by bit", all(found("same")))


def multiply_adds(net: torch.nn.Module, side: int) -> int:
    """Of an image of so many pixels a side."""
    with FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, side, side))
    return counter.get_total_flops() // 2


class Single(torch.nn.Module):
    """The largest network of a pyramid alone."""

    def __init__(self, net: PIIP) -> None:
        super().__init__()
        first: Tokens = net.tokens[0]  # pyright: ignore[reportAssignmentType]
        self.tokens, self.layers = first, net.layers[0]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.tokens(images)
        x, size = flat(tokens), (tokens.shape[2], tokens.shape[3])
        for layer in self.layers.children():
            x = layer(x, size)
        return F.relu(x)


@measured(pyramid=["TSB"])
def work(pyramid: str) -> dict[str, int]:
    """Multiply-adds of the branches and exchanges of a pyramid, and of its largest network, at its finest size."""
    side = PYRAMIDS[pyramid][-1].side
    with torch.device("meta"):
        net = PIIP(pyramid).eval()
        return {"pyramid": multiply_adds(Features(net), side), "single": multiply_adds(Single(net), side)}


class Features(torch.nn.Module):
    """The branches and exchanges without what merges them."""

    def __init__(self, net: PIIP) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net.features(images)[0]


def is_at_most(found: Figures, share: float) -> Finding:
    """A share of the single network's."""
    own, single = found.one("pyramid") / 1e9, found.one("single") / 1e9
    return Finding.of(f"{own:.0f} G, the largest network {single:.0f} G: {own / single:.0%}", own <= share * single)
