"""Which state of the code a result was measured with: a digest, for each file, of the pieces that its cell reaches.

A piece is a function, a class's head, a method, an assignment, an imported name. A cell reaches what it names, what
that names in turn, and the entries of the atlas whose names stand in its texts. A method is reached where its class
is and anything that is reached names it, as an attribute or as a text; those that Python and PyTorch call always are,
and so is every method of a class whose base is from elsewhere.

Where it is known which functions ran while a result was measured (`core.executed`), those that are reached and never
ran are *idle*: they are named in the digest, of each only its name and decorators count, and what they name is not
reached through them. A function that is not among the idle ones counts, so that new ones do. A file that was never
imported is idle as a whole, ``"module:*"``.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache

from regard.core import code
from regard.core.code import PACKAGE, Piece, bound, path_of, pieces, tree
from regard.core.index import constants_of, scan

APART = frozenset(
    f"core.{name}" for name in ("atlas", "code", "errors", "executed", "index", "results", "search", "sources")
)
"""What declares and finds, and never decides a figure."""
MEASURING = frozenset(("claims.book", "claims.cells", "claims.declared", "experiments.cell", "experiments.run"))
"""What runs when any cell is measured."""
OF = "of"
"""Under this name a digest says whose it is: the code of the cell, and the entries that its texts name."""


WHOLE = "*"
"""Stands for all functions of a file."""
RUN = "run it"
"""In the place of a name: what a file does when it is imported, besides binding names."""
IDLE, ALSO = "idle", "also"
"""Under these names it says which functions never ran, absent where that is not known, and which ran untold."""


def used(
    module: str,
    name: str,
    texts: Iterable[str] = (),
    ran: Callable[[str], bool] | None = None,
    also: Iterable[str] = (),
) -> dict[str, str]:
    """Name and digest of every file of regard of which a class or function of ``regard.module`` reaches something.

    Args:
        texts: what else names entries of the atlas, such as the fields of a cell. ran: whether the function
            ``"module:name"`` may have run, and the file ``"module:*"``; None where that is not known. also: functions
            that did run, whoever names them.

    Returns:
        by module, and under ``"of"``, ``"idle"`` and ``"also"`` whose they are, from which `changed` finds out what
        they would be now.
    """
    of = subject(module, name, texts)
    if ran is None:
        return dict(digests(of))
    told = {piece.function for piece in reached(of, lambda function: False).found}
    untold = by_file(function for function in also if function not in told and not apart(function))
    reach = reached(of, lambda function: not ran(function), untold)
    resting = [piece.function for piece in reach.idle] + [f"{module}:{WHOLE}" for module in reach.away]
    return dict(digests(of, by_file(resting), untold))


def subject(module: str, name: str, texts: Iterable[str] = ()) -> str:
    """Whose code it is that `used` tells of: of a class or function of ``regard.module``, and of the entries named."""
    return " ".join((f"{module}:{name}", *sorted(named_in(texts))))


def changed(known: Mapping[str, str]) -> list[str]:
    """The files, of those that `used` gave, whose digest is another one now, and those that have come or gone."""
    if OF not in known:
        return ["the code"]
    now = digests(known[OF], known.get(IDLE), known.get(ALSO, ""))
    return sorted(name for name in known.keys() | now.keys() if known.get(name) != now.get(name))


@contextmanager
def uncollected() -> Iterator[None]:
    """While many digests are taken: Python does not look for garbage, which among the nodes of all trees takes a third
    of the time. They are kept to the end, so that it need not look at them afterwards either."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.freeze()
            gc.enable()


@cache
def digests(of: str, idle: str | None = None, also: str = "") -> Mapping[str, str]:
    """What a cell reaches, a digest for each file.

    Args:
        idle: the functions that never ran; None where that is not known. also: those that ran and no name tells of.
    """
    reach = reached(of, frozenset(functions_in(idle or "")).__contains__, also)
    files: dict[str, list[Piece]] = {}
    for piece in sorted(reach.found, key=lambda piece: (piece.module, piece.place)):
        files.setdefault(piece.module, []).append(piece)
    told = {OF: of} | ({} if idle is None else {IDLE: idle}) | ({ALSO: also} if also else {})
    return told | {file: code.digest_of(found, reach.idle) for file, found in files.items()}


def reached(of: str, rests: Callable[[str], bool], also: str = "") -> Reach:
    """All that a cell reaches."""
    begun, *words = of.split()
    module, _, name = begun.partition(":")
    reach = Reach(rests)
    reach.name(module, name)
    for word in words:
        reach.entry(word)
    for function in functions_in(also):
        reach.function(function)
    reach.go()
    return reach


def by_file(functions: Iterable[str]) -> str:
    """Functions as one text: ``"core.layout:Layout.pad,Layout.keys core.state:count_new"``."""
    files: dict[str, list[str]] = {}
    for function in sorted(set(functions)):
        file, _, name = function.partition(":")
        files.setdefault(file, []).append(name)
    return " ".join(f"{file}:{','.join(names)}" for file, names in files.items())


def functions_in(text: str) -> Iterator[str]:
    """`by_file` undone."""
    for part in text.split():
        file, _, names = part.partition(":")
        yield from (f"{file}:{name}" for name in names.split(","))


def apart(function: str) -> bool:
    """Whether a function declares, finds or measures, and never decides a figure."""
    module = function.partition(":")[0]
    return module in APART or module in MEASURING or module.startswith("cli")


class Reach:
    """What a piece of code reaches, found piece by piece.

    Args:
        rests: whether the function ``"module:name"`` never runs; nothing is reached through it.
    """

    def __init__(self, rests: Callable[[str], bool]) -> None:
        self.rests = rests
        self.found: set[Piece] = set()
        self.idle: set[Piece] = set()
        self.away: set[str] = set()
        self.words: set[str] = set()
        self.waiting: dict[str, list[Piece]] = {}
        self.seen: set[tuple[str, str]] = set()
        self.todo: list[Piece] = []

    def go(self) -> None:
        """Until nothing new is reached."""
        while self.todo:
            piece = self.todo.pop()
            for module, name in links(piece) - self.seen:
                self.name(module, name) if name else self.module(module)
            for member in piece.members:
                self.take(member) if member.always else self.wait(member)
            for word in piece.words - self.words:
                self.words.add(word)
                for waiting in self.waiting.pop(word, ()):
                    self.take(waiting)
            for word in named_in(piece.texts) if piece.module.startswith("claims.") else ():
                self.entry(word)

    def take(self, piece: Piece) -> None:
        """One more piece."""
        if piece not in self.found:
            self.found.add(piece)
            if piece.function and self.rests(piece.function):
                self.idle.add(piece)
            else:
                self.todo.append(piece)
            if (piece.module, RUN) not in self.seen:
                self.run(piece.module)

    def wait(self, piece: Piece) -> None:
        """A piece that is reached once something names it."""
        for name in piece.binds:
            if name in self.words:
                self.take(piece)
            else:
                self.waiting.setdefault(name, []).append(piece)

    def name(self, module: str, name: str) -> None:
        """What binds ``name`` in a file; all of the file, where it gives the name in a way that cannot be read."""
        if module in APART or (module, name) in self.seen or self.is_away(module):
            return
        self.seen.add((module, name))
        if not module:
            self.late(name)
        for piece in bound(module).get(name, ()) if module else ():
            self.take(piece)

    def module(self, module: str) -> None:
        """A file that is named itself: its names wait until something names them."""
        if module not in APART and (module, "") not in self.seen and not self.is_away(module):
            self.seen.add((module, ""))
            for piece in pieces(module):
                self.wait(piece) if piece.binds else self.take(piece)

    def run(self, module: str) -> None:
        """What is done when a file is imported, besides binding names."""
        self.seen.add((module, RUN))
        for piece in pieces(module):
            if not piece.binds:
                self.take(piece)

    def is_away(self, module: str) -> bool:
        """Whether a file was never imported."""
        if module and module not in self.away and path_of(module) and self.rests(f"{module}:{WHOLE}"):
            self.away.add(module)
        return module in self.away

    def function(self, function: str) -> None:
        """A function that is told as ``"module:name"`` or ``"module:Class.name"``."""
        module, _, name = function.partition(":")
        owner, _, member = name.rpartition(".")
        known = bound(module).get(owner or name, ())
        for piece in known if not owner else [one for whole in known for one in whole.members]:
            if not owner or member in piece.binds:
                self.take(piece)

    def late(self, name: str) -> None:
        """A public name of the package itself."""
        known = constants_of(tree("")).get("LATE", {})
        if name in known:
            self.name(known[name].removeprefix(f"{PACKAGE}."), name)

    def entry(self, word: str) -> None:
        """The entry of the atlas of this name."""
        if word in entries():
            self.name(*entries()[word])


@cache
def links(piece: Piece) -> frozenset[tuple[str, str]]:
    """Module and name of what a piece names bare and its own file binds, and of what it imports."""
    named = piece.names & bound(piece.module).keys()
    return frozenset([*((piece.module, name) for name in named), *piece.imports])


def named_in(texts: Iterable[str]) -> set[str]:
    """The entries of the atlas that texts name."""
    return {word for text in texts for word in re.findall(r"[a-z][a-z0-9_]*", text) if word in entries()}


@cache
def entries() -> Mapping[str, tuple[str, str]]:
    """Module and name in it of every entry of the atlas, by name and alias."""
    found = {}
    for declaration in scan(code.ROOT, PACKAGE):
        module, _, name = declaration.where.removeprefix(f"{PACKAGE}.").rpartition(".")
        told = declaration.arguments
        found |= dict.fromkeys((told.get("0", told.get("name")), *told.get("aliases", ())), (module, name))
    return found
