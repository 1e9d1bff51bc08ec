"""The vision transformer of enhanced linear attention, at one resolution."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.layout import Layout
from regard.mechanisms.linear.clamped import Clamped
from regard.networks.benchmark import Layer
from regard.networks.lm import Config
from regard.networks.vision.vit import ViT


class Depthwise(nn.Module):
    """A convolution of every channel over a grid of tokens, ``(b, n, c)`` -> ``(b, n, c)``; n = rows · columns.

    Args:
        width: c. side: of the kernel, odd.
    """

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, side, padding=side // 2, groups=width)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.convolution(x.mT.unflatten(2, grid)).flatten(2).mT


class LocalConcentration(nn.Module):
    """What linear attention lacks: each token gathers from those near it (LCM).

        y = W_2 * batchnorm(gelu(W_1 * x)),   W_1 and W_2 depthwise, 7 × 7

    Shapes: ``x (b, n, width)`` on a grid of n cells -> the same.
    """

    def __init__(self, width: int, side: int = 7) -> None:
        super().__init__()
        self.first, self.second = Depthwise(width, side), Depthwise(width, side)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.second(self.norm(F.gelu(self.first(x, grid)).mT).mT, grid)


class ConcentratedLayer(nn.Module):
    """A layer that knows its tokens' grid.

        x' = x + W_3 * x,   h = x' + attention(norm(x')),   g = h + concentration(norm(h)),   y = g + network(norm(g))

    W_3 is depthwise, 3 × 3: positions from the neighbours. The third step is there after linear attention alone.

    Args:
        layer: attention and network, one after the other. width: of the tokens. grid: rows and columns. concentrated:
            whether there is a third step.
    """

    def __init__(self, layer: Layer, width: int, grid: tuple[int, int], concentrated: bool) -> None:
        super().__init__()
        self.layer, self.grid = layer, grid
        self.positions = Depthwise(width, 3)
        self.concentration = LocalConcentration(width) if concentrated else None
        self.norm = nn.RMSNorm(width)

    def forward(self, x: Tensor, layout: Layout, context: None) -> Tensor:
        x = x + self.positions(x, self.grid)
        x = x + self.layer.attention(self.layer.norms[0](x), Layout(grid=self.grid))
        if self.concentration is not None:
            x = x + self.concentration(self.norm(x), self.grid)
        return x + self.layer.network(self.layer.norms[1](x))


class L2ViT(ViT):
    """A `ViT` of linear layers with local concentration, between layers of other mechanisms such as windows.

    ``Config(layers="neighborhood(size=7), l2vit")`` is its pair of local and global layers. See `ConcentratedLayer`.

    Args:
        config, image, patch, channels, seed: see `ViT`. concentrated: whether linear layers have the module.

    Paper: Zheng, arXiv 2501.16182, whose four stages of falling resolution, convolutional stem and windows that do not
    overlap are not here.
    """

    def __init__(
        self,
        config: Config,
        image: tuple[int, int],
        patch: int,
        channels: int = 1,
        seed: int = 0,
        concentrated: bool = True,
    ) -> None:
        super().__init__(config, image, patch, channels, seed=seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            plain = [cast(Layer, layer) for layer in self.layers]
            linear = [isinstance(layer.attention.mechanism, Clamped) for layer in plain]
            self.layers = nn.ModuleList(
                ConcentratedLayer(layer, config.width, self.grid, concentrated and is_linear)
                for layer, is_linear in zip(plain, linear, strict=True)
            )
