"""What a hierarchical network costs: parameters and multiply-adds, stage by stage, without computing anything."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from regard.core.cost import Shape
from regard.core.layout import Layout
from regard.core.mechanism import Mechanism
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.sparse.pattern import Patterned
from regard.mechanisms.sparse.regions import RoutedRegions
from regard.mechanisms.sparse.windows import Windows
from regard.networks.stages.network import Stage, Stages


@dataclass(frozen=True)
class PartSize:
    """One part of a network: its name, what comes out ``(c, y, x)``, parameters and multiply-adds of one image."""

    name: str
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


class Counted(Mechanism):
    """Stands in for a mechanism: notes how many multiply-adds it takes and gives numbers of the right shape."""

    def __init__(self, mechanism: Mechanism) -> None:
        super().__init__()
        self.traits, self.signals, self.layer = mechanism.traits, mechanism.signals, mechanism.layer
        self.of, self.multiply_adds = [mechanism], 0  # in a list, so that it is no part of the network

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        shape = Shape(q.shape[2], k.shape[2], q.shape[0], q.shape[1], k.shape[1], q.shape[3], v.shape[3])
        with torch.device("cpu"):  # patterns count with numbers
            self.multiply_adds += multiply_adds(self.of[0], shape, layout)
        return q.new_empty(*q.shape[:3], v.shape[3])


def multiply_adds(mechanism: Mechanism, shape: Shape, layout: Layout) -> int:
    """Those of a call: of softmax and of patterns, for each pair that is seen; else as `Mechanism.cost` has them."""
    if isinstance(mechanism, Softmax):
        pairs = shape.n * shape.keys
    elif isinstance(mechanism, Windows | RoutedRegions):
        pairs = mechanism.pairs(shape.keys, layout)
    elif isinstance(mechanism, Patterned):
        pairs = mechanism.pattern_for(shape.keys, layout).pairs(shape.n, shape.keys)
    else:
        return mechanism.cost(shape, layout).flops // 2
    return shape.batch * shape.heads * pairs * (shape.head_dim + shape.values)


def sizes(network: Stages, side: int | tuple[int, int] = 224, channels: int = 3) -> list[PartSize]:
    """The stem, each stage and the head, for one image of ``side`` pixels or of rows and columns.

    Attention to patterns counts the pairs that are seen, as papers do, not the blocks that a kernel computes. Tensors
    have shapes alone: nothing is computed. Blocks of a stage that are written alike, consist of the same modules and
    read maps of the same shape take as much, so that only the first of them is run.
    """
    rows, columns = (side, side) if isinstance(side, int) else side
    made = meta(network)
    x, found = torch.empty(1, channels, rows, columns, device="meta"), []
    parts = [("stem", made.stem), *((f"stages.{n}", stage) for n, stage in enumerate(made.stages)), ("head", made.head)]
    for name, part in parts:
        work, known = 0, {}
        for module, what in pieces(network, name, part):
            key = (what, x.shape)
            if what is None or key not in known:
                known[key] = taken(module, x)
            more, x = known[key]
            work += more
        found.append(PartSize(name, tuple(x.shape[1:]), parameters(part), work))
    return found


def pieces(network: Stages, name: str, part: nn.Module) -> Iterator[tuple[nn.Module, tuple[str, ...] | None]]:
    """The modules of a part in their order, with what is the same of those that are alike, None where none may be."""
    if not isinstance(part, Stage):
        yield part, None
        return
    yield part.down, None
    place = int(name.rpartition(".")[2])
    blocks: Any = network.get_submodule(f"{name}.blocks")
    for module, own, texts in zip(part.blocks, blocks, network.design.blocks[place], strict=True):
        yield module, (*texts, str(own))  # of the network itself, whose mechanisms tell their arguments


def taken(module: nn.Module, x: Tensor) -> tuple[int, Tensor]:
    """The multiply-adds of a module that reads x, and what it gives."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = module(x)
    inside = sum(part.multiply_adds for part in module.modules() if isinstance(part, Counted))
    return counter.get_total_flops() // 2 + inside, out


def parameters(part: nn.Module) -> int:
    """Those of a part, and of the mechanisms that are counted in it."""
    inside = [module.of[0] for module in part.modules() if isinstance(module, Counted)]
    return sum(each.numel() for module in (part, *inside) for each in module.parameters())


def meta(network: Stages) -> Stages:
    """A copy without numbers, whose mechanisms are counted."""
    made: Any = copy.deepcopy(network).to("meta").eval()
    for module in list(made.modules()):
        for name, child in module.named_children():
            if isinstance(child, Mechanism):
                setattr(module, name, Counted(child))
    return made


def total(parts: list[PartSize]) -> tuple[int, int]:
    """Parameters and multiply-adds of all."""
    return sum(part.parameters for part in parts), sum(part.multiply_adds for part in parts)
