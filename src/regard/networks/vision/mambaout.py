"""MambaOut: Mamba's blocks without their recurrence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample, shown_by
from regard.networks.stages.design import Design
from regard.networks.stages.network import Stages
from regard.networks.stages.presets import Preset, preset
from regard.networks.vision.vit import image_sample


def design(depths: Sequence[int], widths: Sequence[int]) -> Design:
    """The network of so many blocks in each stage."""
    layers = tuple(f"gated_convolution*{depth}" for depth in depths)
    ends: dict[str, Any] = {"stem": "convolutions(count=2)", "down": "patch(side=2, kernel=3)", "head": "mlp(ratio=4)"}
    return Design(tuple(widths), layers, **ends, norm="layer(eps=1e-06)", start="all")


PRESETS = {
    "mambaout_femto": Preset(design((3, 3, 9, 3), (48, 96, 192, 288)), "7.3", "1.2"),
    "mambaout_kobe": Preset(design((3, 3, 15, 3), (48, 96, 192, 288)), "9.1", "1.5"),
    "mambaout_tiny": Preset(design((3, 3, 9, 3), (96, 192, 384, 576)), "26.5", "4.5"),
    "mambaout_small": Preset(design((3, 4, 27, 3), (96, 192, 384, 576)), "48.5", "9.0"),
    "mambaout_base": Preset(design((3, 4, 27, 3), (128, 256, 512, 768)), "84.8", "15.8"),
}


def examples() -> list[Sample]:
    """Two stages of one block."""
    return [image_sample("mambaout", Stages(design((1, 1), (6, 10)), 7), (21, 17), presets=PRESETS)]


@published(
    "mambaout",
    family="vit",
    kind="network",
    row=250,
    title="MambaOut: Do We Really Need Mamba for Vision?",
    arxiv="2405.07992",
    year=2024,
    aliases=("gated_cnn",),
    fidelity="third-party code",
    claim=Claim(
        "parameters and multiply-adds at 224 × 224 are those printed",
        cells="stages.sizes_of(family='mambaout')",
        holds="stages.are_printed",
    ),
)
@shown_by(examples)
def mambaout(name: str = "mambaout_femto", classes: int = 1000, channels: int = 3, seed: int = 0) -> Stages:
    """Blocks of gated convolutions, `steps.convolution.GatedConvolution`, and no attention.

    Args:
        name: mambaout_femto, _kobe, _tiny, _small or _base. classes, channels, seed: see `Stages`.

    Paper: Yu and Wang, arXiv 2405.07992.
    """
    return preset(PRESETS, name, classes, channels, seed)
