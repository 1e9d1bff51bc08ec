"""DaViT: windows of cells, then groups of channels, in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample, shown_by
from regard.networks.stages.design import Design
from regard.networks.stages.network import Stages
from regard.networks.stages.presets import Preset, preset
from regard.networks.vision.vit import image_sample

BLOCK = "cpe + windows(side={window}) + cpe + mlp + cpe + channels + cpe + mlp"
"""A block of both attentions."""


def design(depths: Sequence[int], widths: Sequence[int], heads: Sequence[int], window: int = 7) -> Design:
    """The network of so many blocks in each stage."""
    block = BLOCK.format(window=window)
    layers = tuple(f"({block})*{depth}" for depth in depths)
    ends: dict[str, Any] = {"stem": "patch(side=4, kernel=7, filled=True)", "down": "patch(side=2, before=True)"}
    return Design(tuple(widths), layers, tuple(heads), **ends, head="mean(before=False)")


SMALL = ((96, 192, 384, 768), (3, 6, 12, 24))
PRESETS = {
    "davit_tiny": Preset(design((1, 1, 3, 1), *SMALL), "28.3", "4.5", exact=28_360_168),
    "davit_small": Preset(design((1, 1, 9, 1), *SMALL), "49.7", "8.8", exact=49_745_896),
    "davit_base": Preset(design((1, 1, 9, 1), (128, 256, 512, 1024), (4, 8, 16, 32)), "87.9", "15.5", exact=87_954_408),
}


def examples() -> list[Sample]:
    """A small one, at sides that windows do not divide."""
    small = design((1, 1), (8, 12), (2, 3), 3)
    return [image_sample("davit", Stages(small, 7), (21, 17), presets=PRESETS)]


@published(
    "davit",
    family="vit",
    kind="network",
    row=54,
    title="DaViT: Dual Attention Vision Transformers",
    arxiv="2204.03645",
    year=2022,
    aliases=("dual_attention_vit",),
    fidelity="third-party code",
    claim=(
        Claim(
            "parameters and multiply-adds at 224 × 224 are those printed",
            cells="stages.sizes_of(family='davit')",
            holds="stages.are_printed",
        ),
        Claim(
            "a layer of channel attention lets every cell reach every other; its cost grows with the cells alone",
            cells="stages.channel_layer",
            holds="stages.is_dense_and_linear",
        ),
    ),
)
@shown_by(examples)
def davit(name: str = "davit_tiny", classes: int = 1000, channels: int = 3, seed: int = 0) -> Stages:
    """Blocks of attention inside of windows and of attention among the channels of groups, each before a perceptron.

    Args:
        name: davit_tiny, davit_small or davit_base. classes, channels, seed: see `Stages`.

    Paper: Ding et al., arXiv 2204.03645. The scale of channel attention is that of the channels, 1 / √(c / groups), as
    in the authors' code, though the sums are over cells. Padding of windows is no key, where theirs is zeros: no
    difference at 224 × 224.
    """
    return preset(PRESETS, name, classes, channels, seed)
