"""SiMBA for images: four stages of selective scans and networks of cells, or of their frequencies."""

from __future__ import annotations

from collections.abc import Sequence

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample, shown_by
from regard.networks.stages.design import Design
from regard.networks.stages.network import Stages
from regard.networks.stages.presets import Preset, preset
from regard.networks.vision.vit import image_sample


def design(
    depths: Sequence[int],
    widths: Sequence[int],
    inner: int,
    ratios: Sequence[int] | None = None,
    state: int = 64,
) -> Design:
    """The network of so many blocks in each stage.

    Args:
        inner: channels of the stem. ratios: of `NeighbourMLP` in each stage; None for `Frequencies`. state: of scans.
    """
    count = len(depths)
    mixes = ["frequencies"] * count if ratios is None else [f"neighbour_mlp(ratio={ratio})" for ratio in ratios]
    blocks = [[f"scan(state={state}) + {mix}"] * depth for depth, mix in zip(depths, mixes, strict=True)]
    for stage in blocks[:-1]:
        stage[-1] += " + norm(norm='layer(eps=1e-06)')"
    head = f"summarised(ratio={None if ratios is None else ratios[-1]}, state={state})"
    layers = tuple(", ".join(stage) for stage in blocks)
    return Design(
        tuple(widths),
        layers,
        stem=f"deep(inner={inner}, norm='layer')",
        down="patch(side=2, kernel=3, norm='layer')",
        head=head,
        norm="layer(eps=1e-06)",
        start="fan_out",
    )


SMALL, BASE, LARGE = (
    ((3, 4, 6, 3), (64, 128, 320, 448), 32),
    ((3, 4, 12, 3), (64, 128, 320, 512), 64),
    ((3, 6, 18, 3), (96, 192, 384, 512), 64),
)
PLAIN = (8, 8, 4, 4)
PRESETS = {
    "simba_small": Preset(design(*SMALL), "15.3", exact=15_309_104),
    "simba_base": Preset(design(*BASE), "22.8", exact=22_819_984),
    "simba_large": Preset(design(*LARGE), "36.6", exact=36_641_264),
    "simba_small_mlp": Preset(design(*SMALL, PLAIN), exact=26_591_088),
    "simba_base_mlp": Preset(design(*BASE, PLAIN), exact=40_209_744),
    "simba_large_mlp": Preset(design(*LARGE, PLAIN), exact=66_762_512),
}


def examples() -> list[Sample]:
    """Two stages, with frequencies and with networks of neighbours."""
    made = {
        "frequencies": Stages(design((1, 2), (8, 12), 5, state=3), 7),
        "neighbours": Stages(design((2, 1), (8, 12), 5, (2, 3), 3), 7),
    }
    sizes = {"frequencies": "simba_small", "neighbours": "simba_small_mlp"}
    shown = {name: {preset: PRESETS[preset]} for name, preset in sizes.items()}
    inert = ["head.scan.attention.mechanism.log_rate"]  # of a scan over one token, which nothing stays of
    return [image_sample(name, net, (21, 17), presets=shown[name], inert=inert) for name, net in made.items()]


@published(
    "simba_vision",
    family="vit",
    kind="network",
    row=204,
    title="SiMBA: Simplified Mamba-Based Architecture for Vision and Multivariate Time series",
    arxiv="2403.15360",
    year=2024,
    fidelity="authors' code",
    claim=Claim(
        "as many parameters as the paper says, and exactly those of the authors' networks",
        cells="stages.sizes_of(family='simba')",
        holds="stages.are_printed",
    ),
)
@shown_by(examples)
def simba_vision(name: str = "simba_small", classes: int = 1000, channels: int = 3, seed: int = 0) -> Stages:
    """Four stages of a selective scan over the cells and a network of their frequencies, or of cells and neighbours.

    See `steps.scanned`: `Scan`, `Frequencies`, `NeighbourMLP`, `DeepStem` and `Summarised`. The presets of frequencies
    are the paper's SiMBA with EinFFT, whose sizes it prints; those with ``_mlp`` have plain networks beside the scans,
    as the authors' code does before it is changed by hand. For series: `regard.networks.simba.Simba`.

    Args:
        name: simba_small, _base or _large, or one of these with _mlp. classes, channels, seed: see `Stages`.

    Paper: Patro and Agneeswaran, arXiv 2403.15360. A training with labels of cells mixes images among the cells too,
    which is its recipe's.
    """
    return preset(PRESETS, name, classes, channels, seed)
