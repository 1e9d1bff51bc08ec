"""Twins: pyramids whose layers see a window, then a summary of every window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from regard.blocks.attention import Attention
from regard.blocks.spatial import ConditionalPositions, Grid, SpatialReduction, flat
from regard.core.atlas import Claim, published
from regard.core.build import build
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.mechanisms.sparse.pattern import PatternAttention
from regard.networks.base import Network
from regard.networks.vision.vit import image_sample
from regard.patterns import Tiles
from regard.projections.base import Grouped


class TwinsLayer(nn.Module):
    """Attention and a network behind layer norms: ``h = x + attention(norm(x))``, ``y = h + network(norm(h))``."""

    def __init__(self, attention: Attention, width: int) -> None:
        super().__init__()
        self.attention = attention
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x))
        return x + self.network(self.norms[1](x))


def local(width: int, heads: int, grid: Grid, window: int) -> Attention:
    """Attention inside of each window of ``window × window`` tokens; the last ones of a row may be smaller (LSA)."""
    pattern = Tiles(grid, min(window, *grid))
    return Attention(PatternAttention(pattern), Grouped(width, heads, heads, width // heads, width // heads))


def summarised(width: int, heads: int, grid: Grid, ratio: int) -> Attention:
    """Attention of every token to one key for each ``ratio × ratio`` tokens (GSA)."""
    return Attention(build("softmax"), SpatialReduction(width, heads, grid, ratio))


@published(
    "twins",
    family="vit",
    kind="network",
    row=67,
    title="Twins: Revisiting the Design of Spatial Attention in Vision Transformers",
    arxiv="2104.13840",
    year=2021,
    aliases=("twins_svt", "twins_pcpvt", "gsa", "lsa"),
    claim=Claim(
        text="windows equal attention in each window; a window layer and a summary layer let every token reach every "
        "other; SVT-S has 24 million parameters",
        status="works",
        figure="1e-9 in float64; all pairs reached; 24.04 million; digits 98.7% (SVT) and 98.0% (PCPVT)",
        command="pytest tests/claims/test_twins.py",
    ),
)
class Twins(Network):
    """A pyramid of stages whose layers alternate between windows and summaries, or see summaries alone.

        stage: tokens = norm(conv_{p, stride p}(image));   first layer, conditional positions, the other layers
        SVT: layers 1, 3, 5 … `local`, layers 2, 4, 6 … `summarised`;   PCPVT (window None): all `summarised`

    Shapes: ``images (b, channels, height, width)`` -> ``(b, classes)``.

    Args:
        classes: to tell apart. image: height and width. widths, heads, depths: of the stages. ratios: tokens along a
            side that one summary stands for. window: side of a window; None for none. patches: side of the patches of
            each stage. channels: of the images. seed: of the weights.

    Raises:
        ValueError: lists of different lengths, patches that do not divide the image, ratios that do not divide a grid.

    Paper: Chu et al., arXiv 2104.13840. SVT-S is the default, for 1,000 classes of 224 × 224 pixels; projections here
    have no biases.
    """

    def __init__(
        self,
        classes: int = 1000,
        image: Grid = (224, 224),
        widths: Sequence[int] = (64, 128, 256, 512),
        heads: Sequence[int] = (2, 4, 8, 16),
        depths: Sequence[int] = (2, 2, 10, 4),
        ratios: Sequence[int] = (8, 4, 2, 1),
        window: int | None = 7,
        patches: Sequence[int] = (4, 2, 2, 2),
        channels: int = 3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len({len(x) for x in (widths, heads, depths, ratios, patches)}) != 1:
            raise wrong("widths", f"{len(widths)} stages", "as many as heads, depths, ratios and patches")
        self.embeddings, self.norms, self.stages = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        grid, before = image, channels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for width, h, depth, ratio, patch in zip(widths, heads, depths, ratios, patches, strict=True):
                if grid[0] % patch or grid[1] % patch:
                    raise wrong("patches", str(patch), f"a divisor of the sides {grid}")
                grid = (grid[0] // patch, grid[1] // patch)
                self.embeddings.append(nn.Conv2d(before, width, patch, patch))
                self.norms.append(nn.LayerNorm(width))
                layers = [
                    local(width, h, grid, window) if window and i % 2 == 0 else summarised(width, h, grid, ratio)
                    for i in range(depth)
                ]
                self.stages.append(
                    nn.Sequential(
                        TwinsLayer(layers[0], width),
                        ConditionalPositions(width, grid),
                        *(TwinsLayer(layer, width) for layer in layers[1:]),
                    )
                )
                before = width
            self.norm, self.classes = nn.LayerNorm(before), nn.Linear(before, classes)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        sizes = {
            "widths": (12, 20),
            "heads": (2, 4),
            "depths": (2, 2),
            "ratios": (2, 1),
            "patches": (2, 2),
            "channels": 1,
        }
        svt, pcpvt = (cls(7, (12, 20), window=window, **sizes) for window in (2, None))
        large = image_sample("SVT", svt, (12, 20), 1)
        return [
            replace(large, given={**large.given, "published": (cls, 24.0)}),
            image_sample("PCPVT", pcpvt, (12, 20), 1),
        ]

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for embedding, norm, stage in zip(self.embeddings, self.norms, self.stages, strict=True):
            patches = embedding(x)
            x = stage(norm(flat(patches))).mT.unflatten(2, patches.shape[2:])
        return self.classes(self.norm(flat(x)).mean(1))
