"""Drawn scenes of textured shapes: one to name, or several to find."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from regard.core.errors import wrong

SHAPES = ("disc", "square", "diamond", "ring", "cross")
SLOTS = 4
"""Quarters of a scene, each with one shape or none."""


@dataclass(frozen=True)
class Scenes:
    """Textured shapes on another texture, among bars, under noise. Everything comes from the generator.

    Args:
        side: rows and columns of a scene. small: the least side of a shape's box, in pixels. bars: in each scene.
        noise: its standard deviation, where the colours of an image differ by about 0.3.

    Raises:
        ValueError: a side that has no room for shapes, fewer bars than none, noise below zero.
    """

    side: int = 32
    small: int = 6
    bars: int = 4
    noise: float = 0.1

    def __post_init__(self) -> None:
        if self.small < 4 or self.side < 4 * self.small:
            raise wrong("side, small", f"{self.side}, {self.small}", "boxes of 4 pixels or more, sides four times that")
        if self.bars < 0 or self.noise < 0:
            raise wrong("bars, noise", f"{self.bars}, {self.noise}", "none or more of each")

    def one(self, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """``(images (count, 3, side, side), kinds (count,))``: one shape anywhere, its box up to 3/4 of the side."""
        kinds = torch.randint(len(SHAPES), (count,), generator=generator)
        half = self.halves((count,), 0.75 * self.side, generator)
        middle = half[:, None] + torch.rand(count, 2, generator=generator) * (self.side - 2 * half)[:, None]
        ground = self.ground(count, generator)
        return self.noisy(self.over(ground, kinds, middle, half, generator), generator), kinds

    def many(self, count: int, generator: Generator, share: float = 0.6) -> tuple[Tensor, Tensor, Tensor]:
        """``(images (count, 3, side, side), kinds (count, 4), boxes (count, 4, 4))``: a shape in a ``share`` of the
        quarters. Kinds are −1 where there is none; boxes are left, top, right, bottom in pixels."""
        kinds = torch.randint(len(SHAPES), (count, SLOTS), generator=generator)
        there = torch.rand(count, SLOTS, generator=generator) < share
        quarter = self.side / 2
        half = self.halves((count, SLOTS), quarter - 1, generator)
        corner = quarter * torch.tensor([[y, x] for y in (0, 1) for x in (0, 1)])
        middle = half[..., None] + torch.rand(count, SLOTS, 2, generator=generator) * (quarter - 2 * half)[..., None]
        middle, images = middle + corner, self.ground(count, generator)
        for slot in range(SLOTS):
            drawn = self.over(images, kinds[:, slot], middle[:, slot], half[:, slot], generator)
            images = torch.where(there[:, slot, None, None, None], drawn, images)
        boxes = torch.cat([middle.flip(-1) - half[..., None], middle.flip(-1) + half[..., None]], -1)
        return self.noisy(images, generator), kinds.masked_fill(~there, -1), boxes

    def halves(self, shape: tuple[int, ...], most: float, generator: Generator) -> Tensor:
        """Half sides of boxes, log-uniform from the least to ``most`` pixels a side."""
        return self.small / 2 * (most / self.small) ** torch.rand(shape, generator=generator)

    def ground(self, count: int, generator: Generator) -> Tensor:
        """A texture, and bars of other colours upon it."""
        image = texture(torch.rand(count, 3, 1, 1, generator=generator), self.side, generator)
        for _ in range(self.bars):
            place = self.side * torch.rand(count, 2, generator=generator)
            turn = math.pi * torch.rand(count, generator=generator)
            along = torch.stack([turn.sin(), turn.cos()], -1)
            away = self.cells() - place[:, None, None]
            length = (away * along[:, None, None]).sum(-1).abs()
            width = (away * torch.stack([along[:, 1], -along[:, 0]], -1)[:, None, None]).sum(-1).abs()
            bar = ((length < self.small / 2) & (width < 1)).float()[:, None]
            image = torch.lerp(image, torch.rand(count, 3, 1, 1, generator=generator).expand_as(image), bar)
        return image

    def cells(self) -> Tensor:
        """The middles ``(side, side, 2)`` of the pixels, y and x."""
        steps = torch.arange(self.side) + 0.5
        return torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1)

    def over(self, image: Tensor, kinds: Tensor, middle: Tensor, half: Tensor, generator: Generator) -> Tensor:
        """The image with a shape of a texture of its own, a third to two thirds away from the image's mean in each of
        the colours, its edge one pixel wide."""
        away = (self.cells() - middle[:, None, None]) / half[:, None, None, None]
        inside = ((1 - reach(away, kinds)) * half[:, None, None] + 0.5).clamp(0, 1)
        apart = (1 + torch.rand(len(image), 3, 1, 1, generator=generator)) / 3
        colour = (image.mean((2, 3), keepdim=True) + apart) % 1
        return torch.lerp(image, texture(colour, self.side, generator), inside[:, None])

    def noisy(self, image: Tensor, generator: Generator) -> Tensor:
        """The image about zero, with noise."""
        return image - 0.5 + self.noise * torch.randn(image.shape, generator=generator)


def reach(away: Tensor, kinds: Tensor) -> Tensor:
    """How far out cells are ``(count, y, x)``: 1 at the edge of each one's shape, below inside of it.

    Args:
        away: ``(count, y, x, 2)``, from the middle, in halves of the box. kinds: ``(count,)`` into `SHAPES`.
    """
    one, other = away.abs().unbind(-1)
    round_, longer, shorter = away.norm(dim=-1), torch.maximum(one, other), torch.minimum(one, other)
    found = (round_, longer, one + other, 1 + (round_ - 0.75).abs() - 0.25, torch.maximum(longer, 1 + shorter - 0.3))
    return torch.stack(found, 1)[torch.arange(len(kinds)), kinds]


def texture(colour: Tensor, side: int, generator: Generator) -> Tensor:
    """Waves ``(count, 3, side, side)`` from a colour ``(count, 3, 1, 1)`` to one that is a quarter another."""
    count = len(colour)
    turn, phase = (2 * math.pi * torch.rand(count, 1, 1, 1, generator=generator) for _ in range(2))
    wave = 2 * math.pi / (3 + 9 * torch.rand(count, 1, 1, 1, generator=generator))
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    mix = 0.5 + 0.5 * torch.sin(wave * (turn.cos() * x + turn.sin() * y) + phase)
    return torch.lerp(colour, torch.rand(count, 3, 1, 1, generator=generator), 0.25 * mix)
