"""Which functions of regard have run in this process: each marks itself, from when `begin` is called.

The mark is one statement at the beginning of a function at the top of a file, or of a method of a class at the top: the
pieces of `core.code`. It is put there when the file is imported, so that files imported before are unmarked, and all of
their functions count as run. What ran stays known until the process ends: values that are kept, such as models that are
trained once, make later calls that run nothing.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

PACKAGE = "regard"
MARK = "__ran__"
"""What a marked function calls."""
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef

RAN: set[str] = set()
"""``"module:function"`` or ``"module:Class.method"`` of what has run since `taken` was called last."""
BEFORE: set[str] = set()
"""Of what had run before."""


class Marking(SourceFileLoader):
    """Loads a file with a mark in each of its functions; its compiled form is not kept."""

    def get_code(self, fullname: str):
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path))
        mark(tree, fullname.removeprefix(f"{PACKAGE}."))
        return compile(tree, path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        setattr(module, MARK, RAN.add)
        super().exec_module(module)


class Finder(MetaPathFinder):
    """Finds files of the package as Python does, to be loaded by `Marking`.

    Args:
        children: seconds that child processes had taken when it began.
    """

    def __init__(self, children: float) -> None:
        self.children = children
        self.unmarked = {name.removeprefix(f"{PACKAGE}.") for name in sys.modules if belongs(name)}

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None):
        spec: ModuleSpec | None = PathFinder.find_spec(fullname, path, target) if belongs(fullname) else None
        if spec is None or type(spec.loader) is not SourceFileLoader:
            return None
        spec.loader = Marking(spec.loader.name, spec.loader.path)
        return spec


def belongs(name: str) -> bool:
    """Whether a module is regard's, below its root."""
    return name.startswith(f"{PACKAGE}.")


def mark(tree: ast.Module, module: str) -> None:
    """Puts the mark into each function of a file."""
    for owner, function in functions(tree):
        first = function.body[0]
        place = int(isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant))
        call = ast.Call(ast.Name(MARK, ast.Load()), [ast.Constant(f"{module}:{owner}{function.name}")], [])
        noted = ast.fix_missing_locations(ast.copy_location(ast.Expr(call), first))
        function.body.insert(place, noted)


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions at the top of a file, and methods of classes at the top with the class's name and a dot."""
    for statement in tree.body:
        if isinstance(statement, FUNCTIONS):
            yield "", statement
        if isinstance(statement, ast.ClassDef):
            yield from ((f"{statement.name}.", one) for one in statement.body if isinstance(one, FUNCTIONS))


def begin() -> None:
    """Marks the functions of files that are imported from now on."""
    if finder() is None:
        sys.meta_path.insert(0, Finder(seconds_of_children()))


def finder() -> Finder | None:
    """The finder in place, None before `begin`."""
    return next((one for one in sys.meta_path if isinstance(one, Finder)), None)


def known() -> bool:
    """Whether all that ran is known: it has begun, and no other process has worked for this one since."""
    found = finder()
    return found is not None and seconds_of_children() == found.children


def has_run(function: str) -> bool:
    """Whether ``"module:name"`` has run, or may have without a mark; of ``"module:*"``, whether it was imported."""
    found, (module, _, name) = finder(), function.partition(":")
    if found is None or module in found.unmarked:
        return True
    return f"{PACKAGE}.{module}" in sys.modules if name == "*" else function in RAN or function in BEFORE


def taken() -> set[str]:
    """What has run since the last call, or since it began."""
    found = set(RAN)
    BEFORE.update(found)
    RAN.clear()
    return found


def seconds_of_children() -> float:
    """CPU time of processes that this one has started and waited for."""
    times = os.times()
    return times.children_user + times.children_system
