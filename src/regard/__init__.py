"""regard: attention — built, run fast, looked at."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from regard import blocks as blocks  # registers every projection in the atlas
from regard import mechanisms as mechanisms  # and every mechanism
from regard import networks as networks  # and every network
from regard.core.atlas import entries, find, search
from regard.core.build import build
from regard.core.cost import Cost, Shape
from regard.core.laws import check
from regard.core.layout import Layout
from regard.core.mechanism import Example, Host, Mechanism, Signal, Traits
from regard.core.reduction import Partial
from regard.core.state import State

if TYPE_CHECKING:
    from regard.hosts.swap import swap
    from regard.hosts.watch import watch
    from regard.probes.folder import Record

__version__ = "0.1.0"

__all__ = [
    "Cost",
    "Example",
    "Host",
    "Layout",
    "Mechanism",
    "Partial",
    "Record",
    "Shape",
    "Signal",
    "State",
    "Traits",
    "build",
    "check",
    "entries",
    "find",
    "search",
    "swap",
    "watch",
]

LATE = {"swap": "regard.hosts.swap", "watch": "regard.hosts.watch", "Record": "regard.probes.folder"}


def __getattr__(name: str) -> Any:
    """Imports what stands on Transformers at its first use, so that mechanisms alone start fast."""
    if name in LATE:
        return getattr(import_module(LATE[name]), name)
    raise AttributeError(f"module 'regard' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
