"""What a page saves of what it shows."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from playwright.sync_api import Locator, Page


def offer(page: Page, kind: str) -> Locator:
    """What saves as a PNG, SVG or CSV, in the menu once that is open."""
    return page.get_by_role("group", name="save").get_by_role("button", name=kind)


def saved(page: Page, tmp_path: Path, kind: str) -> Path:
    """What the page saves, once it has all of it."""
    page.get_by_label("save what is shown").click()
    with page.expect_download() as waiting:
        offer(page, kind).click()
    path = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def table_of(path: Path) -> list[list[str]]:
    """The rows of a saved table, its head first."""
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
