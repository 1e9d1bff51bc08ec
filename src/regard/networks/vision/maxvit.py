"""MaxViT: inverted bottlenecks, attention in windows, attention between cells spread over the map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample, shown_by
from regard.networks.stages.design import Design
from regard.networks.stages.network import Stages
from regard.networks.stages.presets import Preset, preset
from regard.networks.vision.vit import image_sample


def design(depths: Sequence[int], widths: Sequence[int], head_dim: int = 32, window: int = 7, stem: int = 64) -> Design:
    """The network of so many blocks in each stage, the first of which begins with the step down."""
    pair = " + ".join(
        f"windows(side={window}, bias=True{more}) + mlp(activation=gelu_tanh)" for more in ("", ", spread=True")
    )
    layers = tuple(f"({pair})" + f", (mbconv + {pair})*{depth - 1}" * (depth > 1) for depth in depths)
    ends: dict[str, Any] = {
        "stem": f"pair(out={stem})",
        "down": "mbconv",
        "head": "mlp(ratio=1, activation=tanh, again=False)",
    }
    return Design(tuple(widths), layers, tuple(width // head_dim for width in widths), **ends)


PRESETS = {
    "maxvit_tiny": Preset(design((2, 2, 5, 2), (64, 128, 256, 512)), "31", "5.6", exact=30_916_528),
    "maxvit_small": Preset(design((2, 2, 5, 2), (96, 192, 384, 768)), "69"),
    "maxvit_base": Preset(design((2, 6, 14, 2), (96, 192, 384, 768)), "120"),
    "maxvit_large": Preset(design((2, 6, 14, 2), (128, 256, 512, 1024), stem=128), "212"),
}


def examples() -> list[Sample]:
    """Two stages, two blocks in the second, at sides that windows do not divide."""
    small = design((1, 2), (6, 8), 2, 3, 5)
    return [image_sample("maxvit", Stages(small, 7), (27, 33), presets=PRESETS)]


@published(
    "maxvit",
    family="vit",
    kind="network",
    row=228,
    title="MaxViT: Multi-Axis Vision Transformer",
    arxiv="2204.01697",
    year=2022,
    fidelity="third-party code",
    claim=(
        Claim(
            "parameters and multiply-adds at 224 × 224 are those printed",
            cells="stages.sizes_of(family='maxvit')",
            holds="stages.are_printed",
        ),
        Claim(
            "blocks and then grid: after one pair every pixel reaches every pixel",
            cells="patterns.multi_axis",
            holds="patterns.reaches_all",
        ),
    ),
)
@shown_by(examples)
def maxvit(name: str = "maxvit_tiny", classes: int = 1000, channels: int = 3, seed: int = 0) -> Stages:
    """Blocks of an inverted bottleneck, attention inside of windows and attention among cells spread over the map.

    Each attention has a table of relative positions and a perceptron behind it.

    Args:
        name: maxvit_tiny, _small, _base or _large. classes, channels, seed: see `Stages`.

    Paper: Tu et al., arXiv 2204.01697, which prints 11.7, 24.2 and 43.9 G multiply-adds for the larger three; those of
    convolutions and products are 11.6, 23.9 and 43.5. Convolutions are padded as TensorFlow does, as in the published
    weights.
    """
    return preset(PRESETS, name, classes, channels, seed)
