"""Which files stand in a room, and which fast tests say whether one of them is right."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

ROOMS = {
    "kernels": ["unit/kernels"],
    "mechanisms": ["unit/mechanisms"],
    "patterns": ["unit/patterns"],
    "projections": ["unit/projections", "unit/blocks"],
    "networks": ["unit/networks"],
    "routers": ["laws/test_routers.py", "unit/mechanisms"],
    "featuremap": ["unit/featuremap"],
    "edits": ["unit/edits"],
    "policies": ["unit/policies"],
    "decoding": ["unit/decoding"],
    "parallel": ["unit/parallel"],
    "analysis": ["unit/analysis"],
    "studies": ["unit/studies"],
    "laws": [],
    "hosts": ["unit/hosts"],
    "probes": ["unit/probes"],
    "records": ["unit/records", "unit/probes"],
    "compare": ["unit/compare"],
    "experiments": ["unit/compare"],
    "plan": ["unit/plan"],
    "web": ["web"],
}
LEFT_OUT = ("triton.py", "fla.py", "lists.py", "small", "bundle")
"""Kernels that are run under an interpreter, weights, what Vite built."""
LAWS, MUTANTS = "laws/test_laws.py", "laws/test_mutants.py"
LAWFUL = (
    *("mechanisms", "patterns", "projections", "networks", "routers", "featuremap", "edits", "analysis"),
    *("policies", "decoding", "parallel"),
)
"""Rooms whose published things are held to laws."""


def files_of(package: Path, room: str) -> list[Path]:
    """The room's files that hold code."""
    found = sorted((package / room).rglob("*.py"))
    return [p for p in found if not set(p.parts) & set(LEFT_OUT) and p.name != "__init__.py"]


def tests_of(tests: Path, room: str, file: str) -> list[str]:
    """The tests of a file, the closest first: those that name it, then its room's; the laws of what is built on it.

    Laws themselves are tested by the mutants of their kind.
    """
    if room == "laws":
        return [str(tests / MUTANTS), "-k", f"{Path(file).stem}:" if "/mechanism/" not in file else "mechanism:"]
    module = file.removesuffix(".py").replace("/", ".")
    own, stem = [tests / place for place in ROOMS[room] if (tests / place).exists()], rf"\b{Path(file).stem}\b"
    chosen = [p for p in every_test(tests) if within(p, own) and re.search(stem, text_of(p))]
    if room not in ("kernels", "hosts") or not chosen:
        chosen += own
    others = [p for p in every_test(tests) if p not in chosen]
    chosen += [p for p in others if imports(p, module) or (room == "mechanisms" and re.search(stem, text_of(p)))][:4]
    told = [f"{name}:" for name in lawful_of(tests.parent / "src", room, file)]
    told += ["beside"] if room in ("projections", "networks") else []  # what no paper claims
    laws = [str(tests / LAWS), "-k", " or ".join(["not test_law", *told])] if told else []
    return [*dict.fromkeys(map(str, chosen)), *laws]


def lawful_of(source: Path, room: str, file: str) -> list[str]:
    """The things under laws that the file defines, or some of its room that stand on it."""
    if room not in ("kernels", *LAWFUL):
        return []
    module = file.removesuffix(".py").replace("/", ".")
    users = [source / file] if room in LAWFUL else []
    above = "mechanisms" if room == "kernels" else room
    users += [p for p in sorted((source / "regard" / above).rglob("*.py")) if imports(p, module)]
    return [name for p in users for name in re.findall(r"@published\(\n    \"(\w+)\"", text_of(p))][:4]


def within(path: Path, places: list[Path]) -> bool:
    return "gpu" not in path.name and any(path == place or place in path.parents for place in places)


def imports(path: Path, module: str) -> bool:
    package, _, name = module.rpartition(".")
    return bool(re.search(rf"from {module} import|from {package} import [^\n]*\b{name}\b", text_of(path)))


@cache
def every_test(tests: Path) -> list[Path]:
    return sorted(tests.rglob("test_*.py"))


@cache
def text_of(path: Path) -> str:
    return path.read_text()
