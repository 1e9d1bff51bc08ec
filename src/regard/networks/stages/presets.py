"""Published hierarchical networks: their designs and the sizes that their papers print."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from regard.core.errors import did_you_mean, wrong
from regard.networks.stages.design import Design
from regard.networks.stages.network import Stages


@dataclass(frozen=True)
class Preset:
    """One published network.

    Args:
        design: what it is made of. parameters: millions, as the paper prints them. multiply_adds: thousands of
            millions for one image, as printed; None where neither is. side: of that image. exact: parameters that
            public weights or the authors' network have, None where there are none.
    """

    design: Design
    parameters: str | None = None
    multiply_adds: str | None = None
    side: int = 224
    exact: int | None = None


def preset(presets: Mapping[str, Preset], name: str, classes: int = 1000, channels: int = 3, seed: int = 0) -> Stages:
    """The network of this name.

    Raises:
        ValueError: none of the ``presets`` has it.
    """
    if name not in presets:
        raise wrong("preset", repr(name), f"one of {', '.join(presets)}{did_you_mean(name, presets)}")
    return Stages(presets[name].design, classes, channels, seed)


def is_printed(value: int, printed: str, unit: float) -> bool:
    """Whether a count is the ``printed`` number of ``unit``, to less than one of its last digit.

    Papers round and cut alike, and count norms and activations with the multiply-adds or not.
    """
    return abs(value / unit - float(printed)) < 10 ** -len(printed.partition(".")[2])
