"""`regard look` end to end, and what it says of bad input."""

import json
import subprocess
import sys

import pytest


def regard(*arguments: str, text: bytes | None = None) -> subprocess.CompletedProcess:
    """The command line in its own process, as a person runs it."""
    command = [sys.executable, "-m", "regard.cli", *arguments]
    return subprocess.run(command, input=text, capture_output=True, timeout=300)


def test_a_look_leaves_a_whole_record_and_prints_a_summary(tmp_path):
    target = tmp_path / "seen"
    done = regard("look", "--text", "for item in items:\n    print(item)\n" * 5, "--generate", "3", "-o", str(target))
    assert done.returncode == 0, done.stderr
    said = done.stdout.decode()
    for word in ("regard-tiny", "induction", "previous token", "sink", "mass by position", "receive most", "page.html"):
        assert word in said
    assert {path.name for path in target.iterdir()} == {
        "record.json", "tokens.json", "arrays.safetensors", "tensors.safetensors", "page.html",
    }  # fmt: skip
    header = json.loads((target / "record.json").read_text())
    assert header["tokens"] == header["prompt_tokens"] + 3
    assert header["command"].startswith("regard look --text")


def test_text_comes_from_standard_input(tmp_path):
    done = regard("look", "--file", "-", "-o", str(tmp_path / "seen"), text=b"a b c a b c a b c")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "nosuchfolder/at-all"), "--model: got 'nosuchfolder/at-all', want tiny, minilm, a folder"),
        (("--text", "  "), "--text: got an empty text, want at least one word"),
        (("--text", "a", "--file", "b"), "--text: got a text and a --file, want one of them"),
        (("--file", "BINARY"), "which is not UTF-8 text, want a text file"),
        (("--file", "absent.txt"), "absent.txt"),
        (("--text", "word " * 9000), "want at most 8,192"),
        (("--text", "a b", "--layers", "x"), "--layers: got 'x', want numbers and ranges such as 0,2-4"),
        (("--text", "a b", "--layers", "9"), "want"),
        (("--text", "a b", "-o", "BINARY/seen"), "BINARY"),
    ],
)
def test_bad_input_is_one_clear_line_and_nothing_half_written(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "BINARY").write_bytes(bytes(range(256)))
    given = arguments if "-o" in arguments else (*arguments, "-o", "seen")
    done = regard("look", *given)
    assert done.returncode == 2, done.stdout
    lines = done.stderr.decode().strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["BINARY"]
