"""VSA: a pyramid of windows that move and grow by what they show."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample, shown_by
from regard.networks.stages.design import Design
from regard.networks.stages.network import Stages
from regard.networks.stages.steps.varied import VariedWindows
from regard.networks.vision.vit import image_sample


def design(depths: Sequence[int], widths: Sequence[int], heads: Sequence[int], side: int = 7) -> Design:
    """The network of so many layers in each stage, of windows of ``side`` cells."""
    layers = tuple(f"(cpe(side=7) + varied_windows(side={side}) + mlp)*{depth}" for depth in depths)
    return Design(tuple(widths), layers, tuple(heads), down="patch(side=2, before=True)")


def examples() -> list[Sample]:
    """Two stages, their windows past the zeros that their moves begin with."""
    small = Stages(design((1, 1), (8, 12), (2, 3), 3), 7)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in small.modules():
            if isinstance(module, VariedWindows):
                for regressor in (module.scales, module.offsets):
                    regressor.weight.normal_(generator=generator)
    return [image_sample("vsa", small, (33, 26))]


@published(
    "vsa",
    family="vit",
    kind="network",
    row=274,
    title="VSA: Learning Varied-Size Window Attention in Vision Transformers",
    arxiv="2204.08446",
    year=2022,
    aliases=("varied_windows", "varied_size_windows"),
    fidelity="authors' code",
    claim=(
        Claim(
            "it begins as attention in windows; moved, its output is A v with A over all cells",
            cells="stages.varied",
            holds="common.within(most=1e-9)",
        ),
        Claim(
            "what moves the windows gets a gradient through what they read",
            cells="stages.varied_gradients",
            holds="stages.are_reached",
        ),
    ),
)
@shown_by(examples)
def vsa(
    depths: Sequence[int] = (2, 2, 6, 2),
    widths: Sequence[int] = (96, 192, 384, 768),
    heads: Sequence[int] = (3, 6, 12, 24),
    classes: int = 1000,
    channels: int = 3,
    seed: int = 0,
) -> Stages:
    """A pyramid of windows whose keys and values are read from a window of another place and size, by head, each behind
    a depthwise convolution that tells positions.

    Args:
        depths, widths, heads: of each stage. classes, channels, seed: see `Stages`.

    Paper: Zhang et al., arXiv 2204.08446; see `steps.varied.VariedWindows`.
    """
    return Stages(design(depths, widths, heads), classes, channels, seed)
