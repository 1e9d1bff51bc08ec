"""The laws: what every thing of a kind must satisfy.

The module of a kind's laws, named in `regard.core.kinds.KINDS`, has three names:

- ``LAWS``: each law by its name, a function of a subject that returns what it measured, and raises `Broken` where it
  does not hold, `Unclaimed` where the thing does not claim what it is about;
- ``subject(example, device)``: what the laws look at, made of an example anew for each of them;
- ``example(thing, **given)``: an instance from elsewhere as an example.

Examples come from ``examples()`` of the class or function, and have a ``label``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from regard.core.atlas import ENTRIES
from regard.core.deprecated import warn
from regard.core.errors import wrong
from regard.core.kinds import KINDS, Kind, kind_of
from regard.laws.finding import Broken, Finding, Report, Unclaimed, same

__all__ = ["Broken", "Finding", "Report", "Unclaimed", "check", "devices", "examine", "examples_of", "laws_of", "same"]


def laws_of(kind: str) -> list[str]:
    """The names of a kind's laws.

    Raises:
        LookupError: it has none.
    """
    return list(KINDS[kind].module.LAWS)


def examine(example: Any, law: str, device: str = "cpu", kind: str = "mechanism") -> Finding:
    """One example of a ``kind`` against one of its laws. An exception inside the thing breaks the law that met it.

    On a GPU convolutions neither round to TF32 nor sum in an order of their own.
    """
    of = KINDS[kind].module
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            return Finding(law, example.label, "holds", of.LAWS[law](of.subject(example, device)))
    except Unclaimed as claim:
        return Finding(law, example.label, "not claimed", str(claim))
    except Broken as broken:
        return Finding(law, example.label, "broken", str(broken))
    except Exception as error:
        return Finding(law, example.label, "broken", f"{type(error).__name__}: {error}")


def devices() -> list[str]:
    """The devices that laws are examined on: the CPU, and the accelerator where there is one."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def check(thing: Any, **given: Any) -> Report:
    """Holds a thing, yours or one of regard's, to all laws of its kind.

    Args:
        thing: an instance, examined as it is; or a class or a published function, by its ``examples()``.
        given: with an instance, what its laws want to know: ``heads`` and ``kv_heads`` of a mechanism.

    Raises:
        TypeError: something of no kind that has laws, or ``given`` with a class.
    """
    kind = kind_to_check(thing)
    if examined_by_examples(thing):
        if given:
            raise wrong(
                next(iter(given)), "a setting for a class", "an instance: a class has its own examples", TypeError
            )
        examples = examples_of(thing)
    else:
        examples = [kind.module.example(thing, **given)]
    findings = [
        examine(example, law, device, kind.name)
        for law in laws_of(kind.name)
        for example in examples
        for device in devices()
    ]
    return Report(tuple(findings))


def examined_by_examples(thing: Any) -> bool:
    """Whether it is a class or a published function, which have examples, and no instance."""
    return isinstance(thing, type) or published_kind(thing) is not None


def examples_of(thing: Any) -> Sequence[Any]:
    """The examples of a class or a function, the same at every call.

    Raises:
        TypeError: it has none.
    """
    if not callable(getattr(thing, "examples", None)):
        raise wrong("examples", f"none of {thing!r}", "a list of small instances: `examples()`", TypeError)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return thing.examples()


def published_kind(thing: Any) -> Kind | None:
    """The kind that a class or function was published with."""
    return next((KINDS[entry.kind] for entry in ENTRIES.values() if entry.given is thing), None)


def kind_to_check(thing: Any) -> Kind:
    """The kind of a thing, which has laws.

    Raises:
        TypeError: it is of none.
    """
    kind = published_kind(thing) or kind_of(thing)
    if kind is None or not kind.laws:
        bases = [f"a {kind.name} ({kind.base})" for kind in KINDS.values() if kind.laws]
        wanted = f"an instance or a class of a kind that has laws: {', '.join(bases)}"
        raise wrong("thing", f"{thing!r}, a {type(thing).__name__}", wanted, TypeError)
    return kind


def __getattr__(name: str) -> Any:
    """The laws of mechanisms, which were all there were in 0.1, until 0.3."""
    if name != "LAWS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warn("regard.laws.LAWS", "regard.laws.mechanism.LAWS")
    return KINDS["mechanism"].module.LAWS
