"""`regard heads` and `regard patch`, and what they say of bad input."""

import json
import sys

import pytest

from regard.cli import main
from regard.cli.heads import lines_of

BASE, DONOR = ("When Mary and Emma went to the park, {} gave a book to".format(who) for who in ("Mary", "Emma"))  # noqa: UP032


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["regard", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_heads_are_printed_and_kept(tmp_path, monkeypatch, capsys):
    text = "for item in items:\n    print(item)\n" * 9
    target = tmp_path / "heads.json"
    assert (
        run(
            monkeypatch,
            "heads",
            "--text",
            text,
            "--lengths",
            "96",
            "--no-causal",
            "-o",
            str(target),
            "--store",
            str(tmp_path / "kept"),
        )
        == 0
    )
    said = capsys.readouterr().out
    for word in ("regard-tiny", "32 heads", "induction", "previous token", "sink", "heads.json"):
        assert word in said
    assert len(json.loads(target.read_text())["heads"]) == 32


def test_lines_are_texts(tmp_path, monkeypatch, capsys):
    """Plain, or as JSON, in which a text may have lines of its own; a bad line is named."""
    assert lines_of("one\n\n two\n", False) == ["one", " two"]
    assert lines_of('"a\\nb"\n{"text": "c", "id": 3}\n', True) == ["a\nb", "c"]
    for line in ("[1]", "plain", '""', '{"prompt": "x"}'):
        file = tmp_path / "texts.jsonl"
        file.write_text(f'"fine"\n{line}\n')
        assert run(monkeypatch, "heads", "--lines", "--file", str(file)) == 2
        assert "--file: got line 2: " in capsys.readouterr().err


def test_patching_names_heads(monkeypatch, capsys):
    assert run(monkeypatch, "patch", BASE, DONOR, "--answers", " Mary, Emma", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 32
    assert max(row["effect"] for row in rows) > 0.1
    assert run(monkeypatch, "patch", BASE, DONOR, "--answers", " Mary, Emma", "--sites", "mlp") == 0
    assert "L3 mlp" in capsys.readouterr().out


def test_flow_asks_about_the_last_word_of_a_file_and_says_where_all_of_it_rests(tmp_path, monkeypatch, capsys):
    file = tmp_path / "text.txt"
    file.write_text("When Mary and Emma went to the park\n")
    assert run(monkeypatch, "flow", "--file", str(file)) == 0
    assert "\\n" not in capsys.readouterr().out.splitlines()[0]
    monkeypatch.setattr("regard.cli.flow.MOST", 0.0)
    for more, said in (((), True), (("--without", "0"), False)):
        assert run(monkeypatch, "flow", "--file", str(file), *more) == 0
        assert ("--without 0 leaves it out" in capsys.readouterr().out) is said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("heads", "--lengths", "many"), "--lengths: got 'many'"),
        (("heads", "--workers", "cloud"), "--workers: got 'cloud', want local, ray or ray:ADDRESS"),
        (("heads", "-o", "nowhere/heads.json"), "--output: got nowhere/heads.json, want a file in a folder"),
        (("heads", "--lengths", "12"), "lengths: got 12, want a length that"),
        (("patch", BASE, DONOR, "--answers", "one"), "--answers: got 'one', want two words"),
        (("patch", BASE, DONOR, "--answers", " Mary, Mary"), "which begin with the same token"),
        (("patch", BASE, DONOR + " the", "--answers", " Mary, Emma"), "pair: got shapes"),
        (("patch", BASE, DONOR, "--answers", " Mary, Emma", "--sites", "x"), "part: got 'x', want one of z"),
        (("patch", BASE, DONOR, "--answers", " Mary, Emma", "--slots", "first"), "--slots: got 'first'"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, said, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1]
    assert list(tmp_path.iterdir()) == []
