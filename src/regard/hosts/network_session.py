"""Watching a network of images: the rows of A of every mechanism in it, and what its gates multiply by."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from regard.core.layout import Layout
from regard.core.mechanism import Mechanism
from regard.featuremap.gate import Gate
from regard.hosts.mechanism_call import ImplicitAttention
from regard.hosts.session import Session
from regard.networks.stages.steps.base import Step

DEAD = 1e-3
"""A factor below this share of the largest one of its map lets nothing through."""


@dataclass
class GateRecord:
    """What a gate multiplied by in all calls so far.

    Args:
        latest: the factors of the latest call, by their axes. calls, images: how many there were. total, dead, spread:
            sums over images of the mean factor, of the share of dead ones, and of their `evenness`.
    """

    latest: dict[str, Tensor] = field(default_factory=dict, repr=False)
    calls: int = 0
    images: int = 0
    total: float = 0.0
    dead: float = 0.0
    spread: float = 0.0

    def add(self, factors: dict[str, Tensor]) -> None:
        """Takes the factors of one call in."""
        self.latest, self.calls = {name: factor.detach() for name, factor in factors.items()}, self.calls + 1
        (images,) = {len(factor) for factor in factors.values()}
        self.images += images
        for factor in self.latest.values():
            flat = factor.float().flatten(1)
            sizes, count = flat.abs(), len(self.latest)
            self.total += flat.mean(1).sum().item() / count
            self.dead += (sizes < DEAD * sizes.amax(1, keepdim=True)).float().mean(1).sum().item() / count
            self.spread += evenness(sizes).sum().item() / count

    @property
    def mean(self) -> float:
        """The mean factor."""
        return self.total / max(self.images, 1)

    @property
    def dead_share(self) -> float:
        """The mean share of factors that let nothing through."""
        return self.dead / max(self.images, 1)

    @property
    def evenness(self) -> float:
        """1 where all factors are alike, towards 0 the fewer there are beside zeros."""
        return self.spread / max(self.images, 1)


def evenness(sizes: Tensor) -> Tensor:
    """``(b,)``: the entropy of each row's shares over that of equal ones; 1 of a single number."""
    shares = sizes / sizes.sum(1, keepdim=True).clamp(min=torch.finfo(sizes.dtype).tiny)
    most = math.log(sizes.shape[1])
    return torch.special.entr(shares).sum(1) / most if most else torch.ones(len(sizes))


class NetworkSession(Session):
    """The session of a network that has mechanisms or gates of ours: hooks before these, from `install` to `remove`.

    `gates` has a `GateRecord` for each gate, and for each step of a hierarchical network that weighs its map otherwise
    than by an A.

    Args:
        model: the watched model; the rest as for `Session`.
    """

    def __init__(self, model: nn.Module, *about: Any) -> None:
        super().__init__(*about)
        self.model, self.sequence = model, -1
        self.handles: list[Any] = []
        self.open = False

    def __repr__(self) -> str:
        attention = super().__repr__()
        if not self.gates:
            return attention
        lines = [
            f"{name}: mean factor {gate.mean:.3g}, {gate.dead_share:.1%} dead, evenness {gate.evenness:.3f}, "
            f"{', '.join(gate.latest)} of {gate.images} images"
            for name, gate in self.gates.items()
        ]
        return "\n".join([*([attention] if self.layers else []), *lines])

    def install(self) -> None:
        """Puts the hooks in."""
        self.handles = [
            self.model.register_forward_pre_hook(self.enter),
            self.model.register_forward_hook(lambda *_: self.refuse_absent(f"the {type(self.model).__name__}")),
        ]
        for name, module in self.model.named_modules():
            if isinstance(module, Mechanism):
                self.handles.append(module.register_forward_pre_hook(self.before(name), with_kwargs=True))
            elif isinstance(module, Gate | Step):
                self.handles.append(module.register_forward_pre_hook(self.weighed(name), with_kwargs=True))

    def remove(self) -> None:
        """Takes them out."""
        for handle in self.handles:
            handle.remove()

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """The hook before a pass."""
        self.sequence += 1

    def before(self, name: str) -> Any:
        """The hook before a mechanism's call."""

        @torch.no_grad()
        def show(mechanism: Mechanism, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            if self.open:
                return
            q, k, _, *rest = (*args, *(named.pop(x) for x in ("q", "k", "v") if x in named))
            layout = rest[0] if rest else named.pop("layout", Layout())
            source = ImplicitAttention(mechanism, q.detach(), k.detach(), layout, named)
            self.implied(name, type(mechanism).__name__, source, None, self.sequence)

        return lambda module, args, named: show(module, args, dict(named))

    def weighed(self, name: str) -> Any:
        """The hook before a gate, or a step that weighs its map."""

        @torch.no_grad()
        def show(module: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            if self.open:
                return
            self.open = True  # what a gate calls for its factors is no call of the network
            try:
                factors = (module.maps if isinstance(module, Step) else module.factors)(*args, **named)
            finally:
                self.open = False
            if factors:
                self.gates.setdefault(name, GateRecord()).add(factors)

        return show


def is_ours(model: nn.Module) -> bool:
    """Whether there is a mechanism, a gate or a step of ours in it."""
    return any(isinstance(module, Mechanism | Gate | Step) for module in model.modules())
