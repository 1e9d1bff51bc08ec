"""SHViT: one head of attention over part of the channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample, shown_by
from regard.networks.stages.design import Design
from regard.networks.stages.network import Stages
from regard.networks.stages.norms import ConvNorm
from regard.networks.stages.presets import Preset, preset
from regard.networks.vision.vit import image_sample

ENDS: dict[str, Any] = {
    "stem": "convolutions(count=4, activation=relu, bias=False)",
    "down": "merge_normed",
    "head": "mean(before=False)",
    "norm": "batch",
}


def design(depths: Sequence[int], widths: Sequence[int], parts: Sequence[int | None]) -> Design:
    """The network of so many blocks in each stage, one head over so many channels; None for no attention."""
    layers = tuple(
        f"(local + {'' if part is None else f'single_head(channels={part}) + '}normed_mlp)*{depth}"
        for depth, part in zip(depths, parts, strict=True)
    )
    return Design(tuple(widths), layers, **ENDS)


PRESETS = {
    "shvit_s1": Preset(design((2, 4, 5), (128, 224, 320), (None, 48, 68)), "6.3", "0.241", exact=6_330_808),
    "shvit_s2": Preset(design((2, 4, 5), (128, 308, 448), (None, 66, 96)), "11.4", "0.366"),
    "shvit_s3": Preset(design((3, 5, 5), (192, 352, 448), (None, 75, 96)), "14.2", "0.601"),
    "shvit_s4": Preset(design((4, 7, 6), (224, 336, 448), (None, 72, 96)), "16.5", "0.986", 256, 16_588_484),
}


def examples() -> list[Sample]:
    """Two stages, attention in the second, its norms past the zeros that they begin with."""
    small = Stages(design((1, 1), (16, 24), (None, 10)), 7)
    with torch.no_grad():
        for module in small.modules():
            if isinstance(module, ConvNorm):
                module.norm.weight.fill_(0.7)
    return [image_sample("shvit", small, (65, 49), presets=PRESETS)]


@published(
    "shvit",
    family="vit",
    kind="network",
    row=245,
    title="SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design",
    arxiv="2401.16456",
    year=2024,
    aliases=("single_head_vit",),
    fidelity="third-party code",
    claim=(
        Claim(
            "parameters and multiply-adds, at 256 × 256 of the largest and 224 × 224 of the others, are those printed",
            cells="stages.sizes_of(family='shvit')",
            holds="stages.are_printed",
        ),
        Claim(
            "batch norms folded into convolutions change nothing",
            cells="stages.folded",
            holds="common.within(most=1e-4)",
        ),
    ),
)
@shown_by(examples)
def shvit(name: str = "shvit_s1", classes: int = 1000, channels: int = 3, seed: int = 0) -> Stages:
    """Three stages from a sixteenth of the resolution: depthwise convolution, one head of attention, a perceptron.

    The first stage has no attention. `Stages.folded` is the network as it is deployed.

    Args:
        name: shvit_s1 to shvit_s4. classes, channels, seed: see `Stages`.

    Paper: Yun and Ro, arXiv 2401.16456.
    """
    return preset(PRESETS, name, classes, channels, seed)
