"""Agent Swin: agents of the whole map in the first stages, windows in the last."""

from __future__ import annotations

from collections.abc import Sequence

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample, shown_by
from regard.networks.stages.design import Design
from regard.networks.stages.network import Stages
from regard.networks.stages.presets import Preset, preset
from regard.networks.vision.swin import window_blocks
from regard.networks.vision.vit import image_sample

COUNTS, GRIDS = (9, 16, 49), (56, 28, 14)


def design(
    depths: Sequence[int],
    width: int,
    heads: int,
    counts: Sequence[int] = COUNTS,
    grids: Sequence[int] = GRIDS,
    agents: int | None = None,
) -> Design:
    """The network of so many layers in each stage, whose channels and heads double.

    Args:
        counts: of agents in the stages before the last. grids: rows and columns of the maps there, for an image of the
            size that the weights are of. agents: how many of the first layers of the last of these stages have agents,
            the others windows that move in every second layer; None for all.
    """
    mixers = [f"agents(count={count}, grid={grid})" for count, grid in zip(counts, grids, strict=True)]
    layers = [f"({mixer} + mlp)*{depth}" for mixer, depth in zip(mixers, depths, strict=False)]
    if agents is not None:
        first = [f"({mixers[-1]} + mlp)*{agents}"] if agents else []
        layers[-1] = ", ".join([*first, window_blocks(range(agents, depths[-2]))])
    widths, all_heads = (tuple(first * 2**n for n in range(len(depths))) for first in (width, heads))
    return Design(widths, (*layers, window_blocks(range(depths[-1]), shifted=False)), all_heads, down="merge")


PRESETS = {
    "agent_swin_tiny": Preset(design((2, 2, 6, 2), 96, 3), "29", "4.5"),
    "agent_swin_small": Preset(design((2, 2, 18, 2), 96, 3, agents=0), "50", "8.7"),
    "agent_swin_base": Preset(design((2, 2, 18, 2), 128, 4, agents=2), "88", "15.4"),
}


def examples() -> list[Sample]:
    """Two stages on a map of another size than the biases are of."""
    small = Stages(design((1, 1), 8, 2, (4,), (5,)), 7)
    mixed = Stages(design((3, 1), 8, 2, (4,), (5,), 1), 7)
    return [
        image_sample("agent_swin", small, (29, 22), presets=PRESETS),
        image_sample("moved windows", mixed, (29, 22)),
    ]


@published(
    "agent_swin",
    family="vit",
    kind="network",
    title="Agent Attention: On the Integration of Softmax and Linear Attention",
    arxiv="2312.08874",
    year=2023,
    fidelity="authors' code",
    claim=Claim(
        "parameters and multiply-adds at 224 × 224 are those printed",
        cells="stages.sizes_of(family='agent_swin')",
        holds="stages.are_printed",
    ),
)
@shown_by(examples)
def agent_swin(name: str = "agent_swin_tiny", classes: int = 1000, channels: int = 3, seed: int = 0) -> Stages:
    """A pyramid of agent attention over whole maps, then of windows.

    Args:
        name: agent_swin_tiny, small or base. classes, channels, seed: see `Stages`.

    Paper: Han et al., arXiv 2312.08874. In its third stage the small one has windows that move, the base one agents in
    two layers and such windows behind them.
    """
    return preset(PRESETS, name, classes, channels, seed)
