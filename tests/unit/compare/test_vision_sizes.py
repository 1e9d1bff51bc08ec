"""What `regard vision` says of networks, and the table of the docs."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from regard.cli import app
from regard.compare.vision_sizes import measure, table
from regard.networks.vision.build import presets

DOCS = Path(__file__).parents[3] / "docs" / "vision.md"


def test_a_network_part_by_part():
    done = CliRunner().invoke(app, ["vision", "shvit_s1", "--size", "96x128", "--no-time", "--json"])
    (found,) = json.loads(done.stdout)
    assert [part["name"] for part in found["parts"]] == ["stem", "stages.0", "stages.1", "stages.2", "head"]
    assert found["parts"][0]["shape"] == [128, 6, 8]
    assert found["parameters"] == sum(part["parameters"] for part in found["parts"]) == 6_330_808
    assert found["multiply_adds"] == sum(part["multiply_adds"] for part in found["parts"])


def test_times_are_of_each_part():
    (found,) = measure(["stages(widths=(8,), layers='mlp')"], (16, 16), 3)
    assert len(found.milliseconds) == len(found.parts) == 3
    assert "–" not in table([found])[-1]


@pytest.mark.parametrize("names", [("shvit_s1",), pytest.param(tuple(presets()), marks=pytest.mark.slow)])
def test_the_table_of_the_docs_is_written_by_the_command(names):
    head, *lines = table(measure(names, timed=False), stages=False)
    written = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in DOCS.read_text().splitlines()]
    assert all(line in written for line in (head, *lines))
    assert {line[0] for line in written} >= set(presets())


def test_a_size_that_is_none():
    with pytest.raises(ValueError, match="a number, or rows x columns"):
        CliRunner().invoke(app, ["vision", "shvit_s1", "--size", "large"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--against", "jax"], "want timm"), (["--against", "timm"], "presets that timm has")]
)
def test_beside_another_library(arguments, message):
    with pytest.raises(ValueError, match=message):
        CliRunner().invoke(app, ["vision", *arguments], catch_exceptions=False)
