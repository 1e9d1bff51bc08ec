"""Boundaries of drawn shapes under noise: what junctions draw, and how well boundaries are found."""

from __future__ import annotations

import math
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from regard.claims.cells import measured, quick
from regard.claims.figures import Figures, Finding, interval
from regard.claims.testbeds.maps import apart, drawn
from regard.networks.vision.boundary_attention import BoundaryAttention, Sizes, boundary_loss
from regard.networks.vision.junctions import Junction, patches
from regard.tasks.edges import canny
from regard.train.fit import Recipe, fit

SMALL = Sizes(1, 32, 8, 4, 7, 64, 1, 2, 2, 9, (3, 5, 9), 2, 32, 32)
NOISE = 0.3
"""The deviation where shapes and ground differ by half of it to three times it: about 10 dB."""


@measured()
def drawn_junctions() -> dict[str, float]:
    """How far distances are from those to points along the rays, wedges from one in sum, colours from their means."""
    junction = Junction.of(drawn(2, 7, 3, 4))
    x, y = junction.away(9)
    ray = junction.boundaries[:, :, None, None]
    ahead = (x * ray.cos() + y * ray.sin()).clamp(min=0)  # how far along the ray its nearest point is
    near = torch.hypot(x - ahead * ray.cos(), y - ahead * ray.sin()).amin(1, keepdim=True)
    worst = apart(junction.distances(9), 4.5 * near)
    whole = apart(junction.wedges(9).sum(1), torch.ones(2, 9, 9, 3, 4, dtype=torch.float64))
    torch.manual_seed(0)
    net = BoundaryAttention(SMALL).double()
    images = drawn(1, 1, 13, 14)
    first = net.rounds(images)[0]
    wedges, cut = first.junction.wedges(9), patches(images, 9)
    shares = wedges / wedges.sum((2, 3), keepdim=True)
    coloured = (wedges * (shares * cut).sum((2, 3), keepdim=True)).sum(1)
    return {"apart": max(worst, whole, apart(coloured, first.parts[:, 0]))}


def shapes(count: int, side: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """``(images (count, 1, side, side), distances to the nearest boundary)``: a disc and a triangle on a ground."""
    steps = torch.arange(side) + 0.5
    y, x = (each[None] for each in torch.meshgrid(steps, steps, indexing="ij"))

    def uniform(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(count, generator=generator))[:, None, None]

    radius = uniform(side / 8, side / 4)
    disc = radius - torch.hypot(x - uniform(0.2 * side, 0.8 * side), y - uniform(0.2 * side, 0.8 * side))
    turn, cx, cy, size = (
        uniform(0, 2 * math.pi),
        uniform(0.3 * side, 0.7 * side),
        uniform(0.3 * side, 0.7 * side),
        radius,
    )
    corners = [(cx + 1.6 * size * (turn + a).cos(), cy + 1.6 * size * (turn + a).sin()) for a in (0.0, 2.1, 4.2)]
    sides = list(zip(corners, corners[1:] + corners[:1], strict=True))
    inside = torch.stack([(u - s) * (y - t) - (v - t) * (x - s) for (s, t), (u, v) in sides]).amin(0) > 0
    edges = torch.stack([to_segment(x, y, *a, *b) for a, b in sides]).amin(0)
    values = uniform(0, 1), uniform(0.3, 0.7), uniform(0.3, 0.7)
    image = torch.where(disc > 0, (values[0] + values[1]) % 1, values[0])
    image = torch.where(inside, (image + values[2]) % 1, image)
    arc = torch.where(inside, torch.inf, disc.abs())  # the triangle hides the disc
    return image[:, None], torch.minimum(arc, edges)[:, None]


def to_segment(x: Tensor, y: Tensor, s: Tensor, t: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """The distance from points to the segment from (s, t) to (u, v)."""
    along = (((x - s) * (u - s) + (y - t) * (v - t)) / ((u - s).square() + (v - t).square())).clamp(0, 1)
    return torch.hypot(x - s - along * (u - s), y - t - along * (v - t))


def best_f1(score: Tensor, distances: Tensor) -> float:
    """The highest F1 over thresholds, see `f1`."""
    return max(
        f1(score > score.flatten(1).quantile(part.item(), 1)[:, None, None, None], distances)
        for part in torch.linspace(0.5, 0.995, 34)
    )


def f1(chosen: Tensor, distances: Tensor) -> float:
    """Found pixels are right at most 1 from a boundary; those at most 1 from a found one are found of a boundary."""
    if not chosen.any():
        return 0.0
    right = (distances[chosen] <= 1).double().mean()
    reached = F.max_pool2d(chosen.float(), 3, 1, 1)[distances < 0.75].double().mean()
    return (2 * right * reached / (right + reached).clamp(min=1e-9)).item()


def best_canny(images: Tensor, distances: Tensor) -> float:
    """The highest F1 of Canny's edges over its Gaussian and its upper threshold, 2.5 times the lower one."""
    thresholds = torch.linspace(0.02, 0.3, 15).tolist()
    return max(
        f1(canny(images, deviation, 0.4 * high, high), distances)
        for deviation in (1.0, 1.5, 2.0, 3.0)
        for high in thresholds
    )


def gradient(images: Tensor, deviation: float) -> Tensor:
    """The length of the gradient of the image, smoothed by a Gaussian."""
    steps = torch.arange(-6, 7)
    bell = torch.exp(-(steps**2) / (2 * deviation**2))
    slope = -steps * bell
    bell, slope = bell / bell.sum(), slope / bell.sum()
    padded = F.pad(images, (6, 6, 6, 6), mode="reflect")
    ways = [torch.outer(slope, bell), torch.outer(bell, slope)]
    return F.conv2d(padded, torch.stack(ways)[:, None].float()).square().sum(1, keepdim=True).sqrt()


@quick(seed=[0], steps=[10])
@measured(seed=range(2), steps=[400])
def found(seed: int, steps: int) -> dict[str, float]:
    """F1 on unseen images of the network, of the best smoothed gradient and of Canny's best edges, and in images twice
    as large."""
    model: Any = BoundaryAttention(SMALL, seed)

    def loss(ready: Any, generator: Generator) -> Tensor:
        images, distances = shapes(4, 28, generator)
        noisy = images + NOISE * torch.randn(images.shape, generator=generator)
        return boundary_loss(ready.rounds(noisy), images, distances)

    fit(model, loss, Recipe(steps, 2e-3, decay=0.0, seed=seed))
    told = {}
    for name, side in (("", 28), ("_large", 56)):
        generator = Generator().manual_seed(10_000)
        images, distances = shapes(24, side, generator)
        noisy = images + NOISE * torch.randn(images.shape, generator=generator)
        with torch.no_grad():
            own = -torch.cat([model(part)[:, -2:-1] for part in noisy.split(4)])
        told[f"own{name}"] = best_f1(own, distances)
        told[f"gradient{name}"] = max(best_f1(gradient(noisy, each), distances) for each in (1.0, 1.5, 2.0, 3.0))
        told[f"canny{name}"] = best_canny(noisy, distances)
    return told


def is_above_gradients(rows: Figures) -> Finding:
    """By 0.1 in the mean of the seeds, at both sizes."""
    parts = []
    for name in ("", "_large"):
        own, others = rows(f"own{name}"), [mean(rows(f"{other}{name}")) for other in ("gradient", "canny")]
        told = f"{interval(own, '.2f')} against {others[0]:.2f} and Canny's {others[1]:.2f}"
        parts.append((told, mean(own) >= max(others) + 0.1))
    return Finding.of(f"F1 {parts[0][0]}, in images twice as large {parts[1][0]}", *(held for _, held in parts))
