"""A2N: super-resolution by blocks that choose how much of their attention to use."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.mixtures.attention_in_attention import AttentionInAttention
from regard.networks.base import Network
from regard.networks.vision.vit import image_sample

SLOPE = 0.2


class A2Block(nn.Module):
    """``x + W_2 lrelu(mixture(lrelu(W_1 x)))``, W_1 and W_2 1 × 1 convolutions without biases."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.last = (nn.Conv2d(channels, channels, 1, bias=False) for _ in range(2))
        self.mixture = AttentionInAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mixture(F.leaky_relu(self.first(x), SLOPE))
        return x + self.last(F.leaky_relu(mixed, SLOPE))

    def shares(self, x: Tensor) -> Tensor:
        """What it takes of its two branches ``(b, 2)``: with attention and without."""
        return self.mixture.weights(F.leaky_relu(self.first(x), SLOPE), []).flatten(1)


class PixelAttention(nn.Module):
    """A doubled or tripled map, convolved, each entry weighed by what a matrix makes of its cell, and convolved again.

    ``lrelu(C_2 lrelu(z ⊙ σ(W z + b)))``, z = C_1 of the nearest upsampled map.
    """

    def __init__(self, channels: int, out: int, scale: int) -> None:
        super().__init__()
        self.scale, self.cell = scale, nn.Conv2d(out, out, 1)
        self.first, self.last = nn.Conv2d(channels, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(F.interpolate(x, scale_factor=self.scale, mode="nearest"))
        return F.leaky_relu(self.last(F.leaky_relu(z * torch.sigmoid(self.cell(z)), SLOPE)), SLOPE)


@published(
    "a2n",
    family="featuremap",
    kind="network",
    row=46,
    title="Attention in Attention Network for Image Super-Resolution",
    arxiv="2104.09497",
    year=2021,
    fidelity="authors' code",
    claim=(
        Claim(
            "as many parameters as the paper says, for each scale",
            cells="map_networks.a2n",
            holds="map_networks.is_a2n",
        ),
        Claim(
            "in every block the shares of the two branches sum to one and change with the image",
            cells="map_networks.a2n_shares",
            holds="mixtures.are_of_the_map",
        ),
    ),
)
class A2N(Network):
    """Images of 2, 3 or 4 times the rows and columns, by blocks with a mixture of attention and none.

        y = up(x) + C(upsample(h + T(blocks(h)))),   h = F x,   up bilinear

    Shapes: ``images (b, 3, y, x)`` -> ``(b, 3, s y, s x)``, of any height and width.

    Args:
        scale: s. channels, blocks: of the trunk. upper: channels of the upsampler. colours: of the images.

    Raises:
        ValueError: another scale.

    Paper: Chen et al., arXiv 2104.09497.
    """

    def __init__(self, scale: int = 4, channels: int = 40, blocks: int = 16, upper: int = 24, colours: int = 3) -> None:
        super().__init__()
        if scale not in (2, 3, 4):
            raise wrong("scale", str(scale), "2, 3 or 4")
        self.scale = scale
        self.first, self.trunk = nn.Conv2d(colours, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(A2Block(channels) for _ in range(blocks)))
        steps = (2, 2) if scale == 4 else (scale,)
        widths = (channels, upper)
        self.upsample = nn.Sequential(*(PixelAttention(widths[min(n, 1)], upper, s) for n, s in enumerate(steps)))
        self.last = nn.Conv2d(upper, colours, 3, padding=1)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        def made() -> A2N:
            return cls(2, 24, 2, 8)

        def whole() -> A2N:
            with torch.device("meta"):
                return cls(4)

        given = {"output": (3, 14, 10), "again": made, "published": (whole, 1.047)}
        return [image_sample("a2n", made(), (7, 5), 3, **given)]

    def intermediates(self, images: Tensor) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The weight of each entry in the branch with attention ``(b, c, y, x)`` of each block."""
        h, found = self.first(images), {}
        for place, block in enumerate(self.blocks):
            if isinstance(block, A2Block):
                found[f"blocks.{place}"] = block.mixture.attention(F.leaky_relu(block.first(h), SLOPE))
            h = block(h)
        return found

    def forward(self, images: Tensor) -> Tensor:
        h = self.first(images)
        details = self.last(self.upsample(h + self.trunk(self.blocks(h))))
        return details + F.interpolate(images, scale_factor=self.scale, mode="bilinear", align_corners=False)

    def shares(self, images: Tensor) -> Tensor:
        """What each block takes of its two branches ``(b, blocks, 2)``: with attention and without."""
        h, found = self.first(images), []
        for block in self.blocks:
            if isinstance(block, A2Block):
                found.append(block.shares(h))
            h = block(h)
        return torch.stack(found, 1)
