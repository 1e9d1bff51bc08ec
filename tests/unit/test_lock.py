"""The lock: it meets the bounds, covers all that they bring in, and is what is installed."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirements(path: Path) -> list[Requirement]:
    lines = (re.sub(r"(^|\s+)#.*", "", line) for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def here(wanted: Requirement, extras: frozenset[str] = frozenset()) -> bool:
    """Whether the requirement holds on this machine, for one of the extras asked for."""
    return wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in extras or {""})


def declared() -> list[Requirement]:
    """The bounds of pyproject.toml: of the package, of every extra, and of the build."""
    project = PROJECT["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values(), PROJECT["build-system"]["requires"]]
    found = (Requirement(line) for group in groups for line in group)
    return [r for r in found if r.name != "regard" and here(r)]


LOCK = {canonicalize_name(r.name): r.specifier for r in requirements(ROOT / "constraints.txt") if here(r)}


def closure() -> dict[str, Requirement]:
    """Everything that the declared requirements bring in, as the installed packages tell it, each with who wants it."""
    found: dict[str, Requirement] = {}
    queue = declared()
    seen: set[tuple[str, frozenset[str]]] = set()
    while queue:
        wanted = queue.pop()
        name, extras = canonicalize_name(wanted.name), frozenset(wanted.extras)
        found[name] = wanted
        if (name, extras) not in seen:
            seen.add((name, extras))
            needs = (Requirement(line) for line in metadata.requires(name) or ())
            queue += [r for r in needs if here(r, extras)]
    return found


def test_every_line_pins_one_version():
    files = ("constraints.txt", "constraints.in", "benchmarks/peers.txt", "benchmarks/peers.in", "tools/models.txt")
    pins = [r for name in files for r in requirements(ROOT / name)]
    assert [str(r) for r in pins if [s.operator for s in r.specifier] != ["=="]] == []
    peers = {str(r) for r in requirements(ROOT / "benchmarks/peers.txt")}
    assert {str(r) for r in requirements(ROOT / "benchmarks/peers.in")} <= peers, "peers.in changed: run `make lock`"


def test_the_lock_meets_the_bounds():
    for wanted in declared():
        (pin,) = LOCK[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(pin.version), f"{wanted} is locked at {pin.version}"
    for wanted in filter(here, requirements(ROOT / "constraints.in")):
        assert LOCK[canonicalize_name(wanted.name)] == wanted.specifier, "constraints.in changed: run `make lock`"


def test_what_is_installed_is_the_lock():
    found = closure()
    assert {"torch", "transformers", "huggingface-hub", "pydantic-core"} <= found.keys()
    assert sorted(found.keys() - LOCK.keys()) == [], "not locked: run `make lock`"
    other = [f"{name} {metadata.version(name)}" for name in found if metadata.version(name) not in LOCK[name]]
    assert other == [], "installed is not what the lock has: run `make test`, which installs it"
