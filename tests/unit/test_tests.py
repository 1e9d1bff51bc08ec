"""The tests themselves: what measures time is a slow claim, since `make test` runs on machines that do other work, and
bits are compared only where every CPU gives the same.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
import zlib
from pathlib import Path

import pytest
import torch
from torch import Generator

from other_cpu import OtherCPU

TESTS = Path(__file__).parents[1]
CLOCKS = {"perf_counter", "process_time", "monotonic", "interleaved", "wait_for_timeout", "time.time"}


def used(node: ast.AST) -> set[str]:
    """The names that are used in a function, and ``time.time`` whole."""
    found = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    attributes = [n for n in ast.walk(node) if isinstance(n, ast.Attribute)]
    return found | {n.attr for n in attributes if n.attr != "time"} | {ast.unparse(n) for n in attributes}


def timed(text: str) -> list[str]:
    """The tests of a file that read a clock, themselves or through the file's helpers, and are not marked slow."""
    tree = ast.parse(text)
    marks = [ast.unparse(n.value) for n in tree.body if isinstance(n, ast.Assign) and "pytestmark" in ast.unparse(n)]
    if any("mark.slow" in mark for mark in marks):
        return []
    functions = {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and not replaces_the_clock(n)}
    clocks: set[str] = set()
    while more := {name for name, node in functions.items() if used(node) & (CLOCKS | clocks)} - clocks:
        clocks |= more
    fast = [n for n in clocks if not any("mark.slow" in ast.unparse(d) for d in functions[n].decorator_list)]
    return sorted(name for name in fast if name.startswith("test_"))


def replaces_the_clock(node: ast.FunctionDef) -> bool:
    """Whether a test puts a function of its own in the place of the clock that it reads."""
    return "monkeypatch.setattr(timing, 'clock', " in ast.unparse(node)


def test_only_slow_tests_read_a_clock():
    found = {str(path): timed(path.read_text()) for path in TESTS.rglob("*.py") if path != Path(__file__)}
    assert {path: names for path, names in found.items() if names} == {}


def test_a_clock_is_found_also_behind_a_helper():
    helper = "def clock():\n    return time.perf_counter()\n\n\ndef between():\n    return clock()\n"
    test = "def test_speed():\n    assert between() < 1\n"
    assert timed(helper + test) == ["test_speed"]
    assert timed(helper + "@pytest.mark.slow\n" + test) == []
    replaced = "def test_it(monkeypatch):\n    monkeypatch.setattr(timing, 'clock', f)\n    timing.interleaved()\n"
    assert timed(replaced) == []
    assert timed(replaced.replace("'clock', f", "'other', f")) == ["test_it"]
    assert timed("def test_age():\n    assert time.time() > 0\n") == ["test_age"]


def test_another_cpu_rounds_other_shapes_otherwise_and_nothing_else():
    x, w = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in ((11, 13), (13, 7)))
    with OtherCPU():
        assert torch.equal(x @ w, x @ w)
        assert not torch.equal((x @ w)[:5], x[:5] @ w)
        assert torch.equal(x @ torch.eye(13), x)
        torch.testing.assert_close((x @ w)[:5], x[:5] @ w)
        assert torch.equal(torch.ones(2, 3) @ torch.ones(3, 5), torch.full((2, 5), 3.0))


@pytest.fixture(scope="module")
def shared():
    return torch.rand(3)


def test_what_is_drawn_without_a_generator_is_of_the_test_that_draws_it(request, shared):
    """And of the fixture, which may be made here or for a test before this one, and takes nothing of the test's."""
    place = Path(request.node.nodeid.partition("::")[0]).as_posix()
    for found, name in ((torch.rand(3), request.node.nodeid), (shared, f"{place} shared")):
        drawn = Generator().manual_seed(zlib.crc32(f"{name} {os.environ.get('DRAW_ANEW', '')}".encode()))
        assert torch.equal(found, torch.rand(3, generator=drawn))


def test_what_make_compat_runs_is_there():
    """A suite of files that have moved would fail on every release."""
    tree = ast.parse((TESTS.parent / "tools/compat.py").read_text())
    suites = next(n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "SUITES")
    paths = [word for words in ast.literal_eval(suites).values() for word in words if word.startswith("tests/")]
    assert {path for path in paths if not (TESTS.parent / path).exists()} == set()


def test_every_part_of_the_package_has_faults_planted():
    """But claims, which measure; and each room's files and tests are where the table says."""
    sys.path.insert(0, str(TESTS.parent / "tools"))
    rooms, package = importlib.import_module("rooms"), TESTS.parent / "src/regard"
    folders = {path.parent.relative_to(package).parts[0] for path in package.glob("*/*.py")} - {"claims"}
    assert folders == {Path(source).parts[0] for room in rooms.ROOMS for source in rooms.sources_of(room)}
    for room, given in rooms.ROOMS.items():
        assert {place for place in given.tests if not (TESTS / place).exists()} == set(), room
        assert {source for source in rooms.sources_of(room) if not (package / source).exists()} == set(), room
        for file in rooms.files_of(package, room):
            assert rooms.tests_of(TESTS, room, str(file.relative_to(package.parent))), file
