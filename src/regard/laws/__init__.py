"""The laws: what A must satisfy, held against every word that a mechanism's traits claim."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from regard.core.errors import wrong
from regard.core.mechanism import Example, Mechanism
from regard.laws.mechanism.calls import edges, grouped, padding
from regard.laws.mechanism.equation import cost, definition, gradients, linear, rows
from regard.laws.mechanism.masks import mask
from regard.laws.mechanism.order import causal, extend, symmetry
from regard.laws.mechanism.ranges import ranges
from regard.laws.mechanism.subject import Broken, Subject, Unclaimed

Law = Callable[[Subject], str]

LAWS: dict[str, Law] = {
    law.__name__: law
    for law in (
        *(definition, linear, causal, rows, extend, padding, mask),
        *(gradients, grouped, cost, symmetry, edges, ranges),
    )
}


@dataclass(frozen=True)
class Finding:
    """How one example stands to one law. detail: the worst error where it holds, what broke where it does not."""

    law: str
    example: str
    verdict: Literal["holds", "broken", "not claimed"]
    detail: str


@dataclass(frozen=True)
class Report:
    """Every law against every example of one mechanism."""

    findings: tuple[Finding, ...]

    @property
    def holds(self) -> bool:
        """Whether no law is broken."""
        return not self.broken

    @property
    def broken(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.verdict == "broken")

    def __str__(self) -> str:
        width = max(len(finding.example) for finding in self.findings)
        return "\n".join(
            f"{f.law:<11} {f.example:<{width}}  {f.verdict:<11}  {f.detail}".rstrip() for f in self.findings
        )


def examine(example: Example, law: str, device: str = "cpu") -> Finding:
    """One example against one law. An exception inside the mechanism breaks the law that met it."""
    try:
        return Finding(law, example.label, "holds", LAWS[law](Subject(example, device)))
    except Unclaimed as claim:
        return Finding(law, example.label, "not claimed", str(claim))
    except Broken as broken:
        return Finding(law, example.label, "broken", str(broken))
    except Exception as error:
        return Finding(law, example.label, "broken", f"{type(error).__name__}: {error}")


def devices() -> list[str]:
    """The devices that laws are examined on: the CPU, and the accelerator where there is one."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def check(
    mechanism: Mechanism | type[Mechanism],
    *,
    heads: int = 2,
    kv_heads: int | None = None,
    head_dim: int = 5,
    value_dim: int = 7,
) -> Report:
    """Holds a mechanism, yours or one of regard's, to all laws.

    Args:
        mechanism: an instance, examined as it is in calls of these sizes; or a class, by its ``examples()``.
        heads, kv_heads, head_dim, value_dim: of the calls of an instance; kv_heads None for as many as heads.

    Raises:
        TypeError: something else.
    """
    of = mechanism if isinstance(mechanism, type) else type(mechanism)
    if not issubclass(of, Mechanism):
        wanted = "a regard.Mechanism or a subclass of it: the laws are about weights, forward, start and extend"
        raise wrong("mechanism", f"{mechanism!r}, a {type(mechanism).__name__}", wanted, TypeError)
    examples: Sequence[Example]
    if isinstance(mechanism, type):
        examples = mechanism.examples()
    else:
        examples = [Example(of.__name__, mechanism, heads, kv_heads or heads, head_dim, value_dim)]
    return Report(tuple(examine(example, law, device) for law in LAWS for example in examples for device in devices()))
