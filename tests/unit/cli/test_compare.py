"""`regard compare` and `regard results`, as people run them."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from regard.cli import app

SMALL = ["--heads", "2", "--head-dim", "8", "--no-memory"]


def call(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("results") / "new"
    names = ("softmax", "window,size=5", "lightning")
    done = call("compare", *names, "--lengths", "64,128", *SMALL, "--project", "1m", "-o", str(target))
    assert done.exit_code == 0, done.output
    trained = ("--task", "recall", "--preset", "smoke", "--seeds", "2")
    quality = call("compare", "softmax", "lightning", *trained, "-o", str(target))
    assert quality.exit_code == 0, quality.output
    return target, done.output, quality.output


def test_compare_prints_ratios_growth_and_predictions(folder):
    _, cost, quality = folder
    words = (
        "prefill (one pass)",
        "decode",
        "train",
        "window(size=5)",
        "× PyTorch's fused attention",
        "claimed n^2",
        "predicted",
        "1,048,576",
    )
    for word in words:
        assert word in cost
    for word in ("accuracy", "recall (smoke)", "95% interval", "lightning"):
        assert word in quality


def test_a_second_run_measures_nothing_again(folder):
    again = call("compare", "softmax", "--lengths", "64,128", *SMALL, "-o", str(folder[0]))
    assert "6 of 6 were there already" in again.output


def test_results_answer_sql_and_json(folder):
    target, _, _ = folder
    query = "select kind, count(*) as n from results group by kind order by kind"
    counted = [json.loads(line) for line in call("results", str(target), "--sql", query, "--json").output.splitlines()]
    assert counted == [{"kind": "cost", "n": 18}, {"kind": "quality", "n": 4}]
    assert "window(size=5)" in call("results", str(target), "--sql", "select distinct mechanism from results").output
    assert len(call("results", str(target), "--json").output.splitlines()) == 22


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_results_are_plotted(folder, tmp_path, kind):
    done = call("results", str(folder[0]), "--plot", str(tmp_path / f"all.{kind}"), "--project", "4k")
    assert done.exit_code == 0, done.output
    starts = {"png": b"\x89PNG", "svg": b"<?xml"}
    for what in ("cost", "quality"):
        assert (tmp_path / f"all-{what}.{kind}").read_bytes().startswith(starts[kind])


def test_results_make_a_page_with_their_rows(folder, tmp_path):
    assert call("results", str(folder[0]), "--page", str(tmp_path / "page.html")).exit_code == 0
    page = (tmp_path / "page.html").read_text()
    data = json.loads(page.split('id="results">')[1].split("</script>")[0])
    assert {row["mechanism"] for row in data["cost"]} == {"softmax", "window(size=5)", "lightning"}
    assert {point["mechanism"] for point in data["points"]} == {"softmax", "lightning"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "nothing_such", "--lengths", "64"], "nothing_such"),
        (["compare", "softmax", "--lengths", "8k..1k"], "--lengths"),
        (["compare", "softmax", "--phase", "sleep", "--lengths", "64"], "phase"),
        (["compare", "softmax", "--task", "chess"], "--task"),
        (["compare", "softmax", "--lengths", "64", "--workers", "cloud"], "--workers"),
        (["results", "no/such/folder"], "without results"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, message):
    done = call(*arguments)
    assert done.exit_code != 0
    assert message in str(done.exception)


def test_sql_knows_the_headings_of_the_tables_and_lists_all_columns(folder):
    target = str(folder[0])
    query = "select length, time = seconds as same, ratio, quartiles, floor, state, flops from results"
    rows = [json.loads(line) for line in call("results", target, "--sql", query, "--json").output.splitlines()]
    assert all(row["same"] for row in rows if row["flops"] is not None)
    for heading in ("length", "time", "ratio", "quartiles", "floor", "peak", "state", "flops"):
        assert heading in folder[1]
    wrong = call("results", target, "--sql", "select speed from results")
    for column in ("mechanism", "ratio_low", "time", "quartiles"):
        assert column in str(wrong.exception)
