"""Which files stand in a room, and which fast tests say whether one of them is right."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Room:
    """A part of the package in which faults are planted.

    Args:
        tests: files and folders below ``tests``.
        sources: files and folders below the package; the room's own name where it is the folder's.
        lawful: whether what its files define, or what stands on them, is held to laws.
        narrow: whether, of its folders, tests that name a file are enough for it, where there are such, since the rest
            take long.
    """

    tests: tuple[str, ...]
    sources: tuple[str, ...] = ()
    lawful: bool = False
    narrow: bool = False


CAPTIONING = ("networks/captioning", "networks/pointer.py", "networks/monotonic.py", "networks/multi_source.py")
LABELS = ("networks/bidaf.py", "networks/label_attention.py", "mechanisms/structured")
ROOMS = {
    "core": Room(("unit/core", "unit/cli"), lawful=True, narrow=True),
    "kernels": Room(("unit/kernels",), lawful=True, narrow=True),
    "mechanisms": Room(("unit/mechanisms",), lawful=True),
    "patterns": Room(("unit/patterns",), lawful=True),
    "projections": Room(("unit/projections", "unit/blocks"), lawful=True),
    "blocks": Room(("unit/blocks", "unit/networks/test_lm.py", "unit/test_reference_layers.py")),
    "networks": Room(("unit/networks",), lawful=True, narrow=True),
    "structure": Room(
        ("unit/networks", "unit/mechanisms/test_graph.py", "unit/mechanisms/test_tree.py"),
        (*CAPTIONING, *LABELS),
        lawful=True,
        narrow=True,
    ),
    "routers": Room(("laws/test_routers.py", "unit/mechanisms"), lawful=True, narrow=True),
    "gates": Room(("unit/featuremap",), ("featuremap/gates", "featuremap/gate.py"), lawful=True, narrow=True),
    "necks": Room(("unit/featuremap",), ("featuremap/necks", "featuremap/neck.py"), lawful=True, narrow=True),
    "featuremap": Room(("unit/featuremap",), lawful=True, narrow=True),
    "edits": Room(("unit/edits",), lawful=True),
    "policies": Room(("unit/policies",), lawful=True),
    "codecs": Room(("unit/codecs",), lawful=True),
    "decoding": Room(("unit/decoding",), lawful=True),
    "parallel": Room(("unit/parallel",), lawful=True),
    "analysis": Room(("unit/analysis",), lawful=True, narrow=True),
    "studies": Room(("unit/studies",), lawful=True, narrow=True),
    "objectives": Room(
        ("unit/train/test_objectives.py", "unit/train/test_preplan_anchor.py", "unit/train/test_heads.py"),
        ("train/objectives", "train/objective.py"),
        lawful=True,
    ),
    "train": Room(("unit/train",), narrow=True),
    "tasks": Room(("unit/tasks", "unit/compare"), narrow=True),
    "laws": Room(()),
    "hosts": Room(("unit/hosts",), narrow=True),
    "probes": Room(("unit/probes",)),
    "records": Room(("unit/records", "unit/probes")),
    "compare": Room(("unit/compare",)),
    "experiments": Room(("unit/compare",)),
    "plan": Room(("unit/plan",)),
    "web": Room(("web",)),
    "cli": Room(("unit/cli",), narrow=True),
}
"""Every folder of the package but `claims`, which measures: a file belongs to the room that names it most closely."""
LEFT_OUT = ("triton.py", "fla.py", "lists.py", "small", "bundle")
"""Kernels that are run under an interpreter, weights, what Vite built."""
LAWS, MUTANTS = "laws/test_laws.py", "laws/test_mutants.py"
STANDING_ON = {"kernels": "mechanisms", "core": ""}
"""Where what stands on a room that publishes little is looked for, if not in the room itself."""


def sources_of(room: str) -> tuple[str, ...]:
    return ROOMS[room].sources or (room,)


def room_of(file: str) -> str | None:
    """The room of a file below the package."""
    found = [(len(s), room) for room in ROOMS for s in sources_of(room) if file == s or file.startswith(f"{s}/")]
    return max(found)[1] if found else None


def files_of(package: Path, room: str) -> list[Path]:
    """The room's files that hold code."""
    places = [package / source for source in sources_of(room)]
    found = [p for place in places for p in (place.rglob("*.py") if place.is_dir() else [place])]
    own = [p for p in found if room_of(p.relative_to(package).as_posix()) == room]
    return sorted(p for p in own if not set(p.parts) & set(LEFT_OUT) and p.name != "__init__.py")


def tests_of(tests: Path, room: str, file: str) -> list[tuple[str, ...]]:
    """The tests of a file as pytest is told them, the closest first: those that name it, then its room's; the laws of
    what is built on it.

    Laws themselves are tested by the mutants of their kind, and by the tests that examine something by them.
    """
    if room == "laws":
        return tests_of_laws(tests, file)
    module = file.removesuffix(".py").replace("/", ".")
    own, stem = [tests / place for place in ROOMS[room].tests], Path(file).stem
    chosen = naming(file, [p for p in every_test(tests) if within(p, own)])
    chosen += [p for p in own if p.is_file() or not ROOMS[room].narrow or not chosen]
    told = set(chosen)
    others = [p for p in plain_tests(tests) if p not in told]
    using = [p for p in others if imports(p, module, defined(tests.parent / "src" / file))]
    using.sort(key=lambda p: not imports(p, module))  # names may be others' too
    chosen += (using + [p for p in others if room == "mechanisms" and stem in words_of(p)])[:4]
    chosen += [p for p in every_test(tests) if p.stem.partition("test_gpu_")[2] in file.split("/")]
    files = [p for place in chosen for p in ([place] if place.is_file() else every_test(tests)) if within(p, [place])]
    lawful = [f":{name}: or [{name}]" for name in lawful_of(tests.parent / "src", room, file)]
    lawful += ["beside"] if room in ("projections", "networks") else []  # what no paper claims
    laws = [(str(tests / LAWS), "-k", " or ".join(lawful))] if lawful else []
    return [*((str(p),) for p in dict.fromkeys(files)), *laws]


def naming(file: str, tests: list[Path]) -> list[Path]:
    """The tests that name a file, or else the folder that it stands in, below its room's."""
    words = [Path(file).stem, *reversed(Path(file).parts[2:-1])]
    found = ([p for p in tests if word in words_of(p)] for word in words if word != "base")
    return next((hits for hits in found if hits), [])


def tests_of_laws(tests: Path, file: str) -> list[tuple[str, ...]]:
    """The mutants of the kind whose laws a file holds, or of some whose laws take from it."""
    kind = "mechanism" if "/mechanism/" in file else Path(file).stem
    module, names = file.removesuffix(".py").replace("/", "."), defined(tests.parent / "src" / file)
    examining = [p for p in plain_tests(tests) if imports(p, module, names) or examines(p, kind)]
    examining.sort(key=lambda p: not (imports(p, module) or examines(p, kind)))
    laws = sorted((tests.parent / "src/regard/laws").rglob("*.py"))
    kinds = [kind] + [p.stem for p in laws if imports(p, module) and p.stem != "__init__"]
    broken = [name for name in kinds if (tests / f"mutants/{name}.py").exists()]
    told = " or ".join(f"{name}:" for name in broken[: 1 if kind in broken else 3])
    return [(str(tests / MUTANTS), "-k", told or "edit:"), *((str(p),) for p in examining[:4])]


def examines(path: Path, kind: str) -> bool:
    """Whether it holds something to laws of a kind that it names."""
    return "examine(" in text_of(path) and f'kind="{kind}"' in text_of(path)


def lawful_of(source: Path, room: str, file: str) -> list[str]:
    """The things under laws that the file defines, or some of its room that stand on it."""
    if not ROOMS[room].lawful:
        return []
    module = file.removesuffix(".py").replace("/", ".")
    place = source / "regard" / STANDING_ON.get(room, file.split("/")[1])
    users = [source / file] if room not in STANDING_ON else []
    users += [p for p in sorted(place.rglob("*.py")) if imports(p, module)]
    return [name for p in users for name in re.findall(r"@published\(\n    \"(\w+)\"", text_of(p))][:3]


def within(path: Path, places: list[Path]) -> bool:
    """Whether a test is one of the files, or in one of the folders; those under an interpreter take long."""
    return path in places or ("gpu" not in path.name and not parents_of(path).isdisjoint(places))


@cache
def parents_of(path: Path) -> frozenset[Path]:
    return frozenset(path.parents)


@cache
def words_of(path: Path) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text_of(path)))


def imports(path: Path, module: str, names: tuple[str, ...] = ()) -> bool:
    """Whether it takes a module, or some of its names from a package that the module stands in, or calls one of these
    as ``regard.name``."""
    package, _, name = module.rpartition(".")
    taken, called = taken_by(path)
    if module in taken or name in taken.get(package, ()):
        return True
    above = [".".join(module.split(".")[:deep]) for deep in range(2, module.count(".") + 1)]
    known = frozenset(names)
    return bool(above) and not known.isdisjoint(called.union(*(taken.get(each, ()) for each in above)))


@cache
def taken_by(path: Path) -> tuple[dict[str, frozenset[str]], frozenset[str]]:
    """The words that a file takes from each module, and those that it calls as ``regard.word``."""
    taken: dict[str, frozenset[str]] = {}
    for module, words in re.findall(r"from ([\w.]+) import (\([^)]*|[^\n]*)", text_of(path)):
        taken[module] = taken.get(module, frozenset()) | frozenset(re.findall(r"\w+", words))
    return taken, frozenset(re.findall(r"\bregard\.(\w+)\(", text_of(path)))


@cache
def defined(file: Path) -> tuple[str, ...]:
    """The public classes and functions of a file."""
    return tuple(re.findall(r"^(?:class|def) ([a-zA-Z]\w*)", text_of(file), re.MULTILINE))


@cache
def every_test(tests: Path) -> list[Path]:
    return sorted(tests.rglob("test_*.py"))


@cache
def plain_tests(tests: Path) -> list[Path]:
    """Those that are no laws and need neither a GPU nor an interpreter of its kernels."""
    return [p for p in every_test(tests) if p.parent.name not in ("laws", "cuda") and "gpu" not in p.name]


@cache
def text_of(path: Path) -> str:
    return path.read_text()
