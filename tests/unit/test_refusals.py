"""A refusal says what it refuses: where a condition asks one number and its words name a border, both mean the same."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src/regard"
NUMBERS = {"zero": 0, "one": 1, "two": 2, "three": 3}
NUMBER = rf"(\d+(?:\.\d+)?|{'|'.join(NUMBERS)})\b"
NEAR = 1e-9
LOWEST = {rf"at least {NUMBER}": True, rf"\b{NUMBER} or more(?!.* or 0)": True, rf"from {NUMBER}": True}
LOWEST |= {rf"\b{NUMBER} (?:\([^)]*\) )?to (?:below )?\d": True, rf"above {NUMBER}": False, "positive": False}
HIGHEST = {rf"(?:at most|up to) {NUMBER}": True, rf" to {NUMBER}": True, rf"below {NUMBER}": False}
"""How the words name the lowest number that is taken and the highest, and whether it is taken itself."""


class OneNumber(ast.NodeTransformer):
    """A condition in which whatever is asked, a name or an attribute, is called x."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    def visit_Name(self, node: ast.Name | ast.Attribute) -> ast.AST:
        self.asked.add(ast.unparse(node))
        return ast.copy_location(ast.Name("x", ast.Load()), node)

    visit_Attribute = visit_Name  # noqa: N815


@cache
def refusals() -> dict[str, tuple[str, str]]:
    """By place: condition of x and words of each refusal whose condition compares one x with numbers alone."""
    return {place: told for path in sorted(SOURCE.rglob("*.py")) for place, told in refusals_of(path)}


def refusals_of(path: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    more = (ast.Call, ast.Subscript, ast.Mod, ast.BitAnd)
    for node in ast.walk(ast.parse(path.read_text())):
        raised = node.body[-1].exc if isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise) else None
        if not isinstance(node, ast.If) or not isinstance(raised, ast.Call) or len(raised.args) < 3:
            continue
        parts, words, one = list(ast.walk(node.test)), raised.args[2], OneNumber()
        if not any(isinstance(part, (ast.Lt, ast.LtE, ast.Gt, ast.GtE)) for part in parts):
            continue
        if (
            ast.unparse(raised.func) == "wrong"
            and isinstance(words, ast.Constant)
            and not any(isinstance(part, more) for part in parts)
        ):
            condition = ast.unparse(one.visit(node.test))
            if len(one.asked) == 1:
                yield f"{path.relative_to(SOURCE)}:{node.lineno}", (condition, words.value)


def said(words: str) -> dict[float, bool]:
    """Which numbers are taken or not, as the words have it."""
    found: dict[float, bool] = {}
    for borders, outside in ((LOWEST, -NEAR), (HIGHEST, NEAR)):
        for pattern, closed in borders.items():
            if match := re.search(pattern, words):
                border = match[1] if match.re.groups else "0"
                value = float(NUMBERS.get(border, border))
                found |= {value: closed, value + (outside if closed else -outside): not closed}
    return found


def taken(condition: str, x: float) -> bool:
    return not eval(condition, {"x": x, "__builtins__": {}})


def test_words_and_conditions_agree_at_their_borders():
    known = {place: (condition, words) for place, (condition, words) in refusals().items() if said(words)}
    unlike = {
        place: (condition, words)
        for place, (condition, words) in known.items()
        if any(taken(condition, x) is not right for x, right in said(words).items())
    }
    assert not unlike
    assert len(known) > 150


@pytest.mark.parametrize(
    ("words", "condition", "agree"),
    [
        ("at least 2", "x < 2", True),
        ("at least two of them", "x < 1", False),
        ("at least two of them", "x <= 2", False),
        ("above 0", "not x > 0", True),
        ("a positive number, or None", "x is not None and x < 0", False),
        ("0 or more, below 1", "not 0 <= x < 1", True),
        ("0 or more, below 1", "not 0 <= x <= 1", False),
        ("0 (nothing) to 1 (all)", "x > 1 or x <= 0", False),
        ("a chance from 0 to 1", "x > 1", False),
    ],
)
def test_what_does_not_agree_is_found(words, condition, agree):
    assert all(taken(condition, x) is right for x, right in said(words).items()) is agree
