"""The committed pages of the atlas are those that the command writes."""

from pathlib import Path

from regard.cli.atlas_pages import COMMAND, pages, table, write
from regard.core.atlas import entries

COMMITTED = Path(__file__).parents[3] / "docs" / "atlas"


def test_the_committed_pages_are_what_is_written():
    committed = {file.name: file.read_text(encoding="utf-8") for file in COMMITTED.glob("*")}
    made = pages()
    assert committed.keys() == made.keys(), f"run `{COMMAND}`"
    for name, text in made.items():
        assert committed[name] == text, f"{name} is of another atlas: run `{COMMAND}`"


def test_every_entry_has_a_line(tmp_path):
    stale = tmp_path / "stale.md"
    stale.write_text(f"Written by `{COMMAND}`; do not edit.")
    (tmp_path / "own.md").write_text("mine")
    assert write(tmp_path) == len(list(tmp_path.glob("*.md"))) - 1
    assert not stale.exists()
    text = "\n".join(file.read_text(encoding="utf-8") for file in tmp_path.glob("*.md"))
    for entry in entries():
        assert text.count(f"\n| `{entry.name}` |") == 1
        assert entry.url is None or entry.url in text


def test_bars_do_not_split_cells():
    assert table([("a", "b"), ("x | y", "1\n2")]) == "| a | b |\n| --- | --- |\n| x \\| y | 1 2 |"
