"""FocalNet: contexts of growing reach in place of attention."""

from __future__ import annotations

from collections.abc import Sequence

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample, shown_by
from regard.networks.stages.design import Design
from regard.networks.stages.network import Stages
from regard.networks.stages.presets import Preset, preset
from regard.networks.vision.vit import image_sample


def design(depths: Sequence[int], width: int, levels: int, window: int = 3) -> Design:
    """The network of so many blocks in each stage, each of twice the channels."""
    layers = tuple(f"(focal(levels={levels}, window={window}) + mlp)*{depth}" for depth in depths)
    return Design(tuple(width * 2**n for n in range(len(depths))), layers)


TINY, SMALL = (2, 2, 6, 2), (2, 2, 18, 2)
PRESETS = {
    "focalnet_tiny_srf": Preset(design(TINY, 96, 2), "28.4", "4.4", exact=28_427_116),
    "focalnet_tiny_lrf": Preset(design(TINY, 96, 3), "28.6", "4.5", exact=28_647_928),
    "focalnet_small_srf": Preset(design(SMALL, 96, 2), "49.9", "8.6"),
    "focalnet_small_lrf": Preset(design(SMALL, 96, 3), "50.3", "8.7"),
    "focalnet_base_srf": Preset(design(SMALL, 128, 2), "88.1", "15.3"),
    "focalnet_base_lrf": Preset(design(SMALL, 128, 3), "88.7", "15.4"),
}


def examples() -> list[Sample]:
    """Two stages, the last of one level."""
    small = Design((6, 10), ("focal + mlp", "focal(levels=1, window=5) + mlp"), scale=0.3)
    return [image_sample("focalnet", Stages(small, 7), (21, 17), presets=PRESETS)]


@published(
    "focalnet",
    family="vit",
    kind="network",
    row=238,
    title="Focal Modulation Networks",
    arxiv="2203.11926",
    year=2022,
    aliases=("focal_modulation",),
    fidelity="third-party code",
    claim=(
        Claim(
            "parameters and multiply-adds at 224 × 224 are those printed",
            cells="stages.sizes_of(family='focalnet')",
            holds="stages.are_printed",
        ),
        Claim(
            "contexts of L levels reach as far as their kernels: 7 and 13 cells for kernels 3, 5 and 3, 5, 7",
            cells="stages.focal_reach",
            holds="stages.reaches_as_said",
        ),
    ),
)
@shown_by(examples)
def focalnet(name: str = "focalnet_tiny_srf", classes: int = 1000, channels: int = 3, seed: int = 0) -> Stages:
    """Blocks of focal modulation, `steps.convolution.Focal`, and perceptrons.

    Args:
        name: focalnet_tiny_srf, focalnet_tiny_lrf, and small and base. classes, channels, seed: see `Stages`.

    Paper: Yang et al., arXiv 2203.11926. Two levels are its small reach (SRF), three its large one (LRF).
    """
    return preset(PRESETS, name, classes, channels, seed)
