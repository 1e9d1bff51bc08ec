"""Swin: windows, moved by half of their side in every second layer."""

from __future__ import annotations

from collections.abc import Sequence

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample, shown_by
from regard.networks.stages.design import Design
from regard.networks.stages.network import Stages
from regard.networks.stages.presets import Preset, preset
from regard.networks.vision.vit import image_sample


def window_blocks(layers: Sequence[int], side: int = 7, shifted: bool = True) -> str:
    """The blocks of the layers of these numbers; of odd ones the windows are moved by half of their side."""
    plain, moved = (f"windows(side={side}, bias=True{more}) + mlp" for more in ("", f", shift={side // 2}"))
    return ", ".join(moved if shifted and number % 2 else plain for number in layers)


def design(depths: Sequence[int], width: int, heads: int, side: int = 7, last: bool = False) -> Design:
    """The network of so many layers in each stage, whose channels and heads double.

    Args:
        side: of the windows. last: whether windows move in the last stage too, as in networks that detect; for images
            of 32 sides its map is one window.
    """
    end = len(depths) - 1
    layers = tuple(window_blocks(range(depth), side, last or stage < end) for stage, depth in enumerate(depths))
    widths, all_heads = (tuple(first * 2**n for n in range(len(depths))) for first in (width, heads))
    return Design(widths, layers, all_heads, down="merge")


PRESETS = {
    "swin_tiny": Preset(design((2, 2, 6, 2), 96, 3), "29", "4.5", exact=28_288_354),
    "swin_small": Preset(design((2, 2, 18, 2), 96, 3), "50", "8.7", exact=49_606_258),
    "swin_base": Preset(design((2, 2, 18, 2), 128, 4), "88", "15.4", exact=87_768_224),
    "swin_large": Preset(design((2, 2, 18, 2), 192, 6), "197", exact=196_532_476),
}


def examples() -> list[Sample]:
    """Two stages, windows that do not divide the map."""
    small = Stages(design((2, 1), 8, 2, 4), 7)
    return [image_sample("swin", small, (29, 22), presets=PRESETS)]


@published(
    "swin",
    family="vit",
    kind="network",
    title="Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
    arxiv="2103.14030",
    year=2021,
    fidelity="third-party code",
    aliases=("swin_transformer",),
    claim=Claim(
        "parameters and multiply-adds at 224 × 224 are those printed",
        cells="stages.sizes_of(family='swin')",
        holds="stages.are_printed",
    ),
)
@shown_by(examples)
def swin(name: str = "swin_tiny", classes: int = 1000, channels: int = 3, seed: int = 0) -> Stages:
    """A pyramid of windows, which move by half of their side in every second layer.

    Args:
        name: swin_tiny, small, base or large. classes, channels, seed: see `Stages`.

    Paper: Liu et al., arXiv 2103.14030. In the last stage, one window at 224 × 224, none moves, as there.
    """
    return preset(PRESETS, name, classes, channels, seed)
