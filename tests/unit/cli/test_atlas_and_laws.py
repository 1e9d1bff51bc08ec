"""The commands about what there is and whether it holds."""

import json

import pytest

import regard.compare.cab
import regard.hosts.bert.lait
import regard.plan.kinetics
import regard.studies.fusemax
from command_line import regard
from mutants.mechanism import MaskOffByOne
from regard.core import atlas
from regard.core.atlas import Claim, entries, published


def test_atlas_as_json_is_the_whole_atlas():
    listed = json.loads(regard("atlas", "--json").stdout)
    assert [entry["name"] for entry in listed] == [entry.name for entry in entries()]
    for entry in listed:
        claim, measured = entry["claim"], entry["claim"]["status"] != "not measured"
        assert claim["status"] in ("reproduced", "partly", "not reproduced", "not measured")
        assert bool(claim["figure"]) == measured
        assert claim["command"]
        assert entry["system"] == ("part" if entry["missing"] else "complete")
    rows = {entry["name"]: entry["row"] for entry in listed}
    assert (rows["lightning"], rows["cab"]) == (53, 252)


def test_atlas_finds_by_meaning():
    found = json.loads(regard("atlas", "hardware-efficient gated linear attention", "--json").stdout)
    assert found[0]["name"] == "gla"


def test_laws_prints_every_law():
    done = regard("laws", "window")
    assert done.returncode == 0, done.stdout
    for law in ("definition", "causal", "extend", "padding", "cost", "edges"):
        assert law in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("atlas", "zebra"), "query: got 'zebra', want a name, a pattern or words of some name, title or summary"),
        (("laws", "sofmax"), "name: got 'sofmax', want one of the atlas"),
        (("laws",), "name: got '', want a name of the atlas, or --all alone"),
        (
            ("laws", "fusemax"),
            "name: got 'fusemax', a study, want of a kind that has laws: mechanism",
        ),
    ],
)
def test_bad_input_is_one_clear_line_and_status_2(arguments, said):
    done = regard(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"regard: {said}")
    assert done.stderr.count("\n") == 1


def test_a_broken_law_is_exit_status_1(monkeypatch):
    monkeypatch.setattr(atlas, "ENTRIES", atlas.ENTRIES.copy())
    claim = Claim("c", cells="a.b", holds="a.c")
    published("mask_off_by_one", family="f", title="t", year=2026, claim=claim)(MaskOffByOne)
    done = regard("laws", "mask_off_by_one")
    assert done.returncode == 1, done.stderr
    assert "broken" in done.stdout
