"""Results are committed one by one, survive kills, and say where they come from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import ClassVar

import pytest

from regard.experiments.cell import Cell
from regard.experiments.query import query_table
from regard.experiments.run import run
from regard.experiments.store import Store


@dataclass(frozen=True)
class Slow(Cell):
    """A cell that ends, fails, or in a process that is to be killed never ends."""

    kind: ClassVar[str] = "slow"
    endless: ClassVar[int | None] = None
    number: int
    fails: bool = False

    def run(self, report=lambda what: None):
        report(self.label)
        while self.number == self.endless:
            time.sleep(1)
        if self.fails:
            raise ValueError(f"number: got {self.number}, want another")
        return {"square": self.number**2, "half": self.number / 2, "name": f"n{self.number}"}


def numbers(store: Store) -> list[int]:
    return sorted(row["number"] for row in store.rows())


def test_columns_of_former_names_are_read_by_those_of_today(tmp_path):
    """Results of 0.1 called the baseline otherwise."""
    store = Store(tmp_path)
    store.add(Slow(3), {"yard" + "stick_seconds": 2.0}, "a test")
    assert store.rows()[0]["baseline_seconds"] == 2.0


def test_a_row_holds_fields_figures_and_where_it_comes_from(tmp_path):
    store = Store(tmp_path / "new")
    assert [outcome.error for outcome in run([Slow(3), Slow(5)], store, "the command")] == [None, None]
    row = next(row for row in store.rows() if row["number"] == 5)
    assert (row["square"], row["half"], row["name"], row["kind"]) == (25, 2.5, "n5", "slow")
    assert row["command"] == "the command"
    assert all(row[name] for name in ("regard", "torch", "python", "machine", "date"))
    assert row["key"] == Slow(5).key != Slow(3).key


def test_what_is_there_is_not_measured_again_unless_asked(tmp_path):
    store = Store(tmp_path)
    list(run([Slow(2)], store, "first"))
    second = list(run([Slow(2), Slow(7)], store, "second"))
    assert [outcome.reused for outcome in second] == [True, False]
    assert {row["number"]: row["command"] for row in store.rows()} == {2: "first", 7: "second"}
    list(run([Slow(2)], store, "third", again=True))
    assert {row["number"]: row["command"] for row in store.rows()} == {2: "third", 7: "second"}


def test_a_failure_is_reported_and_the_rest_goes_on(tmp_path):
    store = Store(tmp_path)
    outcomes = {outcome.cell.number: outcome for outcome in run([Slow(1, fails=True), Slow(4)], store, "")}
    assert outcomes[1].error == "number: got 1, want another"
    assert numbers(store) == [4]


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
from unit.compare.test_results import Slow
from regard.experiments.run import run
from regard.experiments.store import Store
Slow.endless = 5
for outcome in run([Slow(n) for n in range(8)], Store(sys.argv[1]), "killed"):
    print(outcome.cell.number, flush=True)
"""


def test_a_killed_run_loses_nothing_that_was_finished_and_goes_on(tmp_path):
    tests = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path), tests], stdout=subprocess.PIPE, text=True)
    finished = [int(process.stdout.readline()) for _ in range(3)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    store = Store(tmp_path)
    assert set(finished) <= set(numbers(store)) < set(range(8))
    before = len(numbers(store))
    done = list(run([Slow(n) for n in range(8)], store, "resumed"))
    assert sum(outcome.reused for outcome in done) == before
    assert numbers(store) == list(range(8))


def test_sql_sees_the_rows_and_nothing_else(tmp_path):
    store = Store(tmp_path)
    list(run([Slow(n) for n in (2, 3, 5)], store, ""))
    answer = query_table(store.table(), "select sum(square) as total from results where number > 2")
    assert answer.to_pylist() == [{"total": 34}]
    with pytest.raises(ValueError, match=r"--sql: got 'select nothing.*a query of the table `results`"):
        query_table(store.table(), "select nothing from results")
    with pytest.raises(ValueError, match="--sql"):
        query_table(store.table(), "select * from read_text('/etc/hostname')")


def test_folders_that_are_not_results_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="without results"):
        Store(tmp_path / "none").table()
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="a file"):
        Store(tmp_path / "file")
    with pytest.raises(ValueError, match="other things"):
        Store(tmp_path)
    store = Store(tmp_path / "good")
    list(run([Slow(1)], store, ""))
    (store.cells / "broken.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"broken\.parquet, no Parquet file"):
        store.table()


def test_unknown_workers_are_refused():
    with pytest.raises(ValueError, match=r"--workers: got 'cloud', want local, ray or ray:ADDRESS"):
        list(run([Slow(1)], None, "", workers="cloud"))


@pytest.mark.slow
def test_cells_are_spread_over_a_ray_cluster(tmp_path):
    """A local Ray cluster measures every cell once and reports the one that fails."""
    pytest.importorskip("ray")
    tests = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
    script = SCRIPT.replace('"killed"', '"ray", workers="ray"').replace("range(8)", "range(3)")
    script = script.replace("print(outcome.cell.number", "print(outcome.cell.number, outcome.error")
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), tests],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"PYTHONPATH": tests},
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")[:-1]) == ["0 None", "1 None", "2 None"]
    assert numbers(Store(tmp_path)) == [0, 1, 2]


def test_keys_are_the_same_in_every_process():
    """Whatever numbers Python hashes texts to, which another process is told and this one draws."""
    from regard.compare.cost import CostCell

    code = "from regard.compare.cost import CostCell; print(CostCell('softmax', 'train', 512).key, hash('softmax'))"
    call, told = [sys.executable, "-c", code], {"PYTHONHASHSEED": "7"}
    done = subprocess.run(call, capture_output=True, text=True, check=True, env=os.environ | told)
    key, hashed = done.stdout.split()
    assert key == CostCell("softmax", "train", 512).key
    assert int(hashed) != hash("softmax")
    assert json.dumps(CostCell("softmax", "train", 512).fields)


@dataclass(frozen=True)
class Addends(Cell):
    """Two numbers."""

    kind: ClassVar[str] = "sum"
    right: float
    left: int


def test_a_cell_is_found_again_under_the_same_key():
    """SHA-256 of ``["sum", {"left": 3, "right": 0.5}]``, as sha256sum has it."""
    assert Addends(0.5, 3).key == "bd096f9a813139e3"
