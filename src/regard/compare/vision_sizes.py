"""What hierarchical networks cost, stage by stage: parameters, multiply-adds, CPU time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import torch

from regard.compare.feature_gates import brief
from regard.core.errors import wrong
from regard.networks.stages.network import Stages
from regard.networks.stages.presets import Preset
from regard.networks.stages.sizes import PartSize, sizes
from regard.networks.vision.build import design, presets
from regard.networks.vision.from_timm import from_timm

RUNS = 5


@dataclass(frozen=True)
class NetworkFigures:
    """One network at one size of image.

    Args:
        text: what it was made of. rows, columns: of the image. parts: the stem, each stage, the head. milliseconds: CPU
            time of each part for one image, the median; empty where it was not taken. printed: parameters in millions
            and multiply-adds in thousands of millions, as the paper prints them for ``side`` pixels.
    """

    text: str
    rows: int
    columns: int
    parts: tuple[PartSize, ...]
    milliseconds: tuple[float, ...]
    printed: tuple[str | None, str | None, int] | None

    @property
    def parameters(self) -> int:
        """Of all parts."""
        return sum(part.parameters for part in self.parts)

    @property
    def multiply_adds(self) -> int:
        """Of all parts."""
        return sum(part.multiply_adds for part in self.parts)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self) | {"parameters": self.parameters, "multiply_adds": self.multiply_adds}


def measure(
    texts: Iterable[str], size: tuple[int, int] | None = None, classes: int = 1000, timed: bool = True
) -> list[NetworkFigures]:
    """The figures of presets or texts, at ``size`` rows and columns, None for those of the paper or 224 × 224.

    Raises:
        ValueError: a size below one, or a text that says no network.
    """
    if size is not None and min(size) < 1:
        raise wrong("size", str(size), "at least 1")
    known = presets()
    return [figures(text, known.get(text), size, classes, timed) for text in texts]


def figures(
    text: str, preset: Preset | None, size: tuple[int, int] | None, classes: int, timed: bool
) -> NetworkFigures:
    """Those of one network."""
    side = 224 if preset is None else preset.side
    rows, columns = size or (side, side)
    with torch.device("cpu" if timed else "meta"):
        network = Stages(design(text), classes)
    printed = None if preset is None else (preset.parameters, preset.multiply_adds, preset.side)
    spent = times(network.eval(), rows, columns) if timed else ()
    return NetworkFigures(text, rows, columns, tuple(sizes(network, (rows, columns))), spent, printed)


@torch.no_grad()
def times(network: Stages, rows: int, columns: int) -> tuple[float, ...]:
    """Milliseconds of CPU time of each part, the median of `RUNS` after one that is not counted."""
    parts = (network.stem, *network.stages, network.head)
    image = torch.randn(1, 3, rows, columns, generator=torch.Generator().manual_seed(0))
    spent: list[list[float]] = [[] for _ in parts]
    for run in range(RUNS + 1):
        x = image
        for part, found in zip(parts, spent, strict=True):
            begun = time.process_time()
            x = part(x)
            if run:
                found.append(1000 * (time.process_time() - begun))
    return tuple(statistics.median(each) for each in spent)


@dataclass(frozen=True)
class Beside:
    """A preset beside timm's network of the same weights.

    Args:
        name, peer: here and there. parameters, peer_parameters: of both. milliseconds, peer_milliseconds: CPU time of
            one image, the medians of runs in turn.
    """

    name: str
    peer: str
    parameters: int
    peer_parameters: int
    milliseconds: float
    peer_milliseconds: float

    @property
    def ratio(self) -> float:
        """Our time over timm's."""
        return self.milliseconds / self.peer_milliseconds


@torch.no_grad()
def beside_timm(name: str, size: tuple[int, int] | None = None) -> Beside:
    """This preset and timm's network, whose weights it takes, run in turn on one image.

    Raises:
        ImportError: timm cannot be imported. ValueError: no such preset, or one that timm does not have.
    """
    known = presets()
    if name not in known:
        raise wrong("text", repr(name), "a preset, which timm may have too")
    try:
        timm: Any = import_module("timm")
    except ImportError as error:
        raise ImportError(f"{error}: timm is compared with where it can be imported, pip install timm") from error
    peer = f"{name}_tf_224" if name.startswith("maxvit") else name
    if not timm.is_model(peer):
        raise wrong("text", repr(name), "a preset that timm has")
    theirs = timm.create_model(peer).eval()
    ours = from_timm(theirs)
    rows, columns = size or (known[name].side,) * 2
    image = torch.randn(1, 3, rows, columns, generator=torch.Generator().manual_seed(0))
    spent: dict[bool, list[float]] = {True: [], False: []}
    for run in range(2 * (RUNS + 1)):
        own = run % 2 == 0
        begun = time.process_time()
        (ours if own else theirs)(image)
        spent[own].append(1000 * (time.process_time() - begun))
    counts = (sum(p.numel() for p in net.parameters()) for net in (ours, theirs))
    return Beside(name, peer, *counts, *(statistics.median(spent[own][1:]) for own in (True, False)))


HEAD = ("network", "part", "map", "parameters", "MACs", "ms")
WHOLE = ("network", "image", "parameters", "MACs", "printed")


def table(found: Sequence[NetworkFigures], stages: bool = True) -> list[list[str]]:
    """The head and the lines: each part of each network, or with ``stages`` False the whole alone."""
    lines: list[list[str]] = [list(HEAD if stages else WHOLE)]
    for each in found:
        whole = [f"{each.parameters:,}", brief(each.multiply_adds)]
        if not stages:
            told = "–" if each.printed is None else printed(*each.printed)
            lines.append([each.text, f"{each.rows} × {each.columns}", *whole, told])
            continue
        for place, part in enumerate(each.parts):
            ms = f"{each.milliseconds[place]:.1f}" if each.milliseconds else "–"
            shape = " × ".join(map(str, part.shape))
            name = each.text if place == 0 else ""
            lines.append([name, part.name, shape, f"{part.parameters:,}", brief(part.multiply_adds), ms])
        total = f"{sum(each.milliseconds):.1f}" if each.milliseconds else "–"
        lines.append(["", "all", "", *whole, total])
    return lines


def printed(parameters: str | None, multiply_adds: str | None, side: int) -> str:
    """What a paper prints, in words."""
    if parameters is None:
        return "–"
    work = "" if multiply_adds is None else f", {multiply_adds} G at {side}"
    return f"{parameters} M{work}"
