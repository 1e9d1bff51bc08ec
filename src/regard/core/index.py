"""The atlas read from the source: every declaration of `published`, without importing what is declared.

A declaration is a decorator whose arguments are literals, or names of literals at the top of its file. So a table of
all systems takes a tenth of a second, and a file is imported only when what stands in it is used.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from regard.core.errors import wrong

DECORATOR, TRAITS = "published", "traits"
TOP = re.compile(r"^(?=[^\s#)\]}\"'])", re.MULTILINE)
"""Where a statement at the top of a file begins."""
METHOD = re.compile(r"^    (?:@|def |async )", re.MULTILINE)
ASSIGNMENT = re.compile(r"\w+ = ")


@dataclass(frozen=True)
class Declaration:
    """What stands above and in one published class or function.

    Args:
        where: ``package.module.name``. line: in its file. arguments: of the decorator; calls as ``(name, arguments)``.
        doc: the docstring. traits: the arguments of the class's ``traits``, where they are literals.
    """

    where: str
    line: int
    arguments: Mapping[str, Any]
    doc: str
    traits: Mapping[str, Any] = field(default_factory=dict)


def scan(folder: Path, package: str) -> Iterator[Declaration]:
    """Every declaration in the files below ``folder``, which is the ``package``, by path."""
    trees: dict[str, ast.Module] = {}
    for file in sorted(folder.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if f"@{DECORATOR}(" in text or f"    {TRAITS} = " in text:
            parts = file.relative_to(folder).with_suffix("").parts
            trees[".".join([package, *(part for part in parts if part != "__init__")])] = ast.parse(outline(text))
    bases = {node.name: node for tree in trees.values() for node in tree.body if isinstance(node, ast.ClassDef)}
    for module, tree in trees.items():
        yield from declarations(tree, module, bases)


def outline(text: str) -> str:
    """The source without what says nothing about declarations, each line in its place: parsing it takes a tenth.

    What is left are assignments at the top, published classes and functions, and classes with traits, of classes what
    stands above their first method.
    """
    kept, decorators = [], ""
    for block in TOP.split(text):
        if block.startswith("@"):
            decorators += block
            continue
        here = f"@{DECORATOR}(" in decorators or f"\n    {TRAITS} = " in block
        if here and block.startswith("class "):
            method = METHOD.search(block)
            upper = block[: method.start()] if method else block
            block = (
                block if f"\n    {TRAITS} = " in block[len(upper) :] else upper + "\n" * block.count("\n", len(upper))
            )
        elif not here and not ASSIGNMENT.match(block):
            decorators, block = "", "\n" * (decorators + block).count("\n")
        kept += [decorators, block]
        decorators = ""
    return "".join(kept)


def declarations(
    tree: ast.Module, module: str, bases: Mapping[str, ast.ClassDef] = MappingProxyType({})
) -> Iterator[Declaration]:
    """Those of one file; ``bases`` are classes, by name, whose traits others inherit."""
    constants = constants_of(tree)
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            continue
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == DECORATOR:
                where = f"{module}.{node.name}"
                try:
                    _, arguments = value(call, constants)
                except ValueError as error:
                    came = f"{error} in line {call.lineno} of {module}"
                    raise wrong(DECORATOR, came, "literals, or names of texts at the top of the file") from None
                doc = ast.get_docstring(node) or ""
                yield Declaration(where, node.lineno, arguments, doc, traits_of(node, bases))


def constants_of(tree: ast.Module) -> dict[str, Any]:
    """The literals that names at the top of a file stand for."""
    found: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = value(node.value, found)
            except ValueError:
                continue
    return found


def traits_of(node: ast.ClassDef | ast.FunctionDef, bases: Mapping[str, ast.ClassDef]) -> dict[str, Any]:
    """The literal arguments of ``traits = Traits(…)`` in a class, or in the nearest of its ``bases``."""
    for statement in node.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(keywords=given)) if name == TRAITS:
                return {k.arg: k.value.value for k in given if k.arg and isinstance(k.value, ast.Constant)}
    for base in node.bases if isinstance(node, ast.ClassDef) else []:
        if isinstance(base, ast.Name) and base.id in bases and bases[base.id] is not node:
            return traits_of(bases[base.id], bases)
    return {}


def value(node: ast.expr, constants: Mapping[str, Any]) -> Any:
    """What an expression of literals says; a call as ``(name, its arguments by keyword, "0", "1" … for others)``.

    Raises:
        ValueError: something else is in it.
    """
    if isinstance(node, ast.Name):
        if node.id in constants:
            return constants[node.id]
        raise ValueError(f"the name {node.id}")
    if isinstance(node, ast.JoinedStr):
        return "".join(str(value(part, constants)) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return value(node.value, constants)
    if isinstance(node, ast.Tuple):
        return tuple(value(part, constants) for part in node.elts)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        placed = {str(place): value(part, constants) for place, part in enumerate(node.args)}
        return node.func.id, placed | {k.arg or "**": value(k.value, constants) for k in node.keywords}
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        raise ValueError(f"the expression {ast.unparse(node)}") from None
