"""Gates in models that were built without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from regard.core.errors import did_you_mean, wrong
from regard.featuremap.build import GateFactory
from regard.featuremap.gate import Factors, Gate

CHILD = "gate"
"""The name of the gate among the children of the module that it follows."""


SAID = ("num_features", "out_channels", "num_channels")
"""How norms and convolutions call their channels."""


class Inserted:
    """Gates in a model, until `remove` or the end of a ``with`` block.

    Attributes:
        gates: each gate by the name of the module that it follows. factors: where they are kept, those of the latest
            call by the same names, without gradients.
    """

    def __init__(self, model: nn.Module, keep: bool) -> None:
        self.model, self.keep = model, keep
        self.gates: dict[str, Gate] = {}
        self.factors: dict[str, Factors] = {}
        self.added: list[nn.Module] = []
        self.descriptors: dict[int, Tensor] = {}
        self._undo: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"Inserted({', '.join(f'{name}: {type(gate).__name__}' for name, gate in self.gates.items())})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Takes every gate out again; the model is as it was."""
        while self._undo:
            self._undo.pop()()

    def parameters(self) -> list[nn.Parameter]:
        """What was added to be learned."""
        return [parameter for added in self.added for parameter in added.parameters()]

    def add(self, name: str, module: nn.Module, gate: Gate, started: bool, stage: int) -> None:
        """Puts one gate behind one module."""
        added: nn.Module = gate.identity() if started else gate
        like = next(module.parameters(), None)
        module.add_module(CHILD, added if like is None else added.to(like.device, like.dtype))
        self._undo.append(lambda: delattr(module, CHILD))
        self.gates[name] = gate
        self.added.append(added)
        handles = [
            added.register_load_state_dict_pre_hook(keep_own),
            module.register_forward_hook(lambda _module, _given, out: self.gated(name, added, out, stage)),
        ]
        self._undo += [handle.remove for handle in handles]

    def gated(self, name: str, added: nn.Module, out: object, stage: int) -> Tensor:
        """What follows a module whose output is ``out``."""
        if not isinstance(out, Tensor) or out.dim() != 4:
            came = f"{tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise wrong(
                "where", f"{name!r}, which gives {came}", "modules that give a map (batch, channels, rows, columns)"
            )
        gate = self.gates[name]
        past = [self.descriptors[earlier] for earlier in range(stage - len(gate.past), stage)] if gate.past else None
        self.descriptors[stage] = out.mean((2, 3))
        if self.keep:
            with torch.no_grad():
                self.factors[name] = gate.factors(out, past)
        return added(out, past)


def insert(
    model: nn.Module,
    gate: str | GateFactory,
    where: str | Sequence[str],
    *,
    start: Literal["identity"] | None = None,
    channels: int | None = None,
    keep: bool = False,
) -> Inserted:
    """Puts a gate behind modules of any model: ``insert(resnet, "eca", "layer*.*.bn3", start="identity")``.

    A gate becomes a child of the module whose output it weighs, so that no name in the model changes: its own weights
    still load, strictly too, and ``state_dict`` holds those of the gates as well.

    Gates that read earlier stages (`pkcam`) are given the means of what earlier stages ended with; a stage is a run of
    modules of as many channels, and in its first module such a gate reads its own map alone. (The authors of `pkcam`
    count the stem as a stage, too.)

    Args:
        model: of any library. gate: as text, or what `regard.gate` gives. where: patterns of names as in
            ``model.named_modules()``. start: "identity" for gates that leave the model as it is, bit by bit, until
            their α has learned otherwise. channels: of the maps there, where the modules do not say. keep: keeps the
            factors of the latest call.

    Raises:
        ValueError: no module of such a name, one with a gate, one that does not say its channels, an unknown start;
            in a call, one that gives no map.
    """
    if start not in ("identity", None):
        raise wrong("start", repr(start), "'identity' or None")
    made = gate if isinstance(gate, GateFactory) else GateFactory(gate)
    modules = dict(model.named_modules())
    chosen = matching(modules, [where] if isinstance(where, str) else list(where))
    reads, inserted, stages = made.takes("earlier"), Inserted(model, keep), []
    try:
        for name in chosen:
            width = channels or width_of(name, modules[name])
            first = not stages or stages[-1] != width
            stages += [width] if first else []
            more: dict[str, Any] = {"earlier": tuple(stages[:-1])} if reads and not first else {}
            inserted.add(name, modules[name], made(width, **more), start == "identity", len(stages) - 1)
    except BaseException:
        inserted.remove()
        raise
    return inserted


def matching(modules: dict[str, nn.Module], patterns: list[str]) -> list[str]:
    """The names that fit a pattern, in the model's order; the model itself is behind none."""
    names = [name for name in modules if name]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = did_you_mean(pattern, names) or such_as(modules)
            raise wrong("where", repr(pattern), f"a pattern of names in model.named_modules(){near}")
    found = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    for name in found:
        if any(child == CHILD for child, _ in modules[name].named_children()):
            raise wrong("where", f"{name!r}, which has a gate", "modules without one")
    return found


def such_as(modules: dict[str, nn.Module]) -> str:
    """The first modules that say their channels, for a message."""
    known = [
        name for name, module in modules.items() if any(isinstance(getattr(module, each, None), int) for each in SAID)
    ]
    return f", such as {', '.join(map(repr, known[:3]))}" if known else ""


def width_of(name: str, module: nn.Module) -> int:
    """The channels of a module's output, by what norms and convolutions say of themselves."""
    for attribute in SAID:
        width = getattr(module, attribute, None)
        if isinstance(width, int):
            return width
    wanted = "a norm or a convolution, or channels=… for what follows other modules"
    raise wrong("where", f"{name!r}, a {type(module).__name__}", wanted)


def keep_own(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Loading weights of a model without gates, the gate keeps its own."""
    if not any(name.startswith(prefix) for name in state):
        state.update({prefix + name: value for name, value in module.state_dict().items()})
