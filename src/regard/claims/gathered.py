"""Gather and distribute: what one injection lets a fine level read of a coarse one, folded blocks, printed sizes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import regard
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.claims.necks import neck, pyramid
from regard.claims.testbeds.maps import apart, count, drawn, stirred
from regard.featuremap.resize import pooled, resize
from regard.networks.vision.gold_yolo import SIZES, GoldYoloNetwork
from regard.train.fit import Recipe, fit

CHANNELS, SIDE = (8, 16, 32, 64), 32


class Reader(nn.Module):
    """One injection into the finest level and a matrix that says a sign of each of its cells.

    Args:
        seen: False where the coarsest map does not go in.
    """

    def __init__(self, seen: bool) -> None:
        super().__init__()
        made: Any = regard.neck("gold_yolo(gathered=16)")(CHANNELS, out=(8, 16, 32))
        self.low, self.inject, self.split, self.seen = made.low, made.inject3, made.split[0], seen
        self.read = nn.Conv2d(8, 1, 1)

    def forward(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """What is said, and the signs ``(32, 1, 4, 4)`` that the coarsest map shows; all other maps are noise."""
        signs = torch.randint(2, (32, 1, 4, 4), generator=generator).float() * 2 - 1
        maps = [torch.randn(32, c, SIDE // 2**n, SIDE // 2**n, generator=generator) for n, c in enumerate(CHANNELS)]
        fine, third = torch.randn(32, 8, SIDE // 2, SIDE // 2, generator=generator), maps[2]
        coarse = signs.expand(-1, CHANNELS[3], -1, -1) if self.seen else torch.zeros(32, CHANNELS[3], 4, 4)
        gathered = (pooled(maps[0], third), pooled(maps[1], third), third, resize(coarse, third, "bilinear"))
        found = self.inject(fine, self.low(torch.cat(gathered, 1)).split(self.split, 1)[1])
        return pooled(self.read(found), signs), signs


@measured(seed=range(3), seen=(True, False), steps=[100])
def cues(seed: int, seen: bool, steps: int) -> dict[str, float]:
    """The share of signs, shown by the coarsest map alone, that are read from the finest level after one injection."""
    torch.manual_seed(seed)
    reader = Reader(seen)

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        said, signs = model(generator)
        return F.softplus(-signs * said).mean()

    fit(reader, loss, Recipe(steps, 1e-2, decay=0.0, seed=seed))
    reader.eval()
    with torch.no_grad():
        said, signs = reader(torch.Generator().manual_seed(1_000 + seed))
    return {"right": (said.sign() == signs).float().mean().item()}


def is_read(found: Figures) -> Finding:
    """At least 90% with the coarsest map, at most 60% without."""
    with_it, without = (found("right", seen=word) for word in (True, False))
    figure = f"{min(with_it):.1%} of the signs or more, without the coarsest map {max(without):.1%} or less"
    return Finding.of(figure, min(with_it) >= 0.9, max(without) <= 0.6)


@measured(text=("gold_yolo", "gold_yolo(share=0.5)"))
def folded(text: str) -> dict[str, float]:
    """The neck with its blocks folded against the neck, all parameters and statistics moved."""
    made, maps = stirred(neck(text, (4, 8, 6, 10), 8)), pyramid((4, 8, 6, 10), 23, 14)
    for place, (name, buffer) in enumerate(made.named_buffers()):
        if name.endswith(("mean", "var")):
            buffer.copy_(drawn(*buffer.shape, seed=place).abs() + 0.1)
    with torch.no_grad():
        pairs = zip(made(maps), made.folded()(maps), strict=True)
        return {"apart": max(apart(one, other) / one.abs().max().item() for one, other in pairs)}


@measured(size=tuple(SIZES))
def sizes(size: str) -> dict[str, int]:
    """Parameters of a size with its blocks folded, and FLOPs of an image of 640 × 640."""
    with torch.device("meta"):
        net = GoldYoloNetwork(size).eval().folded()
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, 640, 640))
    return {"parameters": count(net), "flops": counter.get_total_flops()}


def are_printed(found: Figures) -> Finding:
    """Parameters to the last printed digit; FLOPs to a thousandth, since the printed ones count norms too."""
    told, held = [], []
    for size, printed in SIZES.items():
        own, work = found.one("parameters", size=size) / 1e6, found.one("flops", size=size) / 1e9
        told.append(f"{size} {own:.3f} M and {work:.2f} G ({printed.parameters} M and {printed.flops} G printed)")
        held += [round(own, 1) == printed.parameters, abs(work / printed.flops - 1) < 1e-3]
    return Finding.of(", ".join(told), *held)
