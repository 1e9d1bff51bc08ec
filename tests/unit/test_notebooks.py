"""The notebooks of the documentation: their cells run, print what the pages show, and draw the pictures."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = runpy.run_path(str(ROOT / "tools" / "notebooks.py"))
PAGES = sorted((ROOT / "docs" / "notebooks").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_cells_print_what_the_page_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    text = page.read_text()
    assert TOOL["differences"](text, TOOL["executed"](text, page.name)) == []
    shown = set(TOOL["pictures"](text))
    assert shown == {path.name for path in tmp_path.iterdir()}
    assert all((page.parent / name).stat().st_size < 100_000 for name in shown)


def test_outputs_are_written_and_kept():
    page = "A page.\n\n```python\nx = 0.5\n```\n\nMore.\n\n```python\nprint(f'{x:.2f} of', 3)\n```\n"
    once = TOOL["executed"](page, "page")
    assert once == page[:-4] + "```\n\n```output\n0.50 of 3\n```\n"
    assert TOOL["executed"](once, "page") == once


def test_a_last_digit_may_differ_and_nothing_else():
    page = "loss 1.660, -0.25, 138 tokens of 1,024"
    for other, same in (
        ("loss 1.661, -0.26, 138 tokens of 1,024", True),
        ("loss 1.662, -0.25, 138 tokens of 1,024", False),
        ("loss 1.660, -0.25, 139 tokens of 1,024", False),
        ("loss 1.660, 0.25, 138 tokens of 1,024", False),
        ("loss 1.660, -0.25, 138 words of 1,024", False),
    ):
        assert (TOOL["differences"](page, other) == []) is same, other
    assert TOOL["differences"](page, page + "\nmore") != []
