"""What gates of feature maps cost and where their factors lie."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from regard.core.atlas import entries
from regard.core.errors import wrong
from regard.featuremap.build import gate
from regard.featuremap.gate import Gate

RESNET50 = ((256, 56, 3), (512, 28, 4), (1024, 14, 6), (2048, 7, 3))
"""Channels, rows and number of the blocks of each stage of ResNet-50 on images of 224 × 224."""
RUNS = 11


@dataclass(frozen=True)
class GateFigures:
    """One gate at one size.

    Args:
        name: as text. row: in the catalogue, None outside it. maps: the axes of its factors. parameters, macs: of one
        gate. network_parameters, network_macs: of one behind each block of ResNet-50 at 224 × 224. milliseconds: CPU
            time of one call, the median. low, high: of its factors on a map of normal numbers, fresh from the start.
            scale: the mean of what the map is multiplied by there. batch_norm: whether batches are normed in training.
    """

    name: str
    row: int | None
    maps: tuple[str, ...]
    parameters: int
    macs: int
    network_parameters: int
    network_macs: int
    milliseconds: float
    low: float
    high: float
    scale: float
    batch_norm: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self) | {"maps": list(self.maps)}


def names() -> list[str]:
    """Every published gate."""
    return [entry.name for entry in entries(kind="gate") if entry.name != "composed_gate"]


def measure(texts: Iterable[str], channels: int = 256, size: int = 56, batch: int = 1) -> list[GateFigures]:
    """The figures of gates, on maps of so many channels, rows and columns.

    Raises:
        ValueError: a size below one, or channels that a gate does not take.
    """
    for name, number in (("channels", channels), ("size", size), ("batch", batch)):
        if number < 1:
            raise wrong(name, str(number), "at least 1")
    rows = {entry.name: entry.row for entry in entries(kind="gate")}
    return [figures(text, rows.get(text.partition("(")[0].strip()), (batch, channels, size, size)) for text in texts]


@torch.no_grad()
def figures(text: str, row: int | None, shape: Sequence[int]) -> GateFigures:
    """Those of one gate, whose weights and map are drawn with a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made, x = gate(text)(shape[1]).eval(), torch.randn(*shape)
    parts = made.factors(x)
    with torch.device("meta"):
        inside = [(gate(text)(c), (1, c, side, side), number) for c, side, number in RESNET50]
    return GateFigures(
        *(text, row, tuple(parts), made.parameter_count, made.flops(tuple(shape)) // 2),
        network_parameters=sum(number * each.parameter_count for each, _, number in inside),
        network_macs=sum(number * each.flops(of) // 2 for each, of, number in inside),
        milliseconds=milliseconds(made, x),
        low=min(part.min().item() for part in parts.values()),
        high=max(part.max().item() for part in parts.values()),
        scale=made.scale(x).expand_as(x).mean().item(),
        batch_norm=made.traits.batch_norm,
    )


def milliseconds(made: Gate, x: torch.Tensor) -> float:
    """The median CPU time of one call on one thread."""
    spent = []
    for _ in range(RUNS):
        begun = time.process_time()
        made(x)
        spent.append(1e3 * (time.process_time() - begun))
    return statistics.median(spent[1:])


def table(found: Sequence[GateFigures], timed: bool = True) -> list[tuple[str, ...]]:
    """The head and the lines of a table; without ``timed``, what every machine gives alike."""
    costs = ("parameters", "MACs", "in ResNet-50", "its MACs", "ms")
    head, lines = ("gate", "row", "factors", *costs, "factors from … to", "scale"), []
    for f in found:
        cost = (f"{f.parameters:,}", brief(f.macs), f"{f.network_parameters:,}", brief(f.network_macs))
        span = f"{f.low:.2g} … {f.high:.2g}"
        about = (f.name, str(f.row or ""), " ".join(f.maps))
        lines.append((*about, *cost, f"{f.milliseconds:.2f}", span, f"{f.scale:.2f}"))
    return [head, *lines] if timed else [tuple(line[:7]) for line in (head, *lines)]


def brief(number: int) -> str:
    """``1_234_567`` as ``1.23 M``."""
    step = min(int(math.log10(number)) // 3, 3) if number else 0
    return f"{number / 1000**step:.3g} {('', 'k', 'M', 'G')[step]}".strip()
