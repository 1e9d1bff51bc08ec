"""The four stages of L²ViT: windows, then enhanced linear attention over all cells, in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample, shown_by
from regard.networks.stages.design import Design
from regard.networks.stages.network import Stages
from regard.networks.stages.presets import Preset, preset
from regard.networks.vision.vit import image_sample

NEAR = "cpe + windows(side={window}) + cpe + mlp"
FAR = "cpe + l2vit + concentration + mlp"


def design(depths: Sequence[int], widths: Sequence[int], heads: Sequence[int], window: int = 7) -> Design:
    """The network of so many layers in each stage, an even number: of windows, of all cells, in turn."""
    pair = f"{NEAR.format(window=window)}, {FAR}"
    layers = tuple(", ".join([pair] * (depth // 2)) for depth in depths)
    ends: dict[str, Any] = {
        "stem": "convolutions(activation=relu, norm=batch, after=layer)",
        "down": "patch(side=2, before=True)",
    }
    return Design(tuple(widths), layers, tuple(heads), **ends, start="all")


SMALL = ((96, 192, 384, 768), (3, 6, 12, 24))
PRESETS = {
    "l2vit_tiny": Preset(design((2, 2, 6, 2), *SMALL), "29", "4.7"),
    "l2vit_small": Preset(design((2, 2, 18, 2), *SMALL), "50", "9.0"),
    "l2vit_base": Preset(design((2, 2, 18, 2), (128, 256, 512, 1024), (4, 8, 16, 32)), "89", "15.9"),
}


def examples() -> list[Sample]:
    """Two stages of both layers, at sides that windows do not divide."""
    return [image_sample("l2vit", Stages(design((2, 2), (8, 12), (2, 3), 3), 7), (21, 17), presets=PRESETS)]


@published(
    "l2vit_network",
    family="vit",
    kind="network",
    title="The Linear Attention Resurrection in Vision Transformer",
    arxiv="2501.16182",
    year=2025,
    fidelity="authors' code",
    claim=Claim(
        "parameters and multiply-adds at 224 × 224 are those printed",
        cells="stages.sizes_of(family='l2vit_network')",
        holds="stages.are_printed",
    ),
)
@shown_by(examples)
def l2vit_network(name: str = "l2vit_tiny", classes: int = 1000, channels: int = 3, seed: int = 0) -> Stages:
    """A pyramid of layers of windows and of enhanced linear attention with local concentration, in turn.

    Args:
        name: l2vit_tiny, l2vit_small or l2vit_base. classes, channels, seed: see `Stages`.

    Paper: Zheng, arXiv 2501.16182.
    """
    return preset(PRESETS, name, classes, channels, seed)
