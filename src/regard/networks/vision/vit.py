"""A plain vision transformer around any bidirectional mechanisms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from regard.blocks.spatial import patch_grid
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.core.spec import parse_layers
from regard.networks.base import Network
from regard.networks.benchmark import BACKBONES, Backbone, layer_of
from regard.networks.lm import Config

T = TypeVar("T", bound=nn.Module)


class ViT(Network):
    """Patches, a learned position for each, layers, and the classes read from the mean of the tokens.

        h_0 = patches W + P,   h_{l+1} = layer_l(h_l),   logits = norm(mean_i h_L,i) W_c

    Shapes: ``images (b, channels, height, width)`` -> ``(b, classes)``.

    Args:
        config: the sizes; its vocabulary is the number of classes, its rotary positions are not used. image: height
            and width. patch: side of a square one. channels: of the images. backbone: see `networks.benchmark`.
            seed: of the weights.

    Raises:
        ValueError: patches that do not divide the image, or a mechanism that is causal only.

    Paper: Dosovitskiy et al., arXiv 2010.11929; here without a class token, as in Zhai et al., 2106.04560.
    """

    def __init__(
        self,
        config: Config,
        image: tuple[int, int],
        patch: int,
        channels: int = 1,
        backbone: Backbone = "sequential",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.grid = config, patch_grid(image, patch)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.patches = nn.Conv2d(channels, config.width, patch, patch)
            self.positions = nn.Parameter(0.02 * torch.randn(self.grid[0] * self.grid[1], config.width))
            plain, parsed = replace(config, rotary_base=None), parse_layers(config.layers)
            self.layers = nn.ModuleList(
                layer_of(plain, layer, index, "noncausal self", backbone) for index, layer in enumerate(parsed)
            )
            self.classes = nn.Linear(config.width, config.vocabulary)
        self.norm = nn.RMSNorm(config.width, config.eps)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        config = Config(7, 24, "softmax, window(size=3)", heads=2, inner=17)
        return [image_sample(backbone, cls(config, (6, 10), 2, 3, backbone)) for backbone in BACKBONES]

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        for layer in self.layers:
            x = layer(x, Layout(), None)
        return self.classes(self.norm(x.mean(1)))

    def embed(self, images: Tensor) -> Tensor:
        """The tokens ``(b, n, width)`` of images, row by row."""
        patches = self.patches(images)
        if patches.shape[2:] != self.grid:
            raise wrong("images", f"{tuple(images.shape)}", f"images of {self.grid[0]} × {self.grid[1]} patches")
        return patches.flatten(2).mT + self.positions


def image_sample(
    label: str, model: nn.Module, size: tuple[int, int] = (6, 10), channels: int = 3, classes: int = 7, **given: Any
) -> Sample:
    """A classifier of images for the laws, with random pixels for it, and what else they are ``given``."""
    about = {"inputs": partial(random_images, (channels, *size)), "output": (classes,)}
    return Sample(label, model, about | given)


def random_images(shape: tuple[int, int, int], batch: int, seed: int) -> tuple[Tensor]:
    """``(b, channels, height, width)`` of normal noise."""
    return (torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed)),)


def settled(network: T, *inputs: Tensor) -> T:
    """The network in evaluation, its batch norms with the statistics that these inputs have: deep examples stay in
    range."""
    norms = [each for each in network.modules() if isinstance(each, nn.BatchNorm2d | nn.BatchNorm1d)]
    momenta = [each.momentum for each in norms]
    for each in norms:
        each.momentum = 1.0
    with torch.no_grad():
        network.train()(*inputs)
    for each, momentum in zip(norms, momenta, strict=True):
        each.momentum = momentum
    return network.eval()
