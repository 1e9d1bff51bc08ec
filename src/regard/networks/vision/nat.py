"""NAT and DiNAT: pyramids of neighbourhood attention, dilated in every other layer or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample, shown_by
from regard.networks.stages.design import Design
from regard.networks.stages.network import Stages
from regard.networks.stages.presets import Preset, preset
from regard.networks.vision.vit import image_sample


def design(
    depths: Sequence[int],
    width: int = 64,
    heads: int = 2,
    ratio: float = 3,
    scale: float | None = None,
    dilations: Sequence[int] = (1, 1, 1, 1),
    window: int = 7,
) -> Design:
    """The network of so many layers in each stage, whose channels and heads double.

    Args:
        dilations: of every other layer of each stage, the second first. ratio: of the perceptrons' inner channels.
        scale: of each step at first, None for none.
    """
    layers = []
    for depth, dilation in zip(depths, dilations, strict=False):
        near = f"nat(axes=2, window={window}) + mlp(ratio={ratio})"
        far = near.replace(")", f", dilation={dilation})", 1) if dilation > 1 else near
        layers.append(", ".join((near, far)[place % 2] for place in range(depth)))
    count = len(depths)
    ends: dict[str, Any] = {"stem": "convolutions(between=False)", "down": "patch(side=2, kernel=3, bias=False)"}
    widths, all_heads = (tuple(first * 2**n for n in range(count)) for first in (width, heads))
    return Design(widths, tuple(layers), all_heads, **ends, scale=scale)


MINI, TINY = (3, 4, 6, 5), (3, 4, 18, 5)
SIZES = {
    "mini": ((MINI, 64, 2), ("20", "2.7")),
    "tiny": ((TINY, 64, 2), ("28", "4.3")),
    "small": ((TINY, 96, 3, 2, 1e-5), ("51", "7.8")),
    "base": ((TINY, 128, 4, 2, 1e-5), ("90", "13.7")),
}
PRESETS = {f"nat_{name}": Preset(design(*sizes), *printed) for name, (sizes, printed) in SIZES.items()} | {
    f"dinat_{name}": Preset(design(*sizes, dilations=(8, 4, 2, 1)), *printed)
    for name, (sizes, printed) in SIZES.items()
}


def examples() -> list[Sample]:
    """Two stages, dilated in the second layer, on a map that is smaller than some windows."""
    small = design((2, 1), 6, 2, 2, 0.3, dilations=(2, 1), window=3)
    return [image_sample("dilated", Stages(small, 7), (29, 22), presets=PRESETS)]


@published(
    "nat_network",
    family="vit",
    kind="network",
    title="Neighborhood Attention Transformer",
    arxiv="2204.07143",
    year=2022,
    aliases=("dinat_network",),
    fidelity="authors' code",
    claim=Claim(
        "parameters and multiply-adds at 224 × 224 of NAT and DiNAT are those printed",
        cells="stages.sizes_of(family='nat')",
        holds="stages.are_printed",
    ),
)
@shown_by(examples)
def nat(name: str = "nat_tiny", classes: int = 1000, channels: int = 3, seed: int = 0) -> Stages:
    """A pyramid of layers of neighbourhood attention with relative positions; DiNAT dilates every other one.

    Args:
        name: nat_mini, _tiny, _small or _base, or dinat_ likewise. classes, channels, seed: see `Stages`.

    Papers: Hassani et al., arXiv 2204.07143; Hassani and Shi (DiNAT), 2209.15001. Windows of small maps are moved
    inside and cut; the authors' code fills maps up with zeros, which are keys there.
    """
    return preset(PRESETS, name, classes, channels, seed)
