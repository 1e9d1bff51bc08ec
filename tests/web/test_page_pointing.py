"""What is pointed at is shown as long as it is: afterwards the page says what it said before."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from regard.web.page import write_page
from web.links import texts_of
from web.synthetic import write_record

pytestmark = pytest.mark.browser

N, LAYERS, HEADS = 29, 3, 5
EDGES = [(2, "attn", 28, 20, 3, 0.3), (2, "resid", 28, 28, None, 0.6), (1, "attn", 20, 7, 1, 0.05)]
NAMES = ("layer", "part", "to", "source", "head", "weight")
OF_ALL, HINT = "how the last state of", "point at the map, or press an arrow key"


@pytest.fixture(scope="module")
def page_of(tmp_path_factory) -> str:
    folder: Path = write_record(tmp_path_factory.mktemp("pointing") / "record", N, LAYERS, HEADS)
    header = json.loads((folder / "record.json").read_text())
    routes = [dict(zip(NAMES, edge, strict=True)) for edge in EDGES]
    (folder / "record.json").write_text(json.dumps(header | {"analyses": {"routes": routes}}))
    return write_page(folder).resolve().as_uri()


def away(page: Page) -> None:
    """Takes the pointer to where nothing is."""
    page.mouse.move(2, 2)


def test_an_edge_is_told_of_while_the_pointer_is_on_it(open_page, page_of):
    page = open_page(f"{page_of}#view=flow")
    said = page.locator(".readout")
    for edge in (page.locator(".carries path").nth(1), page.locator(".bars button").first):
        edge.hover()
        expect(said).to_contain_text("layer 2, head 3")
        away(page)
        expect(said).to_contain_text(OF_ALL)


def test_an_edge_whose_map_was_opened_is_not_told_of_afterwards(open_page, page_of):
    page = open_page(f"{page_of}#view=flow")
    page.locator(".bars button").first.click()
    expect(page.locator("aside h2").first).to_have_text("Layer 2 · head 3")
    away(page)
    page.keyboard.press("4")
    expect(page.locator(".carries")).to_have_count(2)
    assert OF_ALL in page.locator(".readout").inner_text()


def test_an_edge_that_goes_from_under_the_pointer_is_not_told_of(open_page, page_of):
    page = open_page(f"{page_of}#view=flow")
    page.locator(".bars button").nth(1).hover()
    expect(page.locator(".readout")).to_contain_text("layer 1, head 1")
    page.get_by_label("least share that is shown").fill("0.1")
    expect(page.locator(".carries")).to_have_count(1)
    assert OF_ALL in page.locator(".readout").inner_text()


def test_a_token_that_was_pointed_at_is_not_taken_for_the_chosen_one_elsewhere(open_page, page_of):
    page = open_page(f"{page_of}#view=text&token=20")
    shown = page.locator(".token")
    page.locator("#t11").hover()
    expect(shown).to_have_attribute("data-token", "11")
    page.keyboard.press("2")
    page.locator('[aria-label="map"]').wait_for()
    expect(shown).to_have_attribute("data-token", "20")


def test_a_pair_that_was_pointed_at_is_not_told_of_when_the_map_opens_again(open_page, page_of):
    page = open_page(f"{page_of}#view=map&token=20")
    said = page.locator("#readout")
    expect(said).to_contain_text(HINT)
    page.locator("canvas[tabindex='0']").hover()
    expect(said).to_contain_text("→")
    page.keyboard.press("3")
    page.locator(".tapestry").wait_for()
    away(page)
    page.keyboard.press("2")
    page.locator("canvas[tabindex='0']").wait_for()
    assert HINT in said.inner_text()


def test_keys_point_at_a_pair_until_the_focus_leaves_the_map(open_page, page_of):
    page = open_page(f"{page_of}#view=map&token=20")
    said = page.locator("#readout")
    page.locator("canvas[tabindex='0']").focus()
    page.keyboard.press("ArrowLeft")
    expect(said).to_contain_text("→")
    told = said.inner_text()
    page.get_by_role("button", name="nearer").focus()  # which goes nearer to the pair
    assert said.inner_text() == told
    page.locator(".find input").focus()
    expect(said).to_contain_text(HINT)


def test_the_pin_is_told_of_where_it_is_now(open_page, page_of):
    page = open_page(f"{page_of}#view=map&layer=1&head=2&token=20&key=20")
    keys = texts_of(page.locator(".token .at"))
    page.get_by_role("button", name="to the pin").click()
    expect(page.locator("canvas[tabindex='0']")).to_be_focused()
    other = next(place for place, key in enumerate(keys) if key != "20")
    page.locator(".token .bars button").nth(other).click()
    expect(page.locator("#readout")).to_contain_text(re.compile(f"key .* at {keys[other]}:"))


def test_a_head_that_is_to_be_picked_beside_the_map_is_chosen_in_the_text(open_page, page_of):
    page = open_page(f"{page_of}#view=map&layer=1&head=2")
    page.get_by_role("button", name="a head …").click()
    page.keyboard.press("3")
    page.locator(".tapestry").wait_for()
    page.locator('.picker [aria-label="Layer 2 · head 0"]').click()
    expect(page.locator("aside h2").first).to_have_text("Layer 2 · head 0")
