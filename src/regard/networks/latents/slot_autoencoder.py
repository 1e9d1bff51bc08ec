"""An autoencoder of images through slots: each slot draws one object and says where it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from regard.core.errors import wrong
from regard.networks.latents.slots import Slots

KERNEL = 5


class Drawn(NamedTuple):
    """An image ``(b, c, y, x)``, what slots draw ``(b, M, c, y, x)``, and their shares of pixels ``(b, M, y, x)``."""

    image: Tensor
    parts: Tensor
    shares: Tensor


class SoftPlaces(nn.Module):
    """Adds a map of four coordinates to each cell of a grid: how far it is from either end of either axis, 0 to 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(4, width)

    def forward(self, x: Tensor) -> Tensor:
        """x ``(b, width, y, x)``."""
        ends = [torch.linspace(0, 1, side, dtype=x.dtype, device=x.device) for side in x.shape[2:]]
        y, x_ = torch.meshgrid(*ends, indexing="ij")
        return x + self.map(torch.stack([y, x_, 1 - y, 1 - x_], -1)).permute(2, 0, 1)


class ImageTokens(nn.Module):
    """An image as tokens of its pixels: four convolutions, soft places, a norm and a network of one hidden layer.

    Shapes: ``images (b, c, y, x)`` -> ``(b, y x, width)``.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        sizes = (channels, width, width, width)
        self.layers = nn.Sequential(
            *(part for into in sizes for part in (nn.Conv2d(into, width, KERNEL, padding=KERNEL // 2), nn.ReLU()))
        )
        self.places, self.norm = SoftPlaces(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, images: Tensor) -> Tensor:
        return self.mlp(self.norm(self.places(self.layers(images)).flatten(2).mT))


class SpatialBroadcast(nn.Module):
    """Slots as images: each is copied to all cells of a grid, gets soft places, and is convolved upwards.

    Shapes: ``slots (n, width)`` -> ``(n, channels + 1, grid · 2^doublings, …)``: colours, and a logit of its share.

    Args:
        width: of slots and convolutions. channels: of images. grid: side of the grid. doublings: how often it doubles.
    """

    def __init__(self, width: int, channels: int, grid: int, doublings: int) -> None:
        super().__init__()
        self.grid, self.places = grid, SoftPlaces(width)
        half = KERNEL // 2
        ups = [nn.ConvTranspose2d(width, width, KERNEL, 2, half, output_padding=1) for _ in range(doublings)]
        same = nn.ConvTranspose2d(width, width, KERNEL, padding=half)
        self.layers = nn.Sequential(*(part for layer in (*ups, same) for part in (layer, nn.ReLU())))
        self.out = nn.ConvTranspose2d(width, channels + 1, 3, padding=1)

    def forward(self, slots: Tensor) -> Tensor:
        spread = slots[:, :, None, None].expand(-1, -1, self.grid, self.grid)
        return self.out(self.layers(self.places(spread)))


class SlotAutoencoder(nn.Module):
    """Images through slots and back; what is drawn is the mean of what slots draw, weighted by softmax over slots.

        x = tokens of the image,   z = slots that read x,   (r_m, l_m) = broadcast of z_m
        image = Σ_m softmax_m(l_m) r_m,   loss = (image − given)² in the mean over pixels

    Shapes: ``images (b, c, side, side)`` with side = grid · 2^doublings -> `Drawn`.

    Args:
        slots: how many, `Slots`' rounds and hidden units are its own. channels: of images. width: of everything.
        grid, doublings: of the decoder; 8 and 4 are the paper's for CLEVR, with sides of 128.
        seed: of the initial weights; None takes PyTorch's.

    Raises:
        ValueError: images of another side or other channels.

    Paper: Locatello et al., arXiv 2006.15055, appendix E.3.
    """

    def __init__(
        self,
        slots: int = 7,
        channels: int = 3,
        width: int = 64,
        grid: int = 8,
        doublings: int = 4,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if seed is not None:
            torch.manual_seed(seed)
        self.shape: Sequence[int] = (channels, grid * 2**doublings, grid * 2**doublings)
        self.encoder, self.slots = ImageTokens(channels, width), Slots(width, slots, width)
        self.decoder = SpatialBroadcast(width, channels, grid, doublings)

    def tokens(self, images: Tensor) -> Tensor:
        """What slots read, ``(b, y x, width)``."""
        if images.shape[1:] != torch.Size(self.shape):
            raise wrong("images", f"shape {tuple(images.shape)}", f"(b, {', '.join(map(str, self.shape))})")
        return self.encoder(images)

    def draw(self, slots: Tensor) -> Drawn:
        """What slots ``(b, M, width)`` draw."""
        parts = self.decoder(slots.flatten(0, 1)).unflatten(0, slots.shape[:2])
        colours, shares = parts[:, :, :-1], parts[:, :, -1].softmax(1)
        return Drawn((shares[:, :, None] * colours).sum(1), colours, shares)

    def forward(self, images: Tensor, generator: Generator | None = None) -> Drawn:
        """Args: images, and the generator of what slots begin with."""
        return self.draw(self.slots(self.tokens(images), generator=generator))

    def maps(self, images: Tensor, generator: Generator | None = None) -> list[Tensor]:
        """A of each round, ``(b, M, y, x)``."""
        found = self.slots.maps(self.tokens(images), generator=generator)
        return [a[:, 0].unflatten(2, tuple(self.shape[1:])) for a in found]

    def loss(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """The squared error of what is drawn, in the mean over pixels and colours."""
        return (self(images, generator).image - images).square().mean()
