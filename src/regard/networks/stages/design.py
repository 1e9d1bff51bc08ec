"""A hierarchical network as a line of text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from regard.core.build import arguments_of
from regard.core.errors import wrong
from regard.core.spec import parse, split_outside

REPEATED = re.compile(r"^\s*(?:\((?P<many>.*)\)|(?P<one>[^*]*?))\s*(?:\*\s*(?P<count>\d+))?\s*$", re.DOTALL)

STARTS = ("matrices", "all", "fan_out")


@dataclass(frozen=True)
class Design:
    """What a hierarchical network of images is made of, as data and as text.

    A block is steps joined by ``+``, each of which is added to what came in; a stage is blocks joined by commas, some
    of them several times: ``"windows(side=7) + mlp, (softmax + mlp(ratio=3))*2"``. A step is a name of `steps.table` or
    any bidirectional mechanism.

    Args:
        widths: channels of each stage. layers: the blocks of each stage, or of all. heads: of the attention of each
            stage, or of all. stem, down, head: what stands before, between and behind the stages, see `ends`. norm: of
            everything that names none, see `norms`. bias: of queries, keys and values. scale: what each normed step is
            multiplied by at first, see `Added`; None for nothing. drop: the share of images whose step is left out in
            training, of the last block; it grows from zero. start: what begins with normal numbers of a deviation of
            0.02, see `network.started`: ``matrices`` alone, ``all`` convolutions too, or these by ``fan_out``.

    Raises:
        ValueError: not as many layers or heads as widths, sizes below one, a share that is none, an unknown start.
    """

    widths: tuple[int, ...]
    layers: tuple[str, ...]
    heads: tuple[int, ...] = (1,)
    stem: str = "patch(side=4)"
    down: str = "patch(side=2)"
    head: str = "mean"
    norm: str = "layer"
    bias: bool = True
    scale: float | None = None
    drop: float = 0.0
    start: str = "matrices"

    def __post_init__(self) -> None:
        count = len(self.widths)
        for name in ("layers", "heads"):
            given = getattr(self, name)
            if len(given) not in (1, count):
                raise wrong(name, f"{len(given)} of them", f"one, or one for each of the {count} stages")
            object.__setattr__(self, name, tuple(given) if len(given) == count else tuple(given) * count)
        if not count or min(self.widths) < 1 or min(self.heads) < 1:
            raise wrong("widths, heads", f"{self.widths}, {self.heads}", "numbers of at least 1")
        if self.start not in STARTS:
            raise wrong("start", repr(self.start), f"one of {', '.join(STARTS)}")
        if not 0 <= self.drop < 1:
            raise wrong("drop", str(self.drop), "a share from 0 to below 1")

    @classmethod
    def of(cls, text: str) -> Self:
        """The design of ``"stages(widths=(64, 128), layers='windows(side=7) + mlp', …)"``.

        Raises:
            ValueError: no such text. TypeError: an argument that there is not.
        """
        spec = parse(text, "network")
        with spec.underlined():
            if spec.name != "stages":
                raise wrong("network", repr(spec.name), "stages(widths=…, layers=…)")
            arguments_of("stages", cls, spec.arguments)
            return cls(**listed(spec.arguments))

    def __str__(self) -> str:
        told = []
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple) and len(set(value)) == 1 and field.name != "widths":
                value = value[0]
            if field.name in ("widths", "layers") or value != plain(field.default):
                told.append(f"{field.name}={value!r}")
        return f"stages({', '.join(told)})"

    @property
    def blocks(self) -> list[list[list[str]]]:
        """The texts of the steps of each block of each stage."""
        return [blocks_of(text) for text in self.layers]


def plain(value: Any) -> Any:
    """One value for a tuple of one."""
    return value[0] if isinstance(value, tuple) else value


def listed(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with tuples where one stands for all stages."""
    several = ("widths", "layers", "heads")
    return {
        name: tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
        for name, value in arguments.items()
        if name in several
    } | {name: value for name, value in arguments.items() if name not in several}


def blocks_of(text: str) -> list[list[str]]:
    """The steps of each block that a text such as ``"softmax + mlp, (cpe + mlp)*3"`` says.

    Raises:
        ValueError: no block, a count below one, or one behind several steps that stand in no brackets.
    """
    found: list[list[str]] = []
    for part in split_outside(text, ","):
        read = REPEATED.match(part)
        own = "" if read is None else (read["many"] if read["many"] is not None else read["one"])
        if read is None or (read["one"] and read["count"] and "+" in read["one"]):
            raise wrong(
                "layers", repr(part.strip()), "steps joined by +, in brackets where they are repeated: (a + b)*2"
            )
        count, steps = int(read["count"] or 1), [step.strip() for step in split_outside(own, "+")]
        if count < 1 or not all(steps):
            raise wrong("layers", repr(part.strip()), "one step at least, and a count above zero")
        found += [steps] * count
    return found
