"""What `make mutants` stands on: where a fault is, how it comes into what is imported, and which tests see it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
TEXT = """from functools import cache
def double(x, times=2):
    return times * x
class Base:
    def size(self):
        return 1
class Shape(Base):
    @property
    def size(self):
        return super().size() + 4
    @cache
    def area(self):
        return [n * n for n in (3, 5)]
"""


@pytest.fixture
def trials(tmp_path, monkeypatch):
    """The tool, on a package of one file; a fault is told by its text."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(TOOLS), *sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    (tmp_path / "planted_part.py").write_text(TEXT)
    module = importlib.import_module("trials")
    executed = module.executed()
    monkeypatch.setattr(module, "executed", lambda: executed)
    monkeypatch.setattr(module, "SOURCE", tmp_path)
    monkeypatch.setattr(module, "changed", lambda fault: TEXT.replace(fault.before, fault.after))
    yield module
    sys.modules.pop("planted_part", None)


def fault(trials, before, after):
    return trials.Mutant("core", "planted_part.py", "", 0, "", before, after)


def test_a_fault_comes_into_functions_that_others_hold(trials, tmp_path):
    part = importlib.import_module("planted_part")
    held = part.double
    assert trials.plant(fault(trials, "times * x", "times + x"), "planted_part:double", tmp_path)
    assert (held(5), part.Shape().area()) == (7, [9, 25])
    assert trials.plant(fault(trials, "n * n", "n + n"), "planted_part:Shape.area", tmp_path)
    assert part.Shape().area() == [6, 10]
    assert trials.plant(fault(trials, "+ 4", "- 4"), "planted_part:Shape.size", tmp_path)
    assert part.Shape().size == -3
    assert not trials.plant(fault(trials, "n * n", "n + n"), "planted_part:Shape.volume", tmp_path)


@pytest.mark.parametrize(
    ("before", "after", "place"),
    [
        ("times * x", "times + x", "planted_part:double"),
        ("times=2", "times=3", "planted_part:*"),
        ("+ 4", "+ 5", "planted_part:Shape.size"),
        ("Base)", "object)", "planted_part:*"),
    ],
)
def test_the_place_of_a_fault(trials, before, after, place):
    assert trials.place_of(fault(trials, before, after)) == place


def test_tests_that_see_a_place(trials):
    """Those that run it, the cheapest first, then those whose processes may; where it ran at import, all others too."""
    record = trials.Record.__new__(trials.Record)
    ran = {"slow": (3.0, ["m:f"]), "cheap": (1.0, ["m:f", "m:g"]), "blind": (0.0, ["k:h"]), "process": (0.5, ["*"])}
    record.found = {"tests": ran, "modules": ["m", "constants"], "before": ["m:g"], "broken": ["red"]}
    record.keeps = False
    items = [SimpleNamespace(nodeid=name) for name in ("red", "blind", "process", "slow", "cheap", "new")]
    names = lambda place: [item.nodeid for item in record.chosen(items, place)]  # noqa: E731
    assert names("m:f") == ["cheap", "slow", "new", "process"]
    assert names("m:g") == ["cheap", "new", "process", "blind", "slow"]
    assert names("m:*") == ["cheap", "slow", "new", "process", "blind"]
    ran.pop("process")
    assert [record.sees(place) for place in ("m:f", "m:z", "m:g", "constants:*", "other:*")] == [
        *(True, False, True, True, False)
    ]
