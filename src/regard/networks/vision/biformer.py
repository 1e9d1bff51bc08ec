"""BiFormer: regions that choose which regions to attend to."""

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
    widths: Sequence[int],
    heads: Sequence[int],
    topk: Sequence[int | None] = (1, 4, 16, None),
    regions: int = 7,
) -> Design:
    """The network of so many blocks in each stage, of so many regions chosen by each; None for all cells."""
    layers = []
    for depth, count in zip(depths, topk, strict=False):
        routed = f"enhanced(mechanism=routed_regions(topk={count}, regions={regions}))"
        step = "enhanced(of=inputs, bias=False)" if count is None else routed
        layers.append(f"(cpe + {step} + mlp(ratio=3))*{depth}")
    ends: dict[str, Any] = {
        "stem": "convolutions(norm=batch)",
        "down": "patch(side=2, kernel=3, norm=batch)",
        "head": "mean(norm=batch)",
    }
    return Design(tuple(widths), tuple(layers), tuple(heads), **ends, norm="layer(eps=1e-06)")


PRESETS = {
    "biformer_tiny": Preset(design((2, 2, 8, 2), (64, 128, 256, 512), (2, 4, 8, 8)), "13.1", "2.2", exact=13_142_760),
    "biformer_small": Preset(design((4, 4, 18, 4), (64, 128, 256, 512), (2, 4, 8, 8)), "25.5", "4.5", exact=25_536_232),
    "biformer_base": Preset(design((4, 4, 18, 4), (96, 192, 384, 768), (3, 6, 12, 8)), "56.8", "9.8"),
}


def examples() -> list[Sample]:
    """A routed stage and one of all cells, at sides that regions do not divide."""
    small = design((1, 1), (8, 12), (2, 3), (2, None), 3)
    return [image_sample("biformer", Stages(small, 7), (45, 37), presets=PRESETS)]


@published(
    "biformer_network",
    family="vit",
    kind="network",
    title="BiFormer: Vision Transformer with Bi-Level Routing Attention",
    arxiv="2303.08810",
    year=2023,
    fidelity="authors' code",
    claim=Claim(
        "parameters and multiply-adds at 224 × 224 are those printed",
        cells="stages.sizes_of(family='biformer')",
        holds="stages.are_printed",
    ),
)
@shown_by(examples)
def biformer(name: str = "biformer_tiny", classes: int = 1000, channels: int = 3, seed: int = 0) -> Stages:
    """A pyramid of routed regions, 1, 4 and 16 of 49 by stage, then all cells, with a convolution of the values.

    Args:
        name: biformer_tiny, biformer_small or biformer_base. classes, channels, seed: see `Stages`.

    Paper: Zhu et al., arXiv 2303.08810. The last stage has 8 heads, no biases of queries, keys and values, and the
    convolution of what comes in, as in the authors' code.
    """
    return preset(PRESETS, name, classes, channels, seed)
