"""What `make mutants` stands on: where a fault is, how it comes into what is imported, and which tests see it."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import importlib.util
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

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


def test_classes_whose_objects_are_kept_are_forgotten_too(trials):
    """They hold no code of their own, and a record that ends in an error would hide every test of a job."""

    class Ring:
        __module__ = "regard.planted"

    def fixed():
        return object()

    fixed.__module__ = "regard.planted"
    made, registered = functools.cache(Ring), functools.cache(fixed)
    ring, constant = made(), registered()
    trials.forgetful.cache_clear()
    trials.forget(0)
    trials.forgetful.cache_clear()
    assert made() is not ring
    assert registered() is constant


@pytest.mark.parametrize("waits", [True, False])
def test_a_fork_that_waits_for_what_never_comes_is_ended(trials, monkeypatch, waits):
    """Its group takes no time of a core any more; without a group of its own nobody can tell."""
    monkeypatch.setattr(trials, "IDLE", 0.3)
    child = os.fork()
    if child == 0:
        if waits:
            os.setpgid(0, 0)
        while sum(os.times()[:2]) < 0.05:  # of its own: a few ticks, however fast the CPU
            pass
        time.sleep(600 if waits else 0.5)
        os._exit(0)
    assert trials.ended(child, 20) == (trials.LATE if waits else trials.SURVIVED)


@pytest.mark.parametrize(("status", "kept"), [(0, True), (1, True), (5, True), (2, False), (3, False), (4, False)])
def test_a_record_of_tests_that_were_broken_off_is_not_kept(trials, tmp_path, status, kept):
    path = tmp_path / "ran/record.json"
    plugin = trials.Trials(SimpleNamespace(path=path), {}, False, lambda fault, outcome: None)
    plugin.writing = {"tests": {}, "broken": [], "modules": [], "before": []}
    plugin.pytest_sessionfinish(exitstatus=status)
    assert path.exists() == kept


def test_the_tests_of_a_file_are_those_that_take_it_from_its_package_or_run_its_kernels_for_gpus(trials, tmp_path):
    rooms = importlib.import_module("rooms")
    for file, text in {
        "src/regard/kernels/block_sparse/pairs.py": "class Pairs:\n    pass\ndef joined(x):\n    return x\n",
        "tests/unit/kernels/test_dense.py": "from regard.kernels import dense\n",
        "tests/unit/kernels/test_gpu_block_sparse.py": "",
        "tests/unit/kernels/test_gpu_scan.py": "",
        "tests/unit/train/test_losses.py": "from regard.kernels import (\n    Dense,\n    Pairs,\n)\n",
        "tests/unit/train/test_plain.py": "import regard\nregard.joined(1)\nregard.joiner(1)\n",
        "tests/unit/train/test_whole.py": "from regard.kernels.block_sparse.pairs import (\n    Pairs,\n)\n",
        "tests/unit/train/test_steps.py": "from regard.kernels import Dense\nPairs = Dense\nregard.joiner(1)\n",
        "tests/laws/test_laws.py": "from regard.kernels.block_sparse.pairs import joined\n",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    told = rooms.tests_of(tmp_path / "tests", "kernels", "regard/kernels/block_sparse/pairs.py")
    assert [Path(job[0]).name for job in told] == [
        "test_dense.py",
        "test_whole.py",
        "test_losses.py",
        "test_plain.py",
        "test_gpu_block_sparse.py",
    ]


def test_laws_are_tested_by_the_mutants_of_their_kind_and_by_what_is_examined_by_them(trials, tmp_path):
    rooms = importlib.import_module("rooms")
    for file, text in {
        "src/regard/laws/pattern.py": "class Drawn:\n    pass\n",
        "tests/mutants/pattern.py": "",
        "tests/laws/test_routers.py": 'examine(it, "causal", kind="pattern")\n',
        "tests/unit/patterns/test_counts.py": 'assert examine(it, "future", kind="pattern").detail\n',
        "tests/unit/patterns/test_index.py": 'entries(kind="pattern")\n',
        "tests/unit/patterns/test_subject.py": "from regard.laws.pattern import Drawn\n",
        "tests/unit/policies/test_spans.py": 'examine(it, "future", kind="policy")\n',
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    told = rooms.tests_of(tmp_path / "tests", "laws", "regard/laws/pattern.py")
    assert [Path(job[0]).name for job in told] == ["test_mutants.py", "test_counts.py", "test_subject.py"]
    assert told[0][1:] == ("-k", "pattern:")


@pytest.fixture
def mutants(trials, monkeypatch):
    """The tool that draws faults."""
    spec = importlib.util.spec_from_file_location("mutants_tool", TOOLS / "mutants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_changes_that_are_no_faults_are_named_and_not_counted(trials, mutants, tmp_path, monkeypatch):
    for name, file in (("RESULTS", "r.tsv"), ("PAGE", "page.md"), ("EQUIVALENT", "same.tsv")):
        monkeypatch.setattr(mutants, name, tmp_path / file)
    (tmp_path / "same.tsv").write_text("file\tbefore\tafter\treason\na.py\tx = 1\tx = 1.0\tan int is a float there\n")
    made = [
        trials.Mutant("core", "a.py", "op", i, "digest", "x = 1", after) for i, after in enumerate(("x = 1.0", "x = 2"))
    ]
    mutants.save({made[0]: trials.SURVIVED, made[1]: trials.KILLED})
    page = (tmp_path / "page.md").read_text()
    assert "| core | 1 | 0 | 0% | 0 |" in page
    assert page.count("\n- ") == 1
    assert "`` x = 1 `` became `` x = 1.0 ``: an int is a float there" in page
    assert (tmp_path / "r.tsv").read_text().count("\n") == 3


def test_no_fault_is_planted_in_what_an_example_is_held_against(mutants):
    """But in what anything else uses too."""
    tree = ast.parse(
        "def by_hand():\n    return 1\n"
        "def shared():\n    return 2\n"
        "def path():\n    return shared() + 3\n"
        "def double(x):\n    return x + x\n"
        "@shown_by(lambda: [Sample({'known': path})])\nclass A:\n"
        "    def examples(cls):\n        return [by_hand, shared, double]\n"
    )
    assert [function.name for function in mutants.checks(tree)] == ["by_hand", "path"]
    assert {node.name for node in mutants.ignored(tree) if isinstance(node, ast.FunctionDef)} == {
        *("by_hand", "path", "examples"),
    }


def test_each_sample_has_its_own_share_and_a_fault_counts_in_the_first_that_drew_it(
    trials, mutants, tmp_path, monkeypatch
):
    for name, file in (("RESULTS", "r.tsv"), ("PAGE", "page.md"), ("EQUIVALENT", "same.tsv")):
        monkeypatch.setattr(mutants, name, tmp_path / file)
    (tmp_path / "same.tsv").write_text("file\tbefore\tafter\treason\n")
    (tmp_path / "a.py").write_text("def f():\n    x = 1\n")
    monkeypatch.setattr(mutants, "SOURCE", tmp_path)
    made = [trials.Mutant("core", "a.py", "op", i, "digest", "x = 1", f"x = {i}", seed=i // 3) for i in range(5)]
    outcomes = (trials.SURVIVED, mutants.SINCE, trials.KILLED, trials.KILLED, trials.LATE)
    results = dict(zip(made, outcomes, strict=True))
    results[dataclasses.replace(made[0], seed=1)] = trials.SURVIVED
    mutants.save(results)
    page = (tmp_path / "page.md").read_text()
    assert "| 0 | 3 | 2 | 67% | 1 |\n| 1 | 2 | 0 | 0% | 0 |\n\n" in page
    assert "| core | 5 | 2 | 40% | 1 |\n| all | 5 | 2 | 40% | 1 |\n" in page
    assert {m: (m.seed, outcome) for m, outcome in mutants.load().items()} == {
        m: (m.seed, outcome) for m, outcome in zip(made, outcomes, strict=True)
    }


def test_a_fault_that_is_planted_again_is_remembered_as_unnoticed_at_first(trials, mutants, tmp_path, monkeypatch):
    """Where its file has changed since it counts once; where its line is gone it is unnoticed no longer."""
    for name, file in (("RESULTS", "r.tsv"), ("PAGE", "page.md"), ("EQUIVALENT", "same.tsv"), ("SOURCE", "")):
        monkeypatch.setattr(mutants, name, tmp_path / file)
    (tmp_path / "same.tsv").write_text("file\tbefore\tafter\treason\n")
    old = trials.Mutant("core", "a.py", "op", 0, "old", "x = 1", "x = 2", seed=3)
    new = dataclasses.replace(old, source="new", seed=7)
    results = {old: trials.SURVIVED}
    assert mutants.note(results, new, trials.KILLED) == mutants.SINCE
    assert [(m.source, m.seed, outcome) for m, outcome in results.items()] == [("new", 3, mutants.SINCE)]
    assert mutants.note(results, new, trials.SURVIVED) == trials.SURVIVED
    assert mutants.note(results, dataclasses.replace(new, occurrence=1), trials.KILLED) == trials.KILLED  # another line
    other = dataclasses.replace(new, after="x = 3")
    assert mutants.note(results, other, trials.KILLED) == trials.KILLED
    for text, alive in (("x = 1\n", 1), ("y = 1\n", 0)):
        (tmp_path / "a.py").write_text(text)
        mutants.save(results)
        page = (tmp_path / "page.md").read_text()
        assert f"| core | 3 | 1 | 33% | {alive} |" in page
        assert page.count("\n- ") == alive


def test_what_forks_share_is_imported_in_the_environment_of_the_tests(mutants, monkeypatch):
    """Kernels that were imported without it run on no CPU: their tests failed, and no fault was noticed."""
    seen = []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(mutants, "import_module", lambda name: seen.append(dict(os.environ)))
    monkeypatch.setattr(mutants.compileall, "compile_dir", lambda folder, quiet: None)
    monkeypatch.setattr(mutants.gc, "freeze", lambda: None)
    mutants.prepare()
    wanted = {"HF_HUB_OFFLINE": "1"} | ({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"})
    assert seen
    assert all(wanted.items() <= environment.items() for environment in seen)
