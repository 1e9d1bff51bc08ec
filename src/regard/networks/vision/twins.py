"""Twins: pyramids whose layers see a window, then a summary of every window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample, shown_by
from regard.networks.stages.design import Design
from regard.networks.stages.network import Stages
from regard.networks.stages.presets import Preset, preset
from regard.networks.vision.vit import image_sample

NORM = "layer(eps=1e-06)"


def design(
    depths: Sequence[int],
    widths: Sequence[int],
    heads: Sequence[int],
    window: int | None = 7,
    ratios: Sequence[int] = (8, 4, 2, 1),
    inner: Sequence[int] = (4, 4, 4, 4),
    patch: int = 4,
) -> Design:
    """The network of so many layers in each stage.

    Args:
        window: side of the windows of every other layer; None for summaries alone (PCPVT). ratios: cells along a side
            that one summary stands for. inner: of the perceptrons' inner channels to the stage's. patch: side of the
            first patches.
    """
    layers = tuple(stage(*sizes, window) for sizes in zip(depths, ratios, inner, strict=False))
    ends: dict[str, Any] = {"stem": f"patch(side={patch}, norm=layer)", "down": "patch(side=2, norm=layer)"}
    return Design(tuple(widths), layers, tuple(heads), **ends, norm=NORM, start="fan_out")


def stage(depth: int, ratio: int, inner: int, window: int | None) -> str:
    """The layers of a stage, positions behind the first."""
    blocks = []
    for place in range(depth):
        local = window is not None and place % 2 == 0
        attention = f"windows(side={window})" if local else f"summary(ratio={ratio}, norm=layer)"
        blocks.append(f"{attention} + mlp(ratio={inner}){' + cpe' if place == 0 else ''}")
    return ", ".join(blocks)


def svt(depths: Sequence[int], width: int, heads: int) -> Design:
    """SVT of these layers, whose channels and heads double from stage to stage."""
    return design(depths, [width * 2**n for n in range(4)], [heads * 2**n for n in range(4)])


def pcpvt(depths: Sequence[int]) -> Design:
    """PCPVT of these layers."""
    return design(depths, (64, 128, 320, 512), (1, 2, 5, 8), None, inner=(8, 8, 4, 4))


PRESETS = {
    "twins_svt_small": Preset(svt((2, 2, 10, 4), 64, 2), "24", "2.9", exact=24_060_776),
    "twins_svt_base": Preset(svt((2, 2, 18, 2), 96, 3), "56", "8.6"),
    "twins_svt_large": Preset(svt((2, 2, 18, 2), 128, 4), "99.2", "15.1"),
    "twins_pcpvt_small": Preset(pcpvt((3, 4, 6, 3)), "24.1", "3.8"),
    "twins_pcpvt_base": Preset(pcpvt((3, 4, 18, 3)), "43.8", "6.7"),
    "twins_pcpvt_large": Preset(pcpvt((3, 8, 27, 3)), "60.9", "9.8"),
}


def examples() -> list[Sample]:
    """Both kinds, at sides that windows and summaries do not divide."""
    sizes = ((2, 2), (12, 20), (2, 4))
    return [
        image_sample(
            name, Stages(design(*sizes, window, (2, 1), patch=2), 7, 1), (15, 20), 1, presets=PRESETS if window else {}
        )
        for name, window in (("SVT", 2), ("PCPVT", None))
    ]


@published(
    "twins",
    family="vit",
    kind="network",
    row=67,
    title="Twins: Revisiting the Design of Spatial Attention in Vision Transformers",
    arxiv="2104.13840",
    year=2021,
    aliases=("twins_svt", "twins_pcpvt", "gsa", "lsa"),
    fidelity="third-party code",
    claim=(
        Claim("windows equal attention in each window", cells="vision.windows", holds="common.within(most=1e-9)"),
        Claim(
            "a window layer and a summary layer let every token reach every other",
            cells="vision.pair_of_layers",
            holds="vision.reaches_every_token",
        ),
        Claim(
            "parameters and multiply-adds at 224 × 224 are those printed",
            cells="stages.sizes_of(family='twins')",
            holds="stages.are_printed",
        ),
        Claim(
            "small SVT and PCPVT tell at least 97% of held-out digits",
            cells="vision.twins_on_digits",
            holds="common.at_least(figure=right, least=0.97, said='digits of SVT and PCPVT', form='.1%')",
        ),
    ),
)
@shown_by(examples)
def twins(name: str = "twins_svt_small", classes: int = 1000, channels: int = 3, seed: int = 0) -> Stages:
    """A pyramid of stages whose layers alternate between windows and summaries, or see summaries alone.

        SVT: layers 1, 3, 5 … `Windows`, layers 2, 4, 6 … `Summary`;   PCPVT: all `Summary`
        positions by a convolution behind the first layer of each stage

    Args:
        name: twins_svt_small, _base, _large, or twins_pcpvt_ likewise. classes, channels, seed: see `Stages`.

    Paper: Chu et al., arXiv 2104.13840. Sides that windows or summaries do not divide: padding is no key of a window.
    """
    return preset(PRESETS, name, classes, channels, seed)
