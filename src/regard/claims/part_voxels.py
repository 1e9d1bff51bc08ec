"""Voxels that know their parts: what they read, and what is read of a set of latents."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.blocks.attention import Attention
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.core.build import build
from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.networks.part_voxels import CoarseLayout, PartVoxels
from regard.projections.base import Grouped
from regard.train.fit import Recipe

SIDE, POINTS, LATENTS, WIDTH = 8, 128, 32, 32


def drawn() -> tuple[PartVoxels, Tensor, Tensor, Tensor, Tensor]:
    """A network, and 40 voxels of five parts that each fall on a token of two views of 9, or on none."""
    generator = Generator().manual_seed(0)
    x, images = (torch.randn(1, size, 16, generator=generator, dtype=torch.float64) for size in (40, 18))
    parts = torch.randint(5, (1, 40), generator=generator)
    views = [torch.where(parts < 4, parts + torch.randint(2, (1, 40), generator=generator) + 9 * v, -1) for v in (0, 1)]
    return PartVoxels(16, 2, 2, 24).double(), x, parts, images, torch.stack(views, -1)


@measured()
def masked() -> dict[str, float]:
    """How far the network is from its blocks under dense masks, the pairs of each written out."""
    net, x, parts, images, tokens = drawn()
    own = parts[0, :, None] == parts[0]
    told = [[any(j in tokens[0, i] for i in own[n].nonzero()[:, 0]) for j in range(18)] for n in range(40)]
    want: Any = x
    with torch.no_grad():
        for block in net.blocks:
            want = block(want, Layout(mask=own[None, None]), images, Layout(mask=torch.tensor(told)[None, None]))
        return {"apart": (net(x, parts, images, tokens) - want).abs().max().item()}


@measured()
def reaches() -> dict[str, float]:
    """By how much a changed image token changes voxels of parts that fall on it, at least, and others, at most."""
    net, x, parts, images, tokens = drawn()
    changed = images.clone()
    changed[0, 2] += 1
    with torch.no_grad():
        apart = (net(x, parts, changed, tokens) - net(x, parts, images, tokens))[0].abs().amax(-1)
    falls = (tokens[0] == 2).any(-1)
    its = torch.isin(parts[0], parts[0][falls])
    return {"own": apart[its].min().item(), "others": apart[~its].max().item(), "share": its.double().mean().item()}


def its_parts(found: Figures) -> Finding:
    """Its own by more, others by no more, than rounding."""
    own, others, share = found.one("own"), found.one("others"), found.one("share")
    figure = f"{share:.0%} of the voxels, by {own:.0e} or more; others by {others:.0e} at most"
    return Finding.of(figure, own > 1e-9, others < 1e-12)


class Sets(nn.Module):
    """Points of surfaces as a set of latents: some of the points, each of which reads them all."""

    def __init__(self) -> None:
        super().__init__()
        self.layout = CoarseLayout(SIDE, WIDTH, 2, 1, 64, 3)
        self.place = nn.Linear(3 + 6 * 4, WIDTH)
        self.reads = Attention(build("softmax"), Grouped(Sizes(WIDTH, 2, 2, 16, 16)))

    def forward(self, points: Tensor) -> Tensor:
        """``(b, cells)`` logits of ``points (b, n, 3)``."""
        turns = (points[..., None] * torch.pi * 2.0 ** torch.arange(4)).flatten(2)
        told = self.place(torch.cat([points, turns.sin(), turns.cos()], -1))
        first = told[:, :LATENTS]
        return self.layout(first + self.reads(first, Layout(), told))


def balls(count: int, middles: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Points of the surfaces of two balls each, in any order, and which cells have their middle in one of the two."""
    centres = torch.rand(count, 2, 1, 3, generator=generator) - 0.5
    radii = 0.25 + 0.25 * torch.rand(count, 2, 1, 1, generator=generator)
    ways = F.normalize(torch.randn(count, 2, POINTS // 2, 3, generator=generator), dim=-1)
    points = (centres + radii * ways).flatten(1, 2)
    inside = ((middles - centres).square().sum(-1) < radii[..., 0].square()).any(1)
    return points[:, torch.randperm(POINTS, generator=generator)], inside


@measured(seed=[0, 1], steps=[5000])
def cells_of_balls(seed: int, steps: int) -> dict[str, float]:
    """Intersection over union of the cells that are read and those that are filled, of 64 pairs of balls not seen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Sets()
    recipe, generator = Recipe(steps), Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(net.parameters(), recipe.rate)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = recipe.rate_at(step)
        points, inside = balls(16, net.layout.middles, generator)
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(net(points), inside.float()).backward()
        optimiser.step()
    points, inside = balls(64, net.layout.middles, Generator().manual_seed(1_000 + seed))
    with torch.no_grad():
        read = net(points) > 0
    return {"iou": ((read & inside).sum() / (read | inside).sum()).item()}


def are_read(found: Figures) -> Finding:
    """To 0.8 with every seed."""
    shares = found("iou")
    told = ", ".join(f"{share:.2f}" for share in shares)
    return Finding.of(f"intersection over union of cells {told}", min(shares) >= 0.8)
