"""Marks at the beginning of functions: what ran is known, and nothing else changes."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from regard.core import executed

SOURCE = '''
"""A file."""
from __future__ import annotations
def plain(x, y=3):
    """Doubles."""
    return 2 * x + y
def short(): "Says nothing."
def rows(n):
    for i in range(n):
        yield i
async def later():
    return 1
class Shape:
    size = plain(1)
    def area(self):
        return (lambda x: x * x)(self.size)
    @property
    def __side(self):
        return self.size
    @classmethod
    def of(cls):
        class Inner:
            def method(self):
                return 5
        return Inner().method()
if True:
    def inside():
        return 1
'''


@pytest.fixture
def file():
    """The file, marked, and what it has marked."""
    ran: set[str] = set()
    tree = ast.parse(SOURCE)
    executed.mark(tree, "mine")
    found = {executed.MARK: ran.add, "__name__": "mine"}
    exec(compile(tree, "mine.py", "exec", dont_inherit=True), found)
    return found, ran


def test_what_ran_is_marked_and_what_did_not_is_not(file):
    found, ran = file
    assert ran == {"mine:plain"}  # when the file was imported
    assert found["Shape"]().area() == 25
    assert ran == {"mine:plain", "mine:Shape.area"}
    assert found["Shape"].of() == 5
    assert list(found["rows"](3)) == [0, 1, 2]
    assert found["short"]() is None
    found["inside"]()
    assert ran == {"mine:plain", "mine:Shape.area", "mine:Shape.of", "mine:rows", "mine:short"}


def test_marks_leave_docstrings_names_lines_and_defaults(file):
    found, _ = file
    plain = found["plain"]
    assert (plain(2), plain.__doc__, plain.__name__, plain.__defaults__) == (7, "Doubles.", "plain", (3,))
    assert plain.__code__.co_firstlineno == 1 + SOURCE[: SOURCE.index("def plain")].count("\n")
    assert found["short"].__doc__ == "Says nothing."
    assert found["plain"].__annotations__ == {}


PROGRAM = """
import subprocess, sys
from regard.core import errors, executed
assert executed.has_run("core.spec:parse") and not executed.known()
executed.begin()
executed.begin()
from regard.core import spec
assert executed.known() and not executed.has_run("core.spec:parse")
assert executed.has_run("core.errors:wrong")  # imported before
spec.parse("window(size=3)")
assert executed.has_run("core.spec:parse") and "core.spec:parse" in executed.taken()
assert executed.taken() == set() and executed.has_run("core.spec:parse")
subprocess.run([sys.executable, "-c", "sum(range(5_000_000))"])
assert not executed.known()
print("done")
"""


def test_a_process_knows_what_ran_unless_another_one_works_for_it():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("done\n", "")
