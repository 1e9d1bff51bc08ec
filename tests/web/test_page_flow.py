"""The flow graph on the page: its edges are the record's, none leads nowhere, and heads open their maps."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import pytest
from playwright.sync_api import expect

from regard.web.page import write_page
from web.links import link_of
from web.saving import saved, table_of
from web.synthetic import write_record

pytestmark = pytest.mark.browser

N, LAYERS, HEADS = 29, 3, 5
EDGES = [
    (2, "attn", 28, 20, 3, 0.3), (2, "resid", 28, 28, None, 0.6), (2, "mlp", 28, 28, None, 0.05),
    (1, "attn", 20, 7, 1, 0.25), (1, "attn", 28, 11, 0, 0.08), (1, "resid", 20, 20, None, 0.5),
    (0, "attn", 7, 2, 4, 0.2), (0, "attn", 11, 0, 2, 0.4), (0, "mlp", 7, 7, None, 0.7),
]  # fmt: skip
NAMES = ("layer", "part", "to", "source", "head", "weight")


@pytest.fixture(scope="module")
def page_of(tmp_path_factory):
    folder = write_record(tmp_path_factory.mktemp("flow") / "record", N, LAYERS, HEADS)
    header = json.loads((folder / "record.json").read_text())
    routes = [dict(zip(NAMES, edge, strict=True)) for edge in EDGES]
    (folder / "record.json").write_text(json.dumps(header | {"analyses": {"routes": routes}}))
    return write_page(folder).resolve().as_uri()


def test_edges_below_the_share_go_with_all_that_only_they_lead_to(open_page, page_of):
    page = open_page(f"{page_of}#view=flow")
    expect(page.locator(".readout")).to_contain_text("9 of 9 edges")
    expect(page.locator(".carries")).to_have_count(5)
    expect(page.locator(".bars .at")).to_have_text(["L0H2", "L2H3", "L1H1", "L0H4", "L1H0"])
    page.get_by_label("least share that is shown").fill("0.1")
    expect(page.locator(".carries")).to_have_count(3)  # not the strong edge 0 → 11: what led from 11 is gone
    expect(page.locator(".bars .at")).to_have_text(["L2H3", "L1H1", "L0H4"])
    link = link_of(page)
    assert "least=0.1" in link
    again = open_page(link)
    expect(again.locator(".carries")).to_have_count(3)


def test_a_heads_edge_opens_its_map_at_the_pair(open_page, page_of):
    page = open_page(f"{page_of}#view=flow")
    page.locator(".bars button").nth(2).click()
    expect(page.locator("aside h2").first).to_have_text("Layer 1 · head 1")
    page.wait_for_url(lambda url: "token=20" in url and "key=7" in url and "view=map" in url)
    page.go_back()
    expect(page.locator(".carries")).to_have_count(5)
    page.locator(".carries").first.locator("path").nth(1).click()
    expect(page.locator("aside h2").first).to_have_text("Layer 2 · head 3")


def test_the_graph_is_saved_as_a_drawing_and_a_table(open_page, page_of, tmp_path):
    page = open_page(f"{page_of}#view=flow&least=0.1")
    drawing = ElementTree.parse(saved(page, tmp_path, "SVG")).getroot()
    told = [node.text or "" for node in drawing.iter() if node.tag.endswith("title")]
    assert sum("head" in text for text in told) == 3
    head, *rows = table_of(saved(page, tmp_path, "CSV"))
    found = {(row[0], row[1], row[5], row[3], row[2], float(row[7])) for row in rows}
    assert head[-1] == "share"
    assert ("2", "attn", "28", "20", "3", 0.3) in found
    assert len(found) == 6


def test_a_record_without_routes_has_no_such_view(open_page, tmp_path):
    folder = write_record(tmp_path / "record", N, 1, 2)
    write_page(folder)
    page = open_page((folder / "page.html").resolve().as_uri() + "#view=flow")
    expect(page.locator(".card").first).to_be_visible()
    expect(page.get_by_role("button", name="Flow", exact=True)).to_have_count(0)


def test_the_graph_begins_with_as_many_of_the_heads_edges_as_can_be_read(open_page, tmp_path):
    """Of 90 edges of heads, whose shares are a thousandth apart, the strongest sixty, though all else is stronger."""
    folder = write_record(tmp_path / "record", 97, 1, 2)
    header = json.loads((folder / "record.json").read_text())
    edges = [(0, "attn", 96, i, 0, 0.021 + i / 1000) for i in range(90)] + [(0, "resid", 96, 96, None, 0.9)]
    routes = [dict(zip(NAMES, edge, strict=True)) for edge in edges]
    (folder / "record.json").write_text(json.dumps(header | {"analyses": {"routes": routes}}))
    page = open_page(write_page(folder).resolve().as_uri() + "#view=flow")
    shown = page.locator(".carries")
    expect(shown.nth(50)).to_be_attached()
    assert 55 <= shown.count() <= 60
