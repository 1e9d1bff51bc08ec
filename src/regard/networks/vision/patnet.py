"""PATNet: convolution of part of the channels, attention to the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample, shown_by
from regard.networks.stages.design import Design
from regard.networks.stages.network import Stages
from regard.networks.stages.presets import Preset, preset
from regard.networks.stages.steps.partial import PartialSelf
from regard.networks.vision.vit import image_sample


def design(
    depths: Sequence[int], width: int, activation: str = "relu", cells: bool = False, heads: int = 4, inner: int = 1280
) -> Design:
    """The network of so many blocks in each stage, whose channels double; the last stage attends among cells."""
    *first, last = depths
    perceptron = f"(activation={activation}, cells={cells})"
    layers = [f"partial_channels{perceptron}*{depth}" for depth in first]
    layers.append(f"(partial_self(count={heads}) + partial_mlp{perceptron})*{last}")
    ends: dict[str, Any] = {
        "stem": "patch(side=4, bias=False)",
        "down": "patch(side=2, bias=False)",
        "head": f"projected(inner={inner}, activation={activation})",
    }
    return Design(
        tuple(width * 2**place for place in range(len(depths))), tuple(layers), **ends, norm="batch", start="all"
    )


PRESETS = {
    "patnet_t0": Preset(design((1, 2, 8, 2), 32, "gelu"), exact=3_486_160),
    "patnet_t1": Preset(design((1, 2, 8, 2), 48, "gelu", True), exact=6_144_552),
    "patnet_t2": Preset(design((2, 2, 6, 4), 64), exact=12_269_816),
    "patnet_s": Preset(design((2, 2, 9, 4), 96), exact=28_013_304),
    "patnet_m": Preset(design((2, 3, 16, 4), 128), exact=59_179_000),
    "patnet_l": Preset(design((2, 3, 20, 4), 160), exact=100_641_336),
}


def examples() -> list[Sample]:
    """Two stages, the table of distances past the zeros that it begins with."""
    small = Stages(design((1, 1), 8, "gelu", True, 3, 11), 7)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in small.modules():
            if isinstance(module, PartialSelf):
                module.table.normal_(generator=generator)
    return [image_sample("patnet", small, (29, 21), presets=PRESETS)]


@published(
    "patnet",
    family="featuremap",
    kind="network",
    title="Partial Channel Network: Compute Fewer, Perform Better",
    arxiv="2502.01303",
    year=2025,
    aliases=("partialnet",),
    fidelity="authors' code",
    claim=Claim(
        "as many parameters as the authors' networks of six sizes, exactly",
        cells="stages.sizes_of(family='patnet')",
        holds="stages.are_printed",
    ),
)
@shown_by(examples)
def patnet(name: str = "patnet_t0", classes: int = 1000, channels: int = 3, seed: int = 0) -> Stages:
    """A pyramid of blocks that convolve a quarter of the channels and attend to or among the others.

    Args:
        name: patnet_t0, _t1, _t2, _s, _m or _l. classes, channels, seed: see `Stages`.

    The share of channels of each layer is searched for with `dynamic_partial` in place of its steps and `search_loss`.

    Paper: Huang et al., arXiv 2502.01303, before "Partial Convolution Meets Visual Attention". Its T1 alone weighs
    cells too. The deviation of channels is that of the map, where the authors take that of a sample.
    """
    return preset(PRESETS, name, classes, channels, seed)
