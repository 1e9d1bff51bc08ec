"""regard: attention — built, run fast, looked at.

Names are imported at their first use, so that the package itself costs nothing, and the atlas needs no PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from regard._version import __version__ as __version__
from regard.core.kinds import KINDS
from regard.renamed import install

if TYPE_CHECKING:
    from regard.analysis.align import align
    from regard.analysis.flow import flow
    from regard.analysis.patching import patch
    from regard.analysis.prune import prune
    from regard.analysis.register_neurons import registers
    from regard.analysis.roles import heads
    from regard.analysis.tracing import trace
    from regard.core.atlas import entries, find, search
    from regard.core.build import build
    from regard.core.cost import Cost, Shape
    from regard.core.layout import Layout
    from regard.core.mechanism import Example, LayerSpec, Mechanism, Signal, Traits
    from regard.core.reduction import Partial
    from regard.core.sizes import Sizes
    from regard.core.state import State
    from regard.featuremap.build import gate, mixture, neck
    from regard.featuremap.insert import insert
    from regard.hosts.attach import attach
    from regard.hosts.calibrate import calibrate
    from regard.hosts.compress import compress
    from regard.hosts.quantise import quantise
    from regard.hosts.steer import steer
    from regard.hosts.swap import swap
    from regard.hosts.watch import watch
    from regard.laws import check
    from regard.networks.vision.build import vision
    from regard.networks.vision.from_timm import from_timm
    from regard.records.format import Record
    from regard.records.look import look
    from regard.train.linearise import linearise
    from regard.web.overlay import overlay


install()

LATE = {
    "Cost": "regard.core.cost",
    "Example": "regard.core.mechanism",
    "LayerSpec": "regard.core.mechanism",
    "Layout": "regard.core.layout",
    "Mechanism": "regard.core.mechanism",
    "Partial": "regard.core.reduction",
    "Record": "regard.records.format",
    "Shape": "regard.core.cost",
    "Signal": "regard.core.mechanism",
    "Sizes": "regard.core.sizes",
    "State": "regard.core.state",
    "Traits": "regard.core.mechanism",
    "align": "regard.analysis.align",
    "attach": "regard.hosts.attach",
    "build": "regard.core.build",
    "calibrate": "regard.hosts.calibrate",
    "check": "regard.laws",
    "compress": "regard.hosts.compress",
    "entries": "regard.core.atlas",
    "find": "regard.core.atlas",
    "flow": "regard.analysis.flow",
    "from_timm": "regard.networks.vision.from_timm",
    "heads": "regard.analysis.roles",
    "linearise": "regard.train.linearise",
    "look": "regard.records.look",
    "patch": "regard.analysis.patching",
    "gate": "regard.featuremap.build",
    "insert": "regard.featuremap.insert",
    "overlay": "regard.web.overlay",
    "mixture": "regard.featuremap.build",
    "neck": "regard.featuremap.build",
    "prune": "regard.analysis.prune",
    "quantise": "regard.hosts.quantise",
    "registers": "regard.analysis.register_neurons",
    "search": "regard.core.atlas",
    "steer": "regard.hosts.steer",
    "swap": "regard.hosts.swap",
    "trace": "regard.analysis.tracing",
    "vision": "regard.networks.vision.build",
    "watch": "regard.hosts.watch",
}
"""Where each public name stands."""

__all__ = [
    "Cost",
    "Example",
    "LayerSpec",
    "Layout",
    "Mechanism",
    "Partial",
    "Record",
    "Shape",
    "Signal",
    "Sizes",
    "State",
    "Traits",
    "align",
    "attach",
    "build",
    "calibrate",
    "check",
    "compress",
    "entries",
    "find",
    "flow",
    "from_timm",
    "gate",
    "heads",
    "insert",
    "linearise",
    "look",
    "mixture",
    "neck",
    "overlay",
    "patch",
    "prune",
    "quantise",
    "registers",
    "search",
    "steer",
    "swap",
    "trace",
    "vision",
    "watch",
]


def __getattr__(name: str) -> Any:
    """A public name, or a package of regard, imported now."""
    if name == "Host":
        return getattr(import_module("regard.core.mechanism"), name)  # which says that it is LayerSpec now
    if name in LATE:
        found = getattr(import_module(LATE[name]), name)
        globals()[name] = found
        return found
    if name in KINDS and KINDS[name].verb == f"regard.{name}":
        globals()[name] = found = import_module("regard.core.verbs").maker(name)
        return found
    if not name.startswith("_") and find_spec(f"regard.{name}") is not None:
        return import_module(f"regard.{name}")
    raise AttributeError(f"module 'regard' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return sorted({*__all__, *(name for name, kind in KINDS.items() if kind.base and kind.verb == f"regard.{name}")})
