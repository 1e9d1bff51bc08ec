"""Which state of the code a result was measured with: a digest, for each file, of the pieces that its cell reaches.

A piece is a function, a class's head, a method, an assignment, an imported name. A cell reaches what it names, what
that names in turn, and the entries of the atlas whose names stand in its texts. A method is reached where its class
is and anything that is reached names it, as an attribute or as a text; those that Python and PyTorch call always are,
and so is every method of a class whose base is from elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache

from regard.core import code
from regard.core.code import PACKAGE, Piece, bound, pieces, tree
from regard.core.index import constants_of, scan

APART = frozenset(f"core.{name}" for name in ("atlas", "code", "errors", "index", "results", "search", "sources"))
"""What declares and finds, and never decides a figure."""
OF = "of"
"""Under this name a digest says whose it is: the code of the cell, and the entries that its texts name."""


def used(module: str, name: str, texts: Iterable[str] = ()) -> dict[str, str]:
    """Name and digest of every file of regard of which a class or function of ``regard.module`` reaches something.

    Args:
        texts: what else names entries of the atlas, such as the fields of a cell.

    Returns:
        by module, and under ``"of"`` whose they are, from which `changed` finds out what they would be now.
    """
    return dict(digests(" ".join((f"{module}:{name}", *sorted(named_in(texts))))))


def changed(known: Mapping[str, str]) -> list[str]:
    """The files, of those that `used` gave, whose digest is another one now, and those that have come or gone."""
    if OF not in known:
        return ["the code"]
    now = digests(known[OF])
    return sorted(name for name in known.keys() | now.keys() if known.get(name) != now.get(name))


@cache
def digests(of: str) -> Mapping[str, str]:
    """What a cell reaches, a digest for each file."""
    begun, *words = of.split()
    module, _, name = begun.partition(":")
    reach = Reach()
    reach.name(module, name)
    for word in words:
        reach.entry(word)
    reach.go()
    files: dict[str, list[Piece]] = {}
    for piece in sorted(reach.found, key=lambda piece: (piece.module, piece.place)):
        files.setdefault(piece.module, []).append(piece)
    return {OF: of} | {file: code.digest_of(found) for file, found in files.items()}


class Reach:
    """What a piece of code reaches, found piece by piece."""

    def __init__(self) -> None:
        self.found: set[Piece] = set()
        self.words: set[str] = set()
        self.waiting: dict[str, list[Piece]] = {}
        self.seen: set[tuple[str, str]] = set()
        self.todo: list[Piece] = []

    def go(self) -> None:
        """Until nothing new is reached."""
        while self.todo:
            piece = self.todo.pop()
            for name in piece.names:
                self.name(piece.module, name)
            for module, name in piece.imports:
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
            self.todo.append(piece)
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
        if module in APART or (module, name) in self.seen:
            return
        self.seen.add((module, name))
        if not module:
            self.late(name)
        for piece in bound(module).get(name, ()) if module else ():
            self.take(piece)

    def module(self, module: str) -> None:
        """A file that is named itself: its names wait until something names them."""
        if module not in APART and (module, "") not in self.seen:
            self.seen.add((module, ""))
            for piece in pieces(module):
                self.wait(piece) if piece.binds else self.take(piece)

    def run(self, module: str) -> None:
        """What is done when a file is imported, besides binding names."""
        if (module, "run") not in self.seen:
            self.seen.add((module, "run"))
            for piece in pieces(module):
                if not piece.binds:
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
