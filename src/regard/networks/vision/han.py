"""HAN: super-resolution whose groups of layers attend to each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.build import build
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.build import gate
from regard.networks.base import Network
from regard.networks.vision.vit import image_sample


class GatedResidual(nn.Module):
    """``x + se(C_2 relu(C_1 x))``: a residual block whose channels are weighed (RCAB)."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.gate = gate(f"se(ratio={ratio})")(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gate(self.second(torch.relu(self.first(x))))


class ResidualGroup(nn.Module):
    """``x + C(blocks(x))``."""

    def __init__(self, channels: int, blocks: int, ratio: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(GatedResidual(channels, ratio) for _ in range(blocks)))
        self.last = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.blocks(x))


class LayerAttention(nn.Module):
    """Softmax attention between layers: each layer's whole map is a token, and those least like it weigh most.

        y = x + γ A x,   A = softmax_j(−x_i · x_j)

    γ begins as zero. Shapes: ``maps (b, layers, c, y, x)`` -> the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.gamma = build("softmax", scale=1.0), nn.Parameter(torch.zeros(()))

    def forward(self, maps: Tensor) -> Tensor:
        tokens = maps.flatten(2)[:, None]
        return maps + self.gamma * self.attention(-tokens, tokens, tokens).view_as(maps)


class ChannelSpatialAttention(nn.Module):
    """``x + γ σ(C x) ⊙ x``, C a 3 × 3 × 3 convolution over channels, rows and columns; γ begins as zero."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.gamma = nn.Conv3d(1, 1, 3, padding=1), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * torch.sigmoid(self.convolution(x[:, None])[:, 0]) * x


@published(
    "han",
    family="featuremap",
    kind="network",
    row=161,
    title="Single Image Super-Resolution via a Holistic Attention Network",
    arxiv="2008.08767",
    year=2020,
    fidelity="authors' code",
    claim=(
        Claim(
            "as many parameters as the authors' network, with the fixed numbers of its colour shifts",
            cells="map_networks.han",
            holds="map_networks.has(parameters=15924057)",
        ),
        Claim(
            "both attentions begin as the identity",
            cells="map_networks.han_start",
            holds="map_networks.begins_plain",
        ),
        Claim(
            "attention between layers is softmax attention of negated products: a layer weighs itself least among "
            "its like",
            cells="map_networks.layers_apart",
            holds="map_networks.is_of_the_unlike",
        ),
    ),
)
class HAN(Network):
    """Images of s times the rows and columns, by groups of gated residual blocks that attend to each other.

        f_i = group_i(f_{i−1}), f_{n+1} = C f_n,   y = up(f_0 + D [csam(f_{n+1}); E lam([f_{n+1} … f_1])])

    All maps f_1 … f_{n+1}, the latest first, are the tokens of `LayerAttention`, the last one is weighed by
    `ChannelSpatialAttention`. With both at zero this is no RCAN: the convolutions D and E are there still.

    Shapes: ``images (b, 3, y, x)`` with colours from 0 to ``peak`` -> ``(b, 3, s y, s x)``.

    Args:
        scale: s: 2, 3, 4 or 8. channels, groups, blocks, ratio: of the trunk and its gates. peak: of the colours.

    Raises:
        ValueError: another scale.

    Paper: Niu et al., arXiv 2008.08767. The authors' options default to 128 channels, the paper has 64.
    """

    def __init__(
        self,
        scale: int = 2,
        channels: int = 64,
        groups: int = 10,
        blocks: int = 20,
        ratio: int = 16,
        peak: float = 255,
    ) -> None:
        super().__init__()
        if scale not in (2, 3, 4, 8):
            raise wrong("scale", str(scale), "2, 3, 4 or 8")

        def convolution(inside: int, outside: int) -> nn.Conv2d:
            return nn.Conv2d(inside, outside, 3, padding=1)

        mean = peak * torch.tensor([0.4488, 0.4371, 0.4040])
        self.register_buffer("mean", mean[:, None, None], persistent=False)
        self.first = convolution(3, channels)
        self.groups = nn.ModuleList(ResidualGroup(channels, blocks, ratio) for _ in range(groups))
        self.trunk = convolution(channels, channels)
        self.layers, self.cells = LayerAttention(), ChannelSpatialAttention()
        self.joined, self.both = convolution((groups + 1) * channels, channels), convolution(2 * channels, channels)
        steps = (3,) if scale == 3 else (2,) * (scale.bit_length() - 1)
        ups = [layer for s in steps for layer in (convolution(channels, s * s * channels), nn.PixelShuffle(s))]
        self.upsample = nn.Sequential(*ups, convolution(channels, 3))

    mean: Tensor

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        def made() -> HAN:
            net = cls(2, 16, 2, 1, 4, 1.0)
            for gamma in (net.layers.gamma, net.cells.gamma):
                nn.init.constant_(gamma, 0.3)
            return net

        return [image_sample("han", made(), (7, 5), 3, output=(3, 14, 10), again=made)]

    def forward(self, images: Tensor) -> Tensor:
        start = self.first(images - self.mean)
        maps = self.maps(start)
        joined = self.joined(self.layers(torch.stack(maps, 1)).flatten(1, 2))
        h = start + self.both(torch.cat((self.cells(maps[0]), joined), 1))
        return self.upsample(h) + self.mean

    def maps(self, start: Tensor) -> list[Tensor]:
        """The maps ``(b, c, y, x)`` that attend to each other, the latest first."""
        found = [start]
        for layer in (*self.groups, self.trunk):
            found.insert(0, layer(found[0]))
        return found[:-1]
