"""The text that `regard-tiny` learns: Python's standard library, its source and its documentation.

Every machine with Python has it. Tests and installed packages are left out; a tenth of the files is held out, chosen
by a hash of the file's name, so that the same file is on the same side whatever else the library holds.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import platform
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from regard.core.errors import wrong

LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
TOPICS = "pydoc_data/topics.py"


@dataclass(frozen=True)
class Corpus:
    """Documents to train on and documents held out, and which file each of the latter comes from.

    fingerprint: the Python version, how many files, and a hash of them.
    """

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    held_out_files: tuple[str, ...]
    fingerprint: str


def read_corpus(seed: int = 0, root: Path | None = None, share: float = 0.1) -> Corpus:
    """The standard library's documents, a `share` of the files held out.

    root: the library's folder; None for the running Python's.
    A file gives its source; its docstrings, which are part of it, are read in place. Of the help topics, a file that is
    one large dictionary, each topic is a document of its own.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    files = sorted(_sources(root), key=str)
    if not files:
        raise wrong("root", f"{root}, with no Python source", "the folder of the standard library", FileNotFoundError)
    sides: dict[bool, list[tuple[str, str]]] = {False: [], True: []}
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(root).as_posix()
        content = file.read_bytes()
        digest.update(name.encode() + hashlib.sha256(content).digest())
        documents = _documents(name, content.decode("utf-8", errors="replace"))
        sides[is_held_out(name, seed, share)] += [(document, name) for document in documents]
    fingerprint = f"Python {platform.python_version()}, {len(files)} files, sha256 {digest.hexdigest()[:16]}"
    train, held_out = (tuple(document for document, _ in sides[side]) for side in (False, True))
    return Corpus(train, held_out, tuple(name for _, name in sides[True]), fingerprint)


def is_held_out(name: str, seed: int, share: float = 0.1) -> bool:
    """Whether the file of this name (relative, with slashes) is kept from training."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _sources(root: Path) -> Iterator[Path]:
    return (f for f in root.rglob("*.py") if not LEFT_OUT.intersection(f.relative_to(root).parts))


def _documents(name: str, text: str) -> list[str]:
    if name == TOPICS:
        return _topics(text)
    return [text] if text.strip() else []


def _topics(text: str) -> list[str]:
    """The help topics' own text, instead of the dictionary of quoted lines that holds them."""
    assigned = next(node for node in ast.parse(text).body if isinstance(node, ast.Assign))
    return [inspect.cleandoc(topic) for topic in ast.literal_eval(assigned.value).values()]


def read_packages(names: Iterable[str], held_out: bool, seed: int = 0, root: Path | None = None) -> tuple[str, ...]:
    """The sources of some of the standard library's packages or modules, those held out or the others."""
    root = root or Path(sysconfig.get_paths()["stdlib"])
    wanted, found = set(names), []
    for file in sorted(_sources(root), key=str):
        name = file.relative_to(root).as_posix()
        if name.split("/")[0].removesuffix(".py") in wanted and is_held_out(name, seed, 0.25) == held_out:
            found.append(file.read_text(encoding="utf-8", errors="replace"))
    if not found:
        raise wrong("names", ", ".join(sorted(wanted)), "packages of the standard library", FileNotFoundError)
    return tuple(found)
