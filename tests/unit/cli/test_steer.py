"""`regard steer` end to end, and what it says of bad input."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from regard.cli import app
from regard.edits import Highlight
from regard.edits.saved import edit_of, save
from regard.hosts import small
from regard.hosts.spans import spans_of
from regard.web.steered import steered_html

TEXT = "def first(items):\n    return items[0]\n\ndef second(items):\n    return "


def steered(*arguments: str):
    return CliRunner().invoke(app, ["steer", "--text", TEXT, "--tokens", "3", *arguments])


def test_what_a_model_says_is_printed_without_and_with_an_edit(tmp_path):
    done = steered("--edit", "pasta(strength=3.0)", "--on", "items[0]", "-o", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    before, after = done.output.split("after  ")
    assert before.startswith("before ")
    assert before.splitlines()[0].split(maxsplit=1)[1] != after.splitlines()[0].strip()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"before", "after"}
    assert (tmp_path / "out" / "after" / "page.html").is_file()


def test_a_page_compares_text_next_tokens_and_maps(tmp_path):
    out = tmp_path / "out"
    done = steered("--edit", "pasta(strength=3.0)", "--on", "items[0]", "-o", str(out), "--compare")
    assert done.exit_code == 0, done.output
    assert f"compare  {(out / 'compare.html').resolve().as_uri()}" in done.output
    page = (out / "compare.html").read_text()
    assert "Highlight(keys=[(" in page
    assert 'src="after/page.html"' in page
    assert len(re.findall(r"<td>[+-][\d.]+</td>", page)) >= 10
    before, after = (re.search(rf"{name} +'(.+?)' ([\d.]+)%", done.output) for name in ("before", "after"))
    for found in (before, after):  # what is printed stands in the table too
        token, chance = found.groups()
        assert re.search(rf"{re.escape(html.escape(repr(token)))}</td>.*?<td>{chance[:-1]}", page)


def test_nothing_of_a_prompt_is_markup():
    rows = [("<b>", 0.25, 0.5), ("x", 0.5, 0.25)]
    page = steered_html("<img src=x>", ["Edit('<u>')"], ["<i>", "a"], ["<i>", "<script>"], rows, 0.125, Path("a"))
    for tag in ("<b>", "<i>", "<img", "<u>", "<script"):
        assert tag not in page
    assert "another from token 2 on" in page
    assert "<mark>&lt;script&gt;</mark>" in page
    assert "0.125 nats" in page
    assert "+25.00<" in page
    shown = steered_html("a <b> c", [], ["a"], ["a"], [], 0.0, Path("x"), ["<b>"])
    assert "a <mark>&lt;b&gt;</mark> c" in shown
    assert "the same" in steered_html("", [], ["a"], ["a"], [], 0.0, Path("x"))


def test_edits_come_from_a_file(tmp_path):
    save([Highlight([(2, 5)], 0.0)], tmp_path / "edits.json")
    done = steered("--edits", str(tmp_path / "edits.json"))
    before, after = done.output.split("edit    Highlight(keys=[(2, 5)], strength=0.0)\nafter  ")
    assert before.split(maxsplit=1)[1].split() == after.split()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--edit", "pasta(strength=2.0)"), "--on: got none for .* want --on 'a passage' of the text"),
        (("--edit", "act", "--on", "items[0]"), r"--on: got \['items\[0\]'\] for \['act'\], which is about no passage"),
        ((), "--edit: got none, want an edit"),
    ],
)
def test_passages_and_edits_belong_together(given, said):
    done = steered(*given)
    assert done.exit_code == 1
    assert re.search(said, " ".join(str(done.exception or done.output).split()))


def test_passages_are_found_in_tokens():
    _, tokenizer = small.load("tiny")
    ids = tokenizer(TEXT)["input_ids"]
    spans = spans_of(tokenizer, TEXT, "(items)", "items[0]")
    assert len(spans) == 3
    assert all("items" in tokenizer.decode(ids[start:stop]) for start, stop in spans)
    with pytest.raises(ValueError, match="passages: got 'none', want a part of the text"):
        spans_of(tokenizer, TEXT, "none")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("zero_tunin(gamma=1)", r"edit: got 'zero_tunin', want one of .*did you mean 'zero_tuning'"),
        ("zero_tuning(gama=1)", "gama: got an unknown argument, want one of zero_tuning's: gamma"),
        ("zero_tuning", "gamma: got nothing in 'zero_tuning', want a value"),
    ],
)
def test_edits_that_are_misspelled_are_named(text, said):
    with pytest.raises((LookupError, TypeError), match=said):
        edit_of(text)


def test_nothing_to_do_is_named():
    with pytest.raises(ValueError, match="--edit: got none, want an edit such as"):
        raise steered().exception
