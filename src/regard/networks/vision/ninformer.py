"""NiNformer: a perceptron mixer as the gate of each layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regard.blocks.spatial import flat, patch_grid
from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.networks.base import Network
from regard.networks.vision.vit import image_sample


def perceptron(width: int, inner: int) -> nn.Sequential:
    """Two matrices with an activation between."""
    return nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))


class Mixer(nn.Module):
    """``m = z + M_n(norm(z)ᵀ)ᵀ,  y = m + M_d(norm'(m))``: perceptrons over the tokens, then over the channels.

    Args:
        tokens: n. width: d. inner: of both perceptrons.
    """

    def __init__(self, tokens: int, width: int, inner: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.tokens, self.channels = perceptron(tokens, inner), perceptron(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norms[0](x).mT).mT
        return x + self.channels(self.norms[1](x))


class GatedLayer(nn.Module):
    """``h = x + (W z + b) ⊙ mixer(z),  y = h + M(norm(h)),  z = norm(x)``, both through one norm.

    As in the authors' code; W and the perceptrons have biases.
    """

    def __init__(self, tokens: int, width: int, inner: int) -> None:
        super().__init__()
        self.norm, self.gate = nn.LayerNorm(width), nn.Linear(width, width)
        self.mixer, self.network = Mixer(tokens, width, inner), perceptron(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(x)
        x = x + self.gate(z) * self.mixer(z)
        return x + self.network(self.norm(x))


@published(
    "ninformer",
    family="vit",
    kind="network",
    row=97,
    title="NiNformer: A Network in Network Transformer with Token Mixing Generated Gating Function",
    arxiv="2403.02411",
    year=2024,
    fidelity="hand values",
    claim=(
        Claim(
            "a layer of 64 tokens, width 256 and inner width 512 has as many parameters as the authors' code",
            cells="stages.ninformer_layer",
            holds="stages.is_ninformer",
        ),
        Claim(
            "its layer takes fewer multiply-adds than that of ViT, of four times the inner width, from 196 tokens on",
            cells="stages.ninformer_work",
            holds="stages.is_cheaper",
        ),
        Claim(
            "on digits at most a point below the perceptron mixer",
            cells="stages.ninformer_digits",
            holds="stages.is_no_worse",
        ),
    ),
)
class NiNformer(Network):
    """Patches, layers whose value of each token is gated by what a perceptron mixer makes of all, the mean, classes.

    Shapes: ``images (b, channels, height, width)`` of one size -> ``(b, classes)``.

    Args:
        classes: to tell apart. image: height and width. patch: side of a square one. width: of the tokens. depth: how
            many layers. inner: of the perceptrons. channels: of the images. gated: False for the mixer alone
            (MLP-Mixer). seed: of the weights.

    Raises:
        ValueError: patches that do not divide the image; in a call, images of another size.

    Paper: Abdullah and Aydin, arXiv 2403.02411.
    """

    def __init__(
        self,
        classes: int = 10,
        image: tuple[int, int] = (32, 32),
        patch: int = 4,
        width: int = 256,
        depth: int = 4,
        inner: int = 512,
        channels: int = 3,
        gated: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.grid = patch_grid(image, patch)
        kind, tokens = (GatedLayer if gated else Mixer), self.grid[0] * self.grid[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.patches = nn.Conv2d(channels, width, patch, patch)
            self.layers = nn.ModuleList(kind(tokens, width, inner) for _ in range(depth))
            self.classes = nn.Linear(width, classes)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [image_sample("ninformer", cls(7, (6, 10), 2, 12, 2, 17), (6, 10))]

    def intermediates(self, images: Tensor) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What each layer's values are multiplied by ``(b, 1, n, width)``, the mixer's output."""
        x, found = self.embed(images), {}
        for place, layer in enumerate(self.layers):
            if isinstance(layer, GatedLayer):
                found[f"layers.{place}"] = layer.mixer(layer.norm(x))[:, None]
            x = layer(x)
        return found

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        for layer in self.layers:
            x = layer(x)
        return self.classes(x.mean(1))

    def embed(self, images: Tensor) -> Tensor:
        """The tokens ``(b, n, width)`` of images, row by row."""
        patches = self.patches(images)
        if patches.shape[2:] != self.grid:
            raise wrong("images", f"{tuple(images.shape)}", f"images of {self.grid[0]} × {self.grid[1]} patches")
        return flat(patches)
