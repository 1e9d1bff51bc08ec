"""Which state of the code a result was measured with: a digest of every file that its cell uses, read from the source.

Spaces, comments, docstrings and declarations of the atlas decide nothing and are left out of a digest. Nothing is
imported: what a file uses is what it imports, and the entries of the atlas whose names stand in its cell's texts.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

from regard.core.index import constants_of, scan

PACKAGE = "regard"
ROOT = Path(__file__).parents[1]
APART = frozenset(f"core.{name}" for name in ("atlas", "index", "search", "results", "sources", "errors"))
"""What declares and finds, and never decides a figure."""


def used(module: str, name: str, texts: Iterable[str] = ()) -> dict[str, str]:
    """Name and digest of all that a class or function of ``regard.module`` uses: its own part of its file, as
    ``"module:name"``, and every file of regard that this part imports, directly or by others.

    Args:
        texts: what else names entries of the atlas, such as the fields of a cell.
    """
    part = slice_of(module, name)
    words = {word for text in (*texts, *texts_in(part)) for word in re.findall(r"[a-z][a-z0-9_]*", text)}
    begun = {*imports_of(part), *(entries()[word] for word in words if word in entries())}
    return {f"{module}:{name}": digest_of(part)} | {file: digest(file) for file in sorted(closure(begun) - {module})}


def changed(known: Mapping[str, str]) -> list[str]:
    """Those of the names that `used` gave whose digest is another one now."""
    return [name for name, before in known.items() if now(name) != before]


def now(name: str) -> str:
    """The digest today of a file, or of a part of one; empty where it is gone."""
    module, _, part = name.partition(":")
    if path_of(module) is None:
        return ""
    return digest_of(slice_of(module, part)) if part else digest(module)


def closure(begun: Iterable[str]) -> set[str]:
    """These modules and all that they import, those apart left out."""
    found, waiting = set(), list(begun)
    while waiting:
        module = waiting.pop()
        if module not in found and module not in APART:
            found.add(module)
            waiting += imports(module)
    return found


@cache
def entries() -> Mapping[str, str]:
    """The module of every entry of the atlas, by name and alias."""
    found = {}
    for declaration in scan(ROOT, PACKAGE):
        module = declaration.where.removeprefix(f"{PACKAGE}.").rpartition(".")[0]
        told = declaration.arguments
        found |= dict.fromkeys((told.get("0", told.get("name")), *told.get("aliases", ())), module)
    return found


@cache
def path_of(module: str) -> Path | None:
    """The file of ``regard.module``, None where there is none."""
    base = ROOT.joinpath(*module.split(".")) if module else ROOT
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if module and path.is_file():
            return path
    return None


@cache
def tree(module: str) -> ast.Module:
    """The file as it was written."""
    path = path_of(module)
    return ast.parse(path.read_text(encoding="utf-8")) if path else ast.Module([], [])


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of regard that a file imports, at its top or within."""
    return frozenset(imports_of(tree(module)))


def imports_of(part: ast.AST) -> Iterator[str]:
    """The modules of regard that a piece of code imports or reaches as ``regard.name``."""
    for node in ast.walk(part):
        match node:
            case ast.ImportFrom(module=str(source), names=names, level=0) if source.split(".")[0] == PACKAGE:
                inside = source.removeprefix(PACKAGE).removeprefix(".")
                yield from (inside,) if path_of(inside) else ()
                for alias in names:
                    below = f"{inside}.{alias.name}".removeprefix(".")
                    yield from (below,) if path_of(below) else late(alias.name) if not inside else ()
            case ast.Import(names=names):
                inner = [alias.name.removeprefix(f"{PACKAGE}.") for alias in names]
                yield from (name for name in inner if path_of(name))
            case ast.Attribute(value=ast.Name(id=name), attr=reached) if name == PACKAGE:
                yield from (reached,) if path_of(reached) else late(reached)


def late(name: str) -> tuple[str, ...]:
    """The module of a public name of the package itself."""
    known = constants_of(tree("__init__")).get("LATE", {})
    return (known[name].removeprefix(f"{PACKAGE}."),) if name in known else ()


@cache
def slice_of(module: str, name: str) -> ast.Module:
    """Of a file what its top-level ``name`` needs: the statements that bind the names that it uses, in their order."""
    whole = tree(module)
    binds = [(statement, bound_by(statement)) for statement in whole.body]
    wanted, kept = {name}, set()
    while fresh := [i for i, (_, bound) in enumerate(binds) if i not in kept and bound & wanted]:
        kept.update(fresh)
        wanted |= {node.id for i in fresh for node in ast.walk(binds[i][0]) if isinstance(node, ast.Name)}
    return ast.Module([only(binds[i][0], wanted) for i in sorted(kept)], [])


def bound_by(statement: ast.stmt) -> set[str]:
    """The names that a statement at the top of a file binds."""
    if isinstance(statement, ast.ClassDef | ast.FunctionDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
    targets = [node for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return {target.id for target in targets}


def only(statement: ast.stmt, wanted: set[str]) -> ast.stmt:
    """Of an import those names that are wanted."""
    if not isinstance(statement, ast.ImportFrom):
        return statement
    names = [alias for alias in statement.names if (alias.asname or alias.name) in wanted]
    return ast.ImportFrom(statement.module, names, statement.level)


@cache
def digest(module: str) -> str:
    """Of a whole file."""
    return digest_of(tree(module))


def digest_of(part: ast.AST) -> str:
    """Eight hexadecimal digits of what a piece of code does, the same in every release of Python."""
    return hashlib.sha256(written(part).encode()).hexdigest()[:8]


def written(node: object) -> str:
    """A tree as text, without places, docstrings and the decorators that declare entries."""
    if isinstance(node, list):
        return f"[{' '.join(written(one) for one in node if not is_text(one) and not declares(one))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    told = {name: written(getattr(node, name, None)) for name in node._fields if name not in UNTOLD}
    shown = " ".join(f"{name}={value}" for name, value in told.items() if value not in ("None", "[]"))
    return f"{type(node).__name__}({shown})"


UNTOLD = ("ctx", "kind", "type_comment", "type_ignores", "type_params")
"""What the syntax says anyway, or some releases of Python only."""


def is_text(node: object) -> bool:
    """Whether it is a docstring, or a text that stands where one might."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def declares(node: object) -> bool:
    """Whether it is ``published(…)``, or ``measured(…)``, which says only what is measured."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("published", "measured")


def texts_in(part: ast.AST) -> Iterator[str]:
    """The texts in a piece of code that are no docstrings."""
    for node in ast.iter_child_nodes(part):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif not is_text(node):
            yield from texts_in(node)
