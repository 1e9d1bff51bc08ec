"""The kinds of published things: for each its base class, its laws and the verb that it is used by."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar

from regard.core.errors import did_you_mean, wrong

T = TypeVar("T")


@dataclass(frozen=True)
class Kind:
    """One kind of published thing, as data: what is named in it is imported when it is used.

    Args:
        name: what `published` calls it. heading: of its page, the plural. meaning: what it is, one sentence.
        verb: the function that one uses it by; empty where each of its things is used by itself. One that is named
            like the kind need not be written: see `core.verbs`.
        base: ``package.module.Class`` that its things derive from, or that its functions return; empty for none yet.
        laws: the module of its laws (see `regard.laws`); empty for none yet.
        open: whether its entries need no laws: each is held by its own claim alone.
    """

    name: str
    heading: str
    meaning: str
    verb: str
    base: str = ""
    laws: str = ""
    open: bool = False

    @property
    def module(self) -> ModuleType:
        """Its laws, imported now.

        Raises:
            LookupError: it has none.
        """
        if not self.laws:
            known = ", ".join(kind.name for kind in KINDS.values() if kind.laws)
            raise wrong("kind", repr(self.name), f"one that has laws: {known}", LookupError)
        return import_module(self.laws)

    def made_by(self, name: str) -> str:
        """What gives the thing of this name, for a message."""
        verb = self.verb == f"regard.{self.name}"
        return (
            f"{self.verb}({name!r}, …) makes this" if verb else f"regard.find({name!r}).thing is what this is made by"
        )

    def includes(self, thing: Any) -> bool:
        """Whether ``thing`` is of its base class, or derived from it; nothing is imported to find out."""
        module, _, name = self.base.rpartition(".")
        if module not in sys.modules:  # there cannot be anything of a class that has not been imported
            return False
        base = getattr(sys.modules[module], name)
        return issubclass(thing, base) if isinstance(thing, type) else isinstance(thing, base)


@dataclass(frozen=True)
class Sample:
    """A small instance for the laws of its kind: what ``examples()`` of a class or function gives.

    Args:
        label: what it is called in the report. thing: the instance. given: what else its laws want to know of it,
            such as the shape of its input.
    """

    label: str
    thing: Any
    given: Mapping[str, Any] = field(default_factory=dict)


def shown_by(make: Callable[[], Sequence[Any]]) -> Callable[[T], T]:
    """Gives the function below it ``examples()``, as the class method of this name does a class."""

    def give(function: T) -> T:
        function.examples = make  # pyright: ignore[reportAttributeAccessIssue]
        return function

    return give


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "mechanism",
            "Mechanisms",
            "An attention matrix A(q, k), the product A v computed without it, and its continuation token by token.",
            "regard.build",
            base="regard.core.mechanism.Mechanism",
            laws="regard.laws.mechanism",
        ),
        Kind(
            "graph",
            "Graph attention",
            "Each node of a graph attends to the sources of the edges that lead to it.",
            "regard.graph",
            base="regard.mechanisms.structured.graph.GraphAttention",
            laws="regard.laws.graph",
        ),
        Kind(
            "projection",
            "Projections",
            "How queries, keys and values come from hidden states, what a cache holds, and how heads are merged.",
            "regard.projection",
            base="regard.projections.base.Projection",
            laws="regard.laws.projection",
        ),
        Kind(
            "pattern",
            "Patterns",
            "Which entries of A may be non-zero, from positions alone.",
            "regard.pattern",
            base="regard.patterns.base.Pattern",
            laws="regard.laws.pattern",
        ),
        Kind(
            "router",
            "Routers",
            "Which keys, or blocks of them, each query attends to, chosen from the queries and keys themselves.",
            "regard.build('routed', score=…)",
            base="regard.routers.base.Router",
            laws="regard.laws.router",
        ),
        Kind(
            "kernel",
            "Kernels",
            "How A v is computed without forming A, by one process or by ranks that hold a part of the tokens each.",
            "",
            base="regard.kernels.base.Kernel",
            laws="regard.laws.kernel",
        ),
        Kind(
            "gate",
            "Gates",
            "A factor for each entry of a feature map, of the map's own shape.",
            "regard.gate",
            base="regard.featuremap.gate.Gate",
            laws="regard.laws.featuremap.gate",
        ),
        Kind(
            "mixture",
            "Mixtures",
            "Several feature maps or branches made one, by weights that they give.",
            "regard.mixture",
            base="regard.featuremap.mixture.Mixture",
            laws="regard.laws.featuremap.mixture",
        ),
        Kind(
            "neck",
            "Necks",
            "A pyramid of feature maps made into another, fine to coarse.",
            "regard.neck",
            base="regard.featuremap.neck.Neck",
            laws="regard.laws.featuremap.neck",
        ),
        Kind(
            "network",
            "Networks",
            "A whole model with attention in it, whose attention can be looked at.",
            "regard.network",
            base="regard.networks.base.Network",
            laws="regard.laws.network",
        ),
        Kind(
            "pool",
            "Pools",
            "A few latents that read an array of any length, and may write back to it.",
            "regard.pool",
            base="regard.networks.latents.base.Latents",
            laws="regard.laws.pool",
        ),
        Kind(
            "edit",
            "Edits",
            "A change of A, of queries and keys, of heads or of hidden states while a model runs.",
            "regard.steer",
            base="regard.core.edit.Edit",
            laws="regard.laws.edit",
        ),
        Kind(
            "decoding",
            "Decoding",
            "How the next tokens are proposed, scored and accepted, as a callable of `generate(custom_generate=…)`.",
            "",
            base="regard.decoding.base.Strategy",
            laws="regard.laws.decoding",
        ),
        Kind(
            "policy",
            "Cache policies",
            "Which columns of A a cache forgets, and when.",
            "regard.compress",
            base="regard.core.policy.Policy",
            laws="regard.laws.policy",
        ),
        Kind(
            "codec",
            "Codecs",
            "Vectors as few bits, and back.",
            "regard.quantise",
            base="regard.core.codec.Codec",
            laws="regard.laws.codec",
        ),
        Kind(
            "analysis",
            "Analyses",
            "A result computed from a model's weights or activations.",
            "",
            base="regard.analysis.base.Analysis",
            laws="regard.laws.analysis",
        ),
        Kind(
            "objective",
            "Objectives",
            "A loss for a language model's batch, and what is done to model and batch while it is computed.",
            "regard.objective",
            base="regard.train.objective.Objective",
            laws="regard.laws.objective",
        ),
        Kind(
            "study",
            "Studies",
            "A theorem, a benchmark, a cost model or an experiment of one paper, held by its own claim.",
            "",
            open=True,
        ),
    )
}
"""Every kind, by its name. A kind that gets a base and laws has one line here and one module of laws."""


def kind_named(name: str) -> Kind:
    """The kind of this name.

    Raises:
        ValueError: none has it; the message names all.
    """
    if name not in KINDS:
        raise wrong("kind", repr(name), f"one of {', '.join(KINDS)}{did_you_mean(name, KINDS)}")
    return KINDS[name]


def kind_of(thing: Any) -> Kind | None:
    """The kind whose base class ``thing``, a class or an instance, has; None where it is of none."""
    return next((kind for kind in KINDS.values() if kind.base and kind.includes(thing)), None)
