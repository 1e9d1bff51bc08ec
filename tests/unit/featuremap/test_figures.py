"""What `regard gates` says of gates, and the table of the docs."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from regard.cli import app
from regard.compare.feature_gates import brief, measure, names, table

DOCS = (Path(__file__).parents[3] / "docs" / "gates.md").read_text()


def test_the_table_of_the_docs_is_that_of_the_command():
    """But for the times and for what random numbers decide."""
    shown = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in DOCS.splitlines()]
    known = {line[0]: line[:7] for line in shown if len(line) == 10}
    head, *lines = table(measure(names()), timed=False)
    assert known == {line[0]: line for line in (head, *lines)} | {"---": ("---",) * 7}


def test_the_examples_of_the_docs_run():
    scope = {}
    for example in re.findall(r"^```python\n(.*?)^```$", DOCS, re.DOTALL | re.MULTILINE):
        exec(compile(example, "docs/gates.md", "exec"), scope)
    assert {axes: tuple(factor.shape) for axes, factor in scope["gate"].factors(scope["x"]).items()} == {
        "cx": (2, 64, 1, 9),
        "cy": (2, 64, 14, 1),
        "yx": (2, 1, 14, 9),
    }


def test_the_command_prints_what_was_measured():
    done = CliRunner().invoke(app, ["gates", "eca", "se | spatial", "--channels", "64", "--size", "7", "--json"])
    assert done.exit_code == 0, done.output
    eca, chain = json.loads(done.output)
    got = [eca[field] for field in ("name", "row", "parameters", "macs", "network_parameters")]
    assert got == ["eca", 183, 3, 192, 86]
    assert (chain["maps"], chain["parameters"]) == (["c", "yx"], 2 * 64 * 4 + 4 + 64 + 100)
    assert 0 <= chain["low"] < chain["high"] <= 1
    shown = CliRunner().invoke(app, ["gates", "eca", "--channels", "8", "--size", "3"], env={"COLUMNS": "200"})
    assert "ResNet-50" in shown.output
    assert "eca" in shown.output


def test_sizes_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="size: got 0, want at least 1"):
        measure(["eca"], size=0)


@pytest.mark.parametrize(("number", "text"), [(0, "0"), (999, "999"), (1_234_567, "1.23 M"), (2 * 10**12, "2e+03 G")])
def test_numbers_are_cut_to_three_digits(number, text):
    assert brief(number) == text
