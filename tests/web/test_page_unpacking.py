"""What the page says and saves while something is still unpacked, or recomputed: of what is there, or nothing."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect
from safetensors.numpy import load_file

from regard.web.page import write_page
from web.conftest import HELD
from web.links import link_of, unpacked_map
from web.saving import offer, saved, table_of
from web.synthetic import tell_more, write_exact_record, write_record

pytestmark = pytest.mark.browser

N, LAYERS, HEADS = 61, 3, 4


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> Path:
    folder = write_record(tmp_path_factory.mktemp("unpacking") / "record", N, LAYERS, HEADS)
    tell_more(folder)
    write_page(folder)
    return folder


def address(folder: Path, fields: str) -> str:
    return (folder / "page.html").resolve().as_uri() + f"#{fields}"


def weights_of(folder: Path, layer: int, head: int) -> np.ndarray:
    """``(n, n)``, from the record's own arrays, zero below the threshold."""
    arrays = load_file(folder / "arrays.safetensors")
    span = slice(*arrays[f"{layer}/edge_starts"][head : head + 2])
    rows = np.repeat(np.arange(N), np.diff(arrays[f"{layer}/edge_rows"][head]))
    dense = np.zeros((N, N))
    dense[rows, arrays[f"{layer}/edge_keys"][span]] = arrays[f"{layer}/edge_weights"][span].astype(float).round(3)
    return dense


def saved_once(page: Page, tmp_path: Path, kind: str) -> Path:
    """What is saved once all is there, where saving was tried before, too."""
    downloads = []
    page.on("download", lambda each: downloads.append(each))
    try_to_save(page, kind)
    page.evaluate("unpack()")
    path = saved(page, tmp_path, kind)
    assert len(downloads) == 1, "what is not there yet was saved"
    return path


def try_to_save(page: Page, kind: str) -> None:
    page.get_by_label("save what is shown").click()
    offer(page, kind).evaluate("button => button.click()")
    page.locator(".save").evaluate("menu => { menu.open = false }")


def assert_is_table_of(path: Path, weights: np.ndarray) -> None:
    found = {(int(row[0]), int(row[2])): float(row[4]) for row in table_of(path)[1:]}
    assert found == {(int(i), int(j)): weights[i, j] for i, j in np.argwhere(weights)}


def test_a_map_is_saved_as_a_table_once_it_is_unpacked(open_page, record, tmp_path):
    page = open_page(address(record, "view=map&layer=1&head=2"), held=True)
    assert_is_table_of(saved_once(page, tmp_path, "CSV"), weights_of(record, 1, 2))


@pytest.mark.parametrize("fields", ["view=map&layer=1&head=2&with=2.0", "view=text&layer=1&head=2"])
@pytest.mark.parametrize("kind", ["SVG", "PNG"])
def test_a_picture_is_saved_once_what_it_shows_is_unpacked(open_page, record, tmp_path, fields, kind):
    page = open_page(address(record, fields), held=True)
    path = saved_once(page, tmp_path, kind)
    if kind == "SVG":
        tags = [node.tag.rpartition("}")[2] for node in ElementTree.parse(path).getroot().iter()]
        assert tags.count("image") == 2 if "map" in fields else tags.count("rect") > 2  # beside paper and choice


@pytest.mark.parametrize("fields", ["mode=attends", "mode=received&over=all", "mode=surprise"])
def test_shades_of_the_text_are_saved_once_they_are_there(open_page, record, tmp_path, fields):
    page = open_page(address(record, f"view=text&layer=1&head=2&token=50&{fields}"), held=True)
    values = [row[2] for row in table_of(saved_once(page, tmp_path, "CSV"))[1:]]
    assert len(values) == N
    assert "" not in values
    if fields == "mode=attends":
        np.testing.assert_allclose([float(value) for value in values], weights_of(record, 1, 2)[50], atol=1e-6)


@pytest.mark.parametrize("view", ["map", "text"])
def test_why_nothing_can_be_saved_yet_is_said(open_page, record, view):
    page = open_page(address(record, f"view={view}&layer=1&head=2"), held=True)
    page.get_by_label("save what is shown").click()
    menu = page.get_by_role("group", name="save")
    expect(menu).to_contain_text({"map": "unpacking Layer 1 · head 2", "text": "unpacking head 2 of layer 1"}[view])
    for kind in ("PNG", "SVG", "CSV"):
        expect(offer(page, kind)).to_be_disabled()
    page.evaluate("unpack()")
    for kind in ("PNG", "SVG", "CSV"):
        expect(offer(page, kind)).to_be_enabled()
    expect(menu).not_to_contain_text("unpacking")


def test_another_head_is_neither_told_nor_saved_by_the_weights_of_the_one_before(open_page, record, tmp_path):
    page = open_page(address(record, "view=map&layer=1&head=2&token=50&key=50"))
    expect(page.locator("#readout")).to_contain_text("→")
    page.evaluate(f"() => {HELD}")
    page.keyboard.press("]")
    expect(page.locator("aside h2").first).to_have_text("Layer 1 · head 3")
    assert page.locator("#readout").inner_text() == "unpacking Layer 1 · head 3 …"
    path = saved_once(page, tmp_path, "CSV")
    assert path.name == "regard-tiny-map-1-3.csv"
    assert_is_table_of(path, weights_of(record, 1, 3))
    expect(page.locator("#readout")).to_contain_text("→")


def test_a_view_that_opens_saves_nothing_of_the_one_before(open_page, record, tmp_path):
    """In the moment in which it is drawn, and nothing of it has run yet."""
    page = open_page(address(record, "view=map&layer=1&head=2"))
    unpacked_map(page)
    page.evaluate(f"() => {HELD}")
    downloads = []
    page.on("download", lambda each: downloads.append(each))
    page.evaluate("""async () => {
      document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "3", bubbles: true }))
      while (!document.querySelector(".tapestry")) await null
      document.querySelectorAll(".save button").forEach(button => button.click())
    }""")
    page.evaluate("unpack()")
    assert saved(page, tmp_path, "CSV").name == "regard-tiny-text-1-2.csv"
    assert len(downloads) == 1


def test_a_row_that_is_still_unpacked_is_not_said_to_be_uncomputed(open_page, tmp_path):
    folder = write_record(tmp_path / "record", N, 1, 2)
    header = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(header | {"rows": {"count": 17, "seed": 5}}))
    write_page(folder)
    page = open_page(address(folder, "view=map&token=50"), held=True)
    expect(page.locator(".token h3")).to_have_text("attends to")
    assert "not computed" not in page.locator(".token").inner_text()
    page.evaluate("unpack()")
    expect(page.locator(".token .bars li")).not_to_have_count(0)


def test_a_scale_has_no_ends_before_they_are_known(open_page, record):
    for fields in ("view=text&mode=received", "view=map&measure=value"):
        page = open_page(address(record, fields), held=True)
        expect(page.locator("aside .legend")).to_be_visible()
        expect(page.locator("aside .legend .ticks span")).to_have_count(0)
        page.evaluate("unpack()")
        expect(page.locator("aside .legend .ticks span")).not_to_have_count(0)


def test_a_served_map_is_saved_as_a_picture_once_its_tiles_are_exact(open_page, serve, tmp_path):
    write_exact_record(tmp_path / "record", N)
    page = open_page(f"{serve(tmp_path / 'record')}#view=heads")
    asked, answered = [], False
    page.route("**/api/region?*", lambda route: route.continue_() if answered else asked.append(route))
    page.keyboard.press("2")
    page.get_by_label("save what is shown").click()
    expect(offer(page, "CSV")).to_be_enabled()  # which says nothing that the server is asked for
    assert offer(page, "SVG").is_disabled()
    expect(page.get_by_role("group", name="save")).to_contain_text("drawing the map")
    answered = True
    for route in asked:
        route.continue_()
    expect(offer(page, "SVG")).to_be_enabled()


def test_a_late_answer_about_another_head_is_not_taken_for_this_ones(open_page, serve, tmp_path):
    weights = write_exact_record(tmp_path / "record", N)
    page = open_page(f"{serve(tmp_path / 'record')}#view=heads&token=40&key=9")
    late = []
    of_the_pair = re.compile(r"/api/region\?.*row0=40&row1=41&")
    page.route(of_the_pair, lambda route: late.append(route) if "head=0&" in route.request.url else route.continue_())
    with page.expect_request(of_the_pair):
        page.keyboard.press("2")
    with page.expect_response(of_the_pair):  # about the next head, first
        page.keyboard.press("]")
    said = page.locator("#readout b")
    expect(said).not_to_contain_text("below")
    with page.expect_response(of_the_pair):
        for route in late:
            route.continue_()
    link_of(page)
    assert float(said.inner_text().removeprefix("< ")) == pytest.approx(weights[1, 40, 9], rel=0.06, abs=6e-4)
    assert weights[0, 40, 9] != pytest.approx(weights[1, 40, 9], rel=0.2, abs=6e-4)
