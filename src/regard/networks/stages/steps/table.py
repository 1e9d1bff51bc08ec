"""From a text to a step: those of the table, and any mechanism of the atlas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from regard.core.build import build_part
from regard.core.spec import parse
from regard.networks.stages.ends import MBConv
from regard.networks.stages.steps.agents import Agents
from regard.networks.stages.steps.attention import Attend, Channels, Enhanced, SingleHead, Summary
from regard.networks.stages.steps.base import Step
from regard.networks.stages.steps.convolution import (
    MLP,
    Concentration,
    Focal,
    GatedConvolution,
    Local,
    NormedMLP,
    Positions,
)
from regard.networks.stages.steps.dynamic import DynamicPartial
from regard.networks.stages.steps.partial import PartialChannels, PartialMLP, PartialSelf
from regard.networks.stages.steps.scanned import Frequencies, NeighbourMLP, Normed, Scan
from regard.networks.stages.steps.varied import VariedWindows


class Inverted(Step):
    """`MBConv` at one resolution, which adds what came in by itself.

    Args:
        width: c. ratio, activation: see there.
    """

    normed, alone = False, True

    def __init__(self, width: int, ratio: int = 4, activation: str = "gelu_tanh") -> None:
        super().__init__()
        self.block = MBConv(width, width, 1, ratio, activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


STEPS: dict[str, type[Step]] = {
    "cpe": Positions,
    "local": Local,
    "concentration": Concentration,
    "mlp": MLP,
    "normed_mlp": NormedMLP,
    "focal": Focal,
    "gated_convolution": GatedConvolution,
    "enhanced": Enhanced,
    "single_head": SingleHead,
    "channels": Channels,
    "summary": Summary,
    "varied_windows": VariedWindows,
    "agents": Agents,
    "mbconv": Inverted,
    "dynamic_partial": DynamicPartial,
    "partial_channels": PartialChannels,
    "partial_mlp": PartialMLP,
    "partial_self": PartialSelf,
    "scan": Scan,
    "neighbour_mlp": NeighbourMLP,
    "frequencies": Frequencies,
    "norm": Normed,
}
"""The steps that are no attention of a mechanism among cells."""


def step_of(text: str, sizes: Mapping[str, Any]) -> Step:
    """The step of a text, such as ``"mlp(ratio=3)"``, or ``"windows(side=7)"``, which is attention of this mechanism.

    Raises:
        ValueError, LookupError, TypeError: no such text, name or argument.
    """
    spec = parse(text, "step")
    if spec.name in STEPS:
        return build_part(sizes, "step", text, STEPS)
    return Attend(sizes["width"], sizes["heads"], parse(text, "mechanism"), sizes["bias"])
