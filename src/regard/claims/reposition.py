"""Subjects that read their references: what moving these changes, and for whom."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.networks.reposition import Repositioned

SIDE, CHANNELS, SUBJECT = 12, 4, 6


def box(side: int, top: int, left: int, size: int) -> Tensor:
    """``(side, side)`` bool: a square."""
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[top : top + size, left : left + size] = True
    return mask


def difference(near: bool, left: int) -> float:
    """How far moved references and ones that are concatenated are apart, one subject of 3 × 3 cells."""
    generator = Generator().manual_seed(3)
    x, references = (torch.randn(1, *size, 36, 16, generator=generator, dtype=torch.float64) for size in ((), (1,)))
    inside, places = box(6, 1, 0, 3)[None, None], box(6, 1, left, 3)[None, None]
    outs = [
        Repositioned((6, 6), 16, 2, moved=moved, near=near).double()(x, references, inside, places)
        for moved in (True, False)
    ]
    return (outs[0] - outs[1]).abs().max().item()


@measured(near=(True, False))
def same_box(near: bool) -> dict[str, float]:
    """How far the subject's box in one place in both images is from K/V concatenation."""
    return {"apart": difference(near, 0)}


@measured()
def without_positions() -> dict[str, float]:
    """How far the subject moved by half of the image is from K/V concatenation, in networks without positions."""
    return {"apart": difference(False, 3)}


def smooth(count: int, side: int, generator: Generator) -> Tensor:
    """``(count, channels, side, side)``: random images without fine detail, of variance one."""
    coarse = torch.randn(count, CHANNELS, side // 2 + 1, side // 2 + 1, generator=generator)
    fields = F.interpolate(coarse, (side, side), mode="bicubic", align_corners=True)
    return fields / fields.std((2, 3), keepdim=True)


class Denoiser(nn.Module):
    """What an image was before noise was added, by blocks that favour near cells."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Linear(CHANNELS, 16), nn.Linear(16, CHANNELS)
        self.body = Repositioned((SIDE, SIDE), 16, 2, 2, 32, near=True, seed=seed)

    def forward(self, x: Tensor, references: Tensor, inside: Tensor, places: Tensor) -> Tensor:
        """``(b, n, channels)`` of ``x (b, n, channels)``."""
        return self.last(self.body(self.first(x), self.first(references), inside, places))


def noisy(images: Tensor, generator: Generator) -> Tensor:
    """``(b, n, channels)``: images with as much noise as there is of them."""
    return (images + torch.randn(images.shape, generator=generator)).flatten(2).mT


@cache
def trained(seed: int, steps: int) -> Denoiser:
    """A denoiser that has seen single images, none with a reference."""
    with torch.random.fork_rng(devices=[]):
        net = Denoiser(seed)
    optimiser, generator = torch.optim.AdamW(net.parameters(), 3e-3), Generator().manual_seed(seed)
    none = torch.zeros(16, 0, SIDE, SIDE, dtype=torch.bool)
    for _ in range(steps):
        images = smooth(16, SIDE, generator)
        out = net(noisy(images, generator), torch.zeros(16, 0, SIDE * SIDE, CHANNELS), none, none)
        optimiser.zero_grad()
        F.mse_loss(out, images.flatten(2).mT).backward()
        optimiser.step()
    return net


@measured(arm=("alone", "concatenated", "moved"), seed=[0, 1, 2], steps=[400])
def likeness(arm: str, seed: int, steps: int) -> dict[str, float]:
    """The cosine of a subject of 6 × 6 cells, denoised in one half of an image, and its reference in the other half.

    Target and reference have noise of their own, and backgrounds of their own; 64 of them.
    """
    net, generator, count = trained(seed, steps), Generator().manual_seed(1_000 + seed), 64
    subject = smooth(count, SUBJECT, generator)
    reference, target = smooth(count, SIDE, generator), smooth(count, SIDE, generator)
    top, half = (SIDE - SUBJECT) // 2, SIDE // 2
    inside, places = box(SIDE, top, 0, SUBJECT), box(SIDE, top, half, SUBJECT)
    reference[:, :, inside], target[:, :, places] = subject.flatten(2), subject.flatten(2)
    seen, given = noisy(target, generator), noisy(reference, generator)[:, None]
    masks = [mask.expand(count, 1, -1, -1) for mask in (inside, places)]
    if arm == "alone":
        given, masks = given[:, :0], [mask[:, :0] for mask in masks]
    net.body.moved = arm == "moved"
    with torch.no_grad():
        out = net(seen, given, *masks)
    return {"cosine": F.cosine_similarity(out[:, places.flatten()], subject.flatten(2).mT, dim=-1).mean().item()}


def is_more_like(found: Figures) -> Finding:
    """Moved above concatenated with every seed."""
    alone, joined, moved = (found("cosine", arm=arm) for arm in ("alone", "concatenated", "moved"))

    def told(cosines: list[float]) -> str:
        return ", ".join(f"{cosine:.3f}" for cosine in cosines)

    figure = f"cosine of subject and reference {told(moved)} moved, {told(joined)} concatenated, {told(alone)} without"
    return Finding.of(figure, all(a > b for a, b in zip(moved, joined, strict=True)))
