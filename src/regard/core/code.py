"""The source read as pieces: what a file binds, what each piece names, and a digest of what it does.

Spaces, comments, docstrings, annotations of functions and declarations of the atlas decide nothing and are left out of
a digest. Nothing is imported.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

PACKAGE = "regard"
ROOT = Path(__file__).parents[1]
IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
LEAVES = ast.Name | ast.Constant | ast.expr_context | ast.operator | ast.cmpop | ast.unaryop | ast.boolop
"""What has no parts that decide anything."""
HOOKS = frozenset(("forward", "backward", "setup_context", "vmap", "jvp"))
"""Methods that PyTorch calls, whoever else names them."""
OPEN_BASES = frozenset(("Module", "Function", "ABC", "Protocol", "Generic", "NamedTuple", "object"))
"""Classes from elsewhere that call nothing of a class derived from them but `HOOKS` and what has two underscores."""


@dataclass(frozen=True, eq=False)
class Piece:
    """A statement at the top of a file, one name of an import, or a member of a class at the top.

    Args:
        module, place: where it stands. code: itself, a class without its members. binds: the names that it binds.
        names: what it names bare. words: all that it names, attributes and texts that are words too. texts: its texts
            but docstrings. imports: ``(module, name)`` of regard that it imports, name empty for the module itself.
        members: of a class. always: a member that is there whoever names it. owner: the class that it is a member of.
    """

    module: str
    place: tuple[int, ...]
    code: ast.AST
    binds: frozenset[str]
    names: frozenset[str]
    words: frozenset[str]
    texts: tuple[str, ...]
    imports: tuple[tuple[str, str], ...]
    members: tuple[Piece, ...] = field(default=(), repr=False)
    always: bool = True
    owner: str = ""

    @cached_property
    def function(self) -> str:
        """``"module:name"`` of a function or a method, ``"module:Class.name"``; empty for anything else."""
        if not isinstance(self.code, FUNCTIONS):
            return ""
        return f"{self.module}:{self.owner}.{self.code.name}" if self.owner else f"{self.module}:{self.code.name}"


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
    """The file as it was written, empty where there is none."""
    path = ROOT / "__init__.py" if not module else path_of(module)
    return ast.parse(path.read_text(encoding="utf-8")) if path else ast.Module([], [])


@cache
def pieces(module: str) -> tuple[Piece, ...]:
    """The pieces of a file in their order; docstrings and what only type checkers read are none."""
    found = []
    for place, statement in enumerate(tree(module).body):
        if is_text(statement) or only_for_types(statement):
            continue
        if isinstance(statement, ast.ImportFrom | ast.Import):
            found += [piece_of(module, (place, n), one) for n, one in enumerate(apart(statement))]
        elif isinstance(statement, ast.ClassDef):
            found.append(class_of(module, place, statement))
        else:
            found.append(piece_of(module, (place,), statement))
    return tuple(found)


@cache
def bound(module: str) -> dict[str, list[Piece]]:
    """The pieces of a file by the names that they bind."""
    found: dict[str, list[Piece]] = {}
    for piece in pieces(module):
        for name in piece.binds:
            found.setdefault(name, []).append(piece)
    return found


def forget() -> None:
    """Reads every file anew when it is asked for the next time."""
    for cached in (path_of, tree, pieces, bound, says_package, foreign, digest, outside):
        cached.cache_clear()


def class_of(module: str, place: int, node: ast.ClassDef) -> Piece:
    """A class: its head as a piece, with its members."""
    whole = foreign(module, node.name)
    members = []
    for number, member in enumerate(node.body):
        if is_text(member) or is_former(member):
            continue
        called = not isinstance(member, FUNCTIONS) or member.name in HOOKS or member.name.startswith("__")
        members.append(piece_of(module, (place, number), member, always=called or whole, owner=node.name))
    head = ast.ClassDef(node.name, node.bases, node.keywords, [], node.decorator_list)
    return piece_of(module, (place,), head, tuple(members))


def piece_of(
    module: str,
    place: tuple[int, ...],
    code: ast.stmt,
    members: tuple[Piece, ...] = (),
    always: bool = True,
    owner: str = "",
) -> Piece:
    """A piece of these statements."""
    names, words, texts = set(), set(), []
    for node in deciding(code):
        match node:
            case ast.Name(id=name):
                names.add(name)
            case ast.Attribute(attr=name) | ast.keyword(arg=str(name)):
                words.add(name)
            case ast.Constant(value=str(text)):
                texts.append(text)
                words.update([text] if IDENTIFIER.fullmatch(text) else [])
    bare = frozenset(names)
    imports = tuple(imports_of(code)) if isinstance(code, ast.Import | ast.ImportFrom) or says_package(module) else ()
    return Piece(module, place, code, bound_by(code), bare, bare | words, tuple(texts), imports, members, always, owner)


def deciding(node: ast.AST) -> Iterator[ast.AST]:
    """A tree's nodes without docstrings, annotations of functions and declarations of the atlas, in any order."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, LEAVES):
            continue
        plain = isinstance(node, ast.AnnAssign)
        for name in node._fields:
            if plain or name not in ("annotation", "returns"):
                value = getattr(node, name, None)
                parts = value if isinstance(value, list) else (value,)
                waiting += [one for one in parts if isinstance(one, ast.AST) and not is_text(one) and not declares(one)]


@cache
def says_package(module: str) -> bool:
    """Whether a file names the package anywhere but in imports at its top."""
    path = ROOT / "__init__.py" if not module else path_of(module)
    lines = path.read_text(encoding="utf-8").splitlines() if path else []
    return any(PACKAGE in line and not line.startswith(("from ", "import ")) for line in lines)


def apart(statement: ast.ImportFrom | ast.Import) -> Iterator[ast.stmt]:
    """An import as one statement for each name."""
    for alias in statement.names:
        if isinstance(statement, ast.Import):
            yield ast.Import([alias])
        else:
            yield ast.ImportFrom(statement.module, [alias], statement.level)


def imports_of(part: ast.AST) -> Iterator[tuple[str, str]]:
    """What a piece of code imports of regard, or reaches as ``regard.name``: modules, and names in them."""
    for node in ast.walk(part):
        match node:
            case ast.ImportFrom(module=str(source), names=names, level=0) if source.split(".")[0] == PACKAGE:
                inside = source.removeprefix(PACKAGE).removeprefix(".")
                for alias in names:
                    below = f"{inside}.{alias.name}".removeprefix(".")
                    yield (below, "") if path_of(below) else (inside, alias.name)
            case ast.Import(names=names):
                inner = [alias.name.removeprefix(f"{PACKAGE}.") for alias in names]
                yield from ((name, "") for name in inner if path_of(name))
            case ast.Attribute(value=ast.Name(id=name), attr=reached) if name == PACKAGE:
                yield (reached, "") if path_of(reached) else ("", reached)


def bound_by(statement: ast.AST) -> frozenset[str]:
    """The names that a statement binds."""
    if isinstance(statement, ast.ClassDef | FUNCTIONS):
        return frozenset((statement.name,))
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return frozenset((alias.asname or alias.name).split(".")[0] for alias in statement.names)
    nodes = (node for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    return frozenset(node.id for node in nodes)


@cache
def foreign(module: str, name: str) -> bool:
    """Whether a class has a base from elsewhere that may call any of its methods."""
    node = next((n for n in tree(module).body if isinstance(n, ast.ClassDef) and n.name == name), None)
    return node is not None and any(is_foreign(module, base) for base in node.bases)


def is_foreign(module: str, base: ast.expr) -> bool:
    """Whether a base, as it is written, is from elsewhere, or has such a base itself."""
    base = base.value if isinstance(base, ast.Subscript) else base
    if isinstance(base, ast.Name):
        for statement in tree(module).body:
            if isinstance(statement, ast.ClassDef) and statement.name == base.id:
                return foreign(module, base.id)
            if isinstance(statement, ast.ImportFrom) and base.id in bound_by(statement):
                told = next(alias.name for alias in statement.names if (alias.asname or alias.name) == base.id)
                if (statement.module or "").split(".")[0] == PACKAGE:
                    return foreign((statement.module or "").removeprefix(f"{PACKAGE}."), told)
                return told not in OPEN_BASES
    written_as = base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")
    return written_as not in OPEN_BASES


def digest_of(parts: Iterable[Piece], idle: Container[Piece] = ()) -> str:
    """Eight hexadecimal digits of what pieces of code do, the same in every release of Python.

    Args:
        idle: those of the parts that never run, of which only the outside counts.
    """
    told = (outside(part) if part in idle else digest(part) for part in parts)
    return hashlib.sha256(b"".join(told)).hexdigest()[:8]


@cache
def digest(part: Piece) -> bytes:
    """Of what one piece does."""
    return hashlib.sha256(written(part.code).encode()).digest()


@cache
def outside(part: Piece) -> bytes:
    """Of a function that is there and never runs: its name, and what decorates it when its file is imported."""
    return hashlib.sha256(f"{part.function} {written(getattr(part.code, 'decorator_list', []))}".encode()).digest()


def written(node: object) -> str:
    """A tree as text, without places, docstrings, annotations and the decorators that declare entries."""
    if isinstance(node, list):
        return f"[{' '.join(written(one) for one in node if not is_text(one) and not declares(one))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    untold = UNTOLD if isinstance(node, ast.AnnAssign) else (*UNTOLD, "annotation", "returns")
    told = {name: written(getattr(node, name, None)) for name in node._fields if name not in untold}
    shown = " ".join(f"{name}={value}" for name, value in told.items() if value not in ("None", "[]"))
    return f"{type(node).__name__}({shown})"


UNTOLD = ("ctx", "kind", "type_comment", "type_ignores", "type_params")
"""What the syntax says anyway, or some releases of Python only."""


def is_former(node: ast.stmt) -> bool:
    """Whether it is a method that `core.deprecated.former` marks, which regard itself never calls."""
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    return any(
        isinstance(one, ast.Call) and isinstance(one.func, ast.Name) and one.func.id == "former" for one in decorators
    )


def is_text(node: object) -> bool:
    """Whether it is a docstring, or a text that stands where one might."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def only_for_types(node: ast.stmt) -> bool:
    """Whether it is ``if TYPE_CHECKING``."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def declares(node: object) -> bool:
    """Whether it is ``published(…)``, or ``measured(…)``, which says only what is measured."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("published", "measured")
