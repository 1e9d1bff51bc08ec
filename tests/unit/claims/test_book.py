"""Claims are measured once, go on where a run was stopped, and say what came out and of which code."""

from __future__ import annotations

import errno
import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from regard.claims import book
from regard.claims.book import measure
from regard.claims.cells import Cells
from regard.claims.declared import cells_of, named
from regard.claims.figures import Figures, Finding, interval
from regard.core import atlas, results
from regard.core.atlas import Claim, Entry
from regard.core.results import load, result_of

CALLS: list[int] = []


def square(number):
    """Counts how often it is called."""
    CALLS.append(number)
    if number < 0:
        raise ValueError(f"number: got {number}, want more")
    return {"square": number * number / 3}


def grows(found):
    """Larger numbers have larger squares."""
    values = found("square")
    return Finding.of(f"squares {values[0]:.2f} to {values[-1]:.2f}", values[-1] > values[0])


@pytest.fixture
def tiny(monkeypatch):
    """Cells in a module of the claims, and an entry for a range of numbers."""
    module = ModuleType("regard.claims.tiny")
    square.__module__ = module.__name__
    module.square = Cells(square, {"number": (2, 3)})
    module.some = lambda first, last: [module.square.cell(number=n) for n in range(first, last)]
    module.grows = grows
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(book, "everything", dict)
    monkeypatch.setattr(book, "subject", lambda *code: "tiny")
    monkeypatch.setattr(book, "sources_of", lambda cell, ran=False: {"of": "tiny", "tiny": TODAY[0]})
    for user in (book, results):
        monkeypatch.setattr(user, "changed", lambda known: [] if known["tiny"] == TODAY[0] else ["tiny"])
    TODAY[0] = "a"
    CALLS.clear()
    return module


TODAY = ["a"]


def entry(name, *cells):
    claims = tuple(Claim("larger are larger", cells=text, holds="tiny.grows") for text in cells)
    return Entry(name, None, "f", "mechanism", "t", None, 2026, "s", claims)


def run(folder, *entries, again=False):
    return [
        (outcome.cell.fields["number"], outcome.reused, outcome.error) for outcome in measure(entries, folder, again)
    ]


def test_twice_in_a_row_measures_nothing_the_second_time(tiny, tmp_path):
    one = entry("one", "tiny.square")
    assert run(tmp_path, one) == [(2, False, None), (3, False, None)]
    before = (tmp_path / "one.json").read_text()
    assert run(tmp_path, one) == [(2, True, None), (3, True, None)]
    assert CALLS == [2, 3]
    assert (tmp_path / "one.json").read_text() == before
    assert len(run(tmp_path, one, again=True)) == 2
    assert CALLS == [2, 3, 2, 3]


def test_a_change_of_the_code_is_shown_and_measured_anew(tiny, tmp_path):
    one = entry("one", "tiny.square")
    run(tmp_path, one)
    told = result_of("one", one.claims, load(tmp_path / "one.json"))
    assert (told.status, told.figure, told.stale) == ("reproduced", "squares 1.33 to 3.00", "")
    TODAY[0] = "b"
    assert result_of("one", one.claims, load(tmp_path / "one.json")).stale == "measured before a change of tiny"
    assert run(tmp_path, one) == [(2, False, None), (3, False, None)]
    assert result_of("one", one.claims, load(tmp_path / "one.json")).stale == ""


def test_a_run_that_stops_between_cells_leaves_no_finding_beside_rows_that_it_is_not_of(tiny, tmp_path):
    one = entry("one", "tiny.square")
    run(tmp_path, one)
    TODAY[0] = "b"
    next(iter(measure([one], tmp_path)))
    assert result_of("one", one.claims, load(tmp_path / "one.json")).status == "not measured"
    assert run(tmp_path, one) == [(2, True, None), (3, False, None)]
    assert result_of("one", one.claims, load(tmp_path / "one.json")).status == "reproduced"


def test_new_cells_alone_are_measured_and_those_without_use_dropped(tiny, tmp_path):
    run(tmp_path, entry("one", "tiny.some(first=2, last=5)"))
    assert run(tmp_path, entry("one", "tiny.some(first=4, last=6)")) == [(4, True, None), (5, False, None)]
    kept = json.loads((tmp_path / "one.json").read_text())
    assert [row["number"] for row in kept["rows"]] == [4, 5]
    assert kept["rows"][0]["square"] == 5.33333  # six digits


def test_entries_share_the_cells_that_they_have_in_common(tiny, tmp_path, monkeypatch):
    one, two = entry("one", "tiny.square"), entry("two", "tiny.some(first=3, last=5)")
    monkeypatch.setattr(book, "everything", lambda: {"one": one, "two": two})
    run(tmp_path, one)
    assert run(tmp_path, two) == [(3, True, None), (4, False, None)]
    assert json.loads((tmp_path / "two.json").read_text())["rows"][0]["command"] == "regard claims one"


def test_a_cell_that_fails_leaves_its_claim_unmeasured(tiny, tmp_path):
    bad = entry("bad", "tiny.some(first=-1, last=2)")
    assert run(tmp_path, bad)[0] == (-1, False, "number: got -1, want more")
    assert result_of("bad", bad.claims, load(tmp_path / "bad.json")).status == "not measured"


def test_a_figure_that_is_called_as_what_a_row_says_fails(tiny, tmp_path):
    tiny.square.measure = lambda number: {"key": float(number)}
    one = entry("one", "tiny.square")
    (_, _, first), (_, _, second) = run(tmp_path, one)
    assert first == second
    assert first.startswith("figures: got 'key', want another name: a row has cell, command")
    assert load(tmp_path / "one.json")["rows"] == []


def test_a_figure_that_is_no_number_is_none(tiny, tmp_path):
    tiny.square.measure = lambda number: {"square": float("nan")}
    one = entry("one", "tiny.square")
    assert run(tmp_path, one)[0] == (2, False, "square: got NaN, want a figure")
    assert result_of("one", one.claims, load(tmp_path / "one.json")).status == "not measured"


def told(*held):
    claims = [Claim("c", cells="tiny.square", holds=f"tiny.h{i}") for i in range(len(held))]
    kept = [
        {
            "cells": "tiny.square",
            "holds": f"tiny.h{i}",
            "held": held,
            "figure": "f",
            "command": "c",
            "date": "2026-01-01",
        }
        for i, held in enumerate(held)
        if held is not None
    ]
    return result_of("x", claims, {"claims": kept, "rows": [], "sources": {}}).status


def test_the_status_follows_from_what_holds():
    assert told(True, True) == "reproduced"
    assert told(True, False) == told(True, None) == "partly"
    assert told(False, False) == told(False, None) == "not reproduced"
    assert told(None, None) == "not measured"


def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    script = tmp_path / "run.py"
    script.write_text(
        "import sys; from pathlib import Path; from types import ModuleType\n"
        "from regard.claims import book; from regard.claims.cells import Cells\n"
        "from regard.claims.figures import Finding; from regard.core.atlas import Claim, Entry\n"
        "module = sys.modules['regard.claims.tiny'] = ModuleType('regard.claims.tiny')\n"
        "def wait(number):\n"
        "    if number == 2 and sys.argv[2] == 'endless':\n"
        "        print('begun', flush=True); sys.stdin.read()\n"
        "    return {'n': number}\n"
        "wait.__module__ = 'regard.claims.tiny'\n"
        "module.wait = Cells(wait, {'number': (1, 2, 3)})\n"
        "module.holds = lambda found: Finding('all', True)\n"
        "book.everything = dict\n"
        "claim = Claim('c', cells='tiny.wait', holds='tiny.holds')\n"
        "entry = Entry('one', None, 'f', 'mechanism', 't', None, 2026, 's', (claim,))\n"
        "for outcome in book.measure([entry], Path(sys.argv[1])):\n"
        "    print(outcome.cell.fields['number'], outcome.reused, flush=True)\n"
    )
    command = [sys.executable, str(script), str(tmp_path / "out")]
    first = subprocess.Popen([*command, "endless"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert [first.stdout.readline() for _ in range(2)] == ["1 False\n", "begun\n"]
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    monkeypatch.setitem(sys.modules, "regard.claims.tiny", None)
    monkeypatch.setattr(book, "everything", dict)
    monkeypatch.setattr(sys, "argv", [*command[1:], "on"])
    runpy.run_path(str(script))
    assert capsys.readouterr().out.split("\n") == ["1 True", "2 False", "3 False", ""]


def test_a_claim_names_what_is_there():
    assert [cell.fields["order"] for cell in cells_of(Claim("c", cells="nexus.two_hops", holds="x"))] == [1, 1, 2, 2]
    for text, said in (
        ("nexus", "by keyword"),
        ("nexus.nothing", "has no attribute"),
        ("nexus.two_hops(3)", "keyword"),
    ):
        with pytest.raises(ValueError, match=rf"claim.cells: got .*{said}"):
            named("claim.cells", text)
    with pytest.raises(ValueError, match="want a list of cells"):
        cells_of(Claim("c", cells="nexus.NAMES", holds="x"))


def test_figures_are_found_by_their_fields():
    found = Figures([{"order": 1, "seed": 0, "right": 0.5}, {"order": 2, "seed": 0, "right": 0.75}])
    assert found("right", order=2) == [0.75]
    assert found.by("order", "right") == {1: [0.5], 2: [0.75]}
    with pytest.raises(LookupError, match="no row has"):
        found("right", order=3)
    with pytest.raises(LookupError, match="2 rows"):
        found.one("right")
    assert interval([1.0, 2.0, 3.0], ".2f") == "2.00 ± 2.48"


def test_every_claim_of_the_atlas_names_cells_and_its_committed_outcome_is_what_its_code_says():
    for entry in atlas.indexed().values():
        page = results.read(entry.name)
        said = {(told["cells"], told["holds"]): told for told in page["claims"]}
        rows = {row["key"]: row for row in page["rows"]}
        for claim in entry.claims:
            if not claim.cells:
                continue
            cells = cells_of(claim)
            assert len({cell.key for cell in cells}) == len(cells), claim
            known, _ = named("claim.holds", claim.holds)
            assert callable(known)
            told = said.get((claim.cells, claim.holds))
            if told is None or told.get("former"):
                continue
            found = book.finding_of(claim, Figures(rows[cell.key] for cell in cells))
            assert (found.held, found.figure) == (told["held"], told["figure"]), entry.name


def test_the_page_is_what_the_results_say():
    from regard.claims.page import markdown
    from regard.core.results import RESULTS

    page = RESULTS.parents[2] / "docs" / "claims.md"
    assert page.read_text(encoding="utf-8") == markdown(atlas.entries()), "run `regard claims --page docs/claims.md`"


def test_a_disk_that_fills_up_leaves_what_was_there_and_nothing_else(tiny, tmp_path, monkeypatch):
    one = entry("one", "tiny.square")
    run(tmp_path, one)
    before = (tmp_path / "one.json").read_text()

    def fills_up(path, text, encoding):
        path.write_bytes(text.encode(encoding)[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fills_up)
    with pytest.raises(OSError, match=r"one\.json: the disk is full, want one that can be written"):
        run(tmp_path, one, again=True)
    assert [file.name for file in tmp_path.iterdir()] == ["one.json"]
    assert (tmp_path / "one.json").read_text() == before
