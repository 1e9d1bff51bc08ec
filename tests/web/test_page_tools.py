"""What one does with the page: filter, search, compare, go back, link, save."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect
from safetensors.numpy import load_file, save_file

from regard.web.page import write_page
from web.links import link_of, unpacked_map
from web.saving import saved, table_of
from web.synthetic import write_exact_record, write_record

pytestmark = pytest.mark.browser

N, LAYERS, HEADS = 67, 23, 3
LOSSES = {(3, 1): 0.75, (7, 2): -0.25}
"""Causal effects of the table that the record carries."""


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """A record of many layers, in which three words repeat, with its page."""
    texts = ["<s>"] + [f" {('red', 'green', 'blue')[i % 3]}{i}" for i in range(1, N)]
    folder = write_record(tmp_path_factory.mktemp("tools") / "record", N, LAYERS, HEADS, texts=texts)
    write_page(folder)
    return folder


@pytest.fixture(scope="module")
def tabled(tmp_path_factory):
    """A record with a table of roles."""
    folder = write_record(tmp_path_factory.mktemp("tabled") / "record", N, LAYERS, HEADS)
    header = json.loads((folder / "record.json").read_text())
    table = [
        {"layer": layer, "head": head, "roles": ["retrieval"] if (layer, head) in LOSSES else [], "retrieval": 0.3}
        | {"loss_rise": LOSSES.get((layer, head)), "loss_estimate": 0.01 * head}
        for layer in range(LAYERS)
        for head in range(HEADS)
    ]
    (folder / "record.json").write_text(json.dumps(header | {"analyses": {"heads": table}}))
    write_page(folder)
    return folder


def address(folder: Path, fields: str = "") -> str:
    return (folder / "page.html").resolve().as_uri() + (f"#{fields}" if fields else "")


def test_a_role_filter_hides_scrolls_and_counts(open_page, record):
    scores = load_file(record / "arrays.safetensors")
    having = [(i, h) for i in range(LAYERS) for h in range(HEADS) if scores[f"{i}/induction"][h] >= 0.2]
    page = open_page(address(record))
    page.get_by_role("group", name="roles").get_by_role("button", name="induction").click()
    expect(page.locator(".card")).to_have_count(len(having))
    expect(page.locator(".filtered")).to_contain_text(f"{len(having)} of {LAYERS * HEADS} heads: induction")
    expect(page.locator(f'[data-head="{having[0][0]}/{having[0][1]}"]')).to_be_in_viewport()
    expect(page.locator(".card[aria-selected=true]")).to_have_attribute("data-head", "/".join(map(str, having[0])))
    page.locator(".card[aria-selected=true]").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".card[aria-selected=true]")).to_have_attribute("data-head", "/".join(map(str, having[1])))
    page.get_by_role("button", name="show all").click()
    expect(page.locator(".card")).to_have_count(LAYERS * HEADS)


def test_the_matrix_is_the_way_in(open_page, record):
    arrays = load_file(record / "arrays.safetensors")
    page = open_page(address(record))
    cells = page.locator("[data-cell]")
    expect(cells).to_have_count(LAYERS * HEADS)
    page.get_by_label("score of the matrix").select_option("distance")
    page.locator('[data-cell="19/2"]').click()
    shown = page.locator(".chosen b").inner_text()
    assert float(shown) == pytest.approx(arrays["19/distance"][2], abs=0.006)
    expect(page.locator('[data-head="19/2"]')).to_be_in_viewport()
    page.keyboard.press("ArrowUp")
    expect(page.locator('[data-cell="18/2"]')).to_be_focused()
    paints = cells.evaluate_all("all => all.map(cell => cell.style.background)")
    assert len(set(paints)) > 20
    page.keyboard.press("Enter")
    expect(page.locator("aside h2").first).to_have_text("Layer 18 · head 2")


def test_causal_effects_come_from_the_table_of_roles(open_page, tabled, tmp_path):
    page = open_page(address(tabled, "view=heads&score=loss_rise&layer=7&head=2"))
    expect(page.locator(".chosen b")).to_have_text("-0.25")
    expect(page.locator('[data-cell="0/0"]')).to_have_attribute("title", "Layer 0 · head 0: causal effect not measured")
    roles = page.get_by_role("group", name="roles")
    expect(roles.get_by_role("button", name="retrieval-like")).to_have_text(f"retrieval-like {len(LOSSES)}")
    expect(roles.get_by_role("button", name="sink")).to_be_disabled()
    head, *rows = table_of(saved(page, tmp_path, "CSV"))
    found = {(int(row[0]), int(row[1])): row[head.index("loss_rise")] for row in rows}
    assert len(rows) == LAYERS * HEADS
    assert {head: float(value) for head, value in found.items() if value} == LOSSES
    page = open_page(address(tabled, "view=map&layer=3&head=1"))
    expect(page.locator(".side")).to_contain_text("without it the loss rises by 0.750")


def test_the_list_of_heads_follows_the_chosen_one(open_page, record):
    page = open_page(address(record, f"view=map&layer={LAYERS - 1}&head=1"))
    chosen = page.locator(".picker [aria-pressed=true]")
    expect(chosen).to_be_in_viewport(ratio=0.9)  # which counts what the box around it hides
    page.locator("canvas[tabindex='0']").focus()
    for _ in range(3):
        page.keyboard.press("]")
    expect(page.locator("aside h2").first).to_have_text("Layer 0 · head 1")
    expect(chosen).to_be_in_viewport(ratio=0.9)


def test_words_are_found(open_page, record):
    page = open_page(address(record, "view=text&token=5"))
    page.keyboard.press("/")
    expect(page.locator(".find input")).to_be_focused()
    page.keyboard.type("Blue1")
    expect(page.locator(".find [role=status]")).to_have_text("3 places")  # blue11, blue14 and blue17
    expect(page.locator(".sought")).to_have_text(["blue11", "blue14", "blue17"])
    page.keyboard.press("Enter")
    expect(page.locator("[data-token]")).to_have_attribute("data-token", "11")
    page.keyboard.press("Shift+Enter")
    expect(page.locator("[data-token]")).to_have_attribute("data-token", "17")
    expect(page.locator(".find [role=status]")).to_have_text("3 of 3")
    page.locator(".find input").fill("n7 bl")  # across two tokens
    expect(page.locator(".find [role=status]")).to_have_text("1 place")
    expect(page.locator(".sought")).to_have_text(["green7", "blue8"])
    page.locator(".find input").fill("n7 re")
    expect(page.locator(".find [role=status]")).to_have_text("nowhere")
    expect(page.locator(".sought")).to_have_count(0)


def test_a_link_holds_filter_order_and_zoom(open_page, record):
    page = open_page(address(record))
    page.get_by_role("group", name="order of the heads").get_by_role("button", name="role").click()
    page.get_by_role("group", name="roles").get_by_role("button", name="sink").click()
    page.get_by_label("score of the matrix").select_option("induction")
    link = link_of(page)
    again, shown = open_page(link), page.locator(".card").count()
    expect(again.locator(".card")).to_have_count(shown)
    expect(again.locator(".chip[aria-pressed=true]")).to_contain_text("sink")
    expect(again.get_by_role("button", name="role", exact=True)).to_have_attribute("aria-pressed", "true")
    expect(again.get_by_label("score of the matrix")).to_have_value("induction")
    page = open_page(address(record, "view=map&layer=2&head=1"))
    page.get_by_role("button", name="nearer").click()
    page.get_by_role("button", name="nearer").click()
    link = link_of(page)
    again = open_page(link)
    again.get_by_label("least weight that is shown").fill("0.2")
    narrowed = link_of(again)
    assert "floor=0.2" in narrowed
    assert zoom_of(narrowed) == zoom_of(link)


def zoom_of(link: str) -> list[float]:
    found = re.search(r"zoom=([\d.,]+)", link)
    assert found
    return [float(part) for part in found[1].split(",")]


def test_back_goes_to_the_view_before(open_page, record):
    page = open_page(address(record))
    page.locator('[data-head="0/2"]').click()
    expect(page.locator("aside h2").first).to_have_text("Layer 0 · head 2")
    page.get_by_role("button", name="Text", exact=True).click()
    page.locator(".tapestry").wait_for()
    page.go_back()
    page.locator('[aria-label="map"]').wait_for()
    page.go_back()
    expect(page.locator(".card")).to_have_count(LAYERS * HEADS)
    page.go_forward()
    page.locator('[aria-label="map"]').wait_for()
    expect(page.locator("aside h2").first).to_have_text("Layer 0 · head 2")


def test_a_map_keeps_its_place_when_the_window_changes(open_page, record):
    page = open_page(address(record, "view=map&layer=1&head=0&zoom=4,20.5,40.25"))
    seen = []
    for width, height in ((1280, 860), (900, 640), (1400, 1000)):
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_function("size => innerWidth === size[0] && innerHeight === size[1]", arg=[width, height])
        seen.append(said_in_the_middle(page))
    assert "at 40" in seen[0]
    assert "at 20" in seen[0]
    assert seen == seen[:1] * 3


def said_in_the_middle(page) -> str:
    """What the page says of the pair in the middle of the map, once the map has its new size."""
    canvas, readout = page.locator("canvas[tabindex='0']"), page.locator("#readout")
    for _ in range(200):
        box = canvas.bounding_box()
        middle = ((64 if box["width"] < 480 else 96) + box["width"]) / 2
        page.mouse.move(0, 0)
        page.mouse.move(box["x"] + middle, box["y"] + middle)
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        if "→" in (said := readout.inner_text()) and box == canvas.bounding_box():
            return said
    raise AssertionError("no pair is named in the middle of the map")


@pytest.mark.parametrize("view", ["heads", "map&layer=2&head=0&token=50", "text&layer=2&head=1&token=50"])
def test_every_view_is_saved_as_a_picture_and_a_drawing(open_page, record, tmp_path, view):
    page = open_page(address(record, f"view={view}"))
    expect(page.locator(".readout").or_(page.locator(".matrix")).first).not_to_contain_text("unpacking")
    drawing = ElementTree.parse(saved(page, tmp_path, "SVG")).getroot()
    assert drawing.tag.endswith("svg")
    written = " ".join(node.text or "" for node in drawing.iter() if node.tag.endswith("text"))
    assert {"heads": "entropy", "map&": "queries", "text": "green49"}[view[:4] if view != "heads" else view] in written
    picture = saved(page, tmp_path, "PNG").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(picture[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == (2 * int(float(drawing.get("width"))), 2 * int(float(drawing.get("height")))) or view[
        0
    ] == "t"


def test_saved_data_are_the_records(open_page, record, tmp_path):
    arrays = load_file(record / "arrays.safetensors")
    page = open_page(address(record, "view=map&layer=5&head=2"))
    unpacked_map(page)
    head, *rows = table_of(saved(page, tmp_path, "CSV"))
    assert head == ["query", "query_text", "key", "key_text", "weight"]
    first, last = arrays["5/edge_starts"][2], arrays["5/edge_starts"][3]
    of = np.repeat(np.arange(N), np.diff(arrays["5/edge_rows"][2]))
    want = {
        (int(i), int(j)): round(float(w), 3)
        for i, j, w in zip(of, arrays["5/edge_keys"][first:last], arrays["5/edge_weights"][first:last], strict=True)
    }
    assert {(int(row[0]), int(row[2])): float(row[4]) for row in rows} == want
    assert rows[-1][1] == " " + f"{('red', 'green', 'blue')[int(rows[-1][0]) % 3]}{rows[-1][0]}"


def test_a_text_that_a_spreadsheet_would_run_is_saved_as_text(open_page, tmp_path):
    texts = ["=1+1", '"', "a,b", "@x", *(f" w{i}" for i in range(7))]
    folder = write_record(tmp_path / "record", len(texts), 1, 2, texts=texts)
    write_page(folder)
    page = open_page(address(folder, "view=text"))
    rows = table_of(saved(page, tmp_path, "CSV"))[1:]
    assert [row[1] for row in rows[:4]] == ["'=1+1", '"', "a,b", "'@x"]


def test_two_heads_beside_each_other(open_page, record):
    page = open_page(address(record, "view=map&layer=4&head=0&token=60"))
    page.get_by_role("button", name="a head …").click()
    page.locator('.picker [aria-label="Layer 2 · head 2"]').click()
    expect(page.locator("canvas[tabindex='0']")).to_have_count(2)
    expect(page.locator(".room h2").nth(1)).to_have_text("Layer 2 · head 2")
    expect(page.locator("aside h2").first).to_have_text("Layer 4 · head 0")
    page.get_by_role("button", name="difference").click()
    expect(page.locator(".room h2").nth(1)).to_have_text("Layer 4 · head 0 − Layer 2 · head 2")
    expect(page.locator(".legend").nth(1)).to_contain_text("difference")
    page.wait_for_url(re.compile("with=2.2"))
    page.get_by_role("button", name="nothing").click()
    expect(page.locator("canvas[tabindex='0']")).to_have_count(1)


def test_before_and_after(open_page, tmp_path):
    """The same head of two records, with the difference of a pair in words, and of a score in the matrix."""
    before, after = (write_record(tmp_path / name, 31, 2, 3, seed=seed) for name, seed in (("b", 1), ("a", 2)))
    (before / "tokens.json").write_text((after / "tokens.json").read_text())
    arrays = [load_file(folder / "arrays.safetensors") for folder in (after, before)]
    write_page(after, beside=before)

    def weight(found: dict) -> dict[int, float]:
        rows, start = found["1/edge_rows"][1], found["1/edge_starts"][1]
        span = slice(start + rows[29], start + rows[30])
        weights = found["1/edge_weights"][span].astype(float).round(3)
        return dict(zip(found["1/edge_keys"][span].tolist(), weights.tolist(), strict=True))

    now, then = map(weight, arrays)
    key = max(set(now) & set(then), key=lambda at: abs(now[at] - then[at]))
    page = open_page(address(after, f"view=map&layer=1&head=1&token=29&key={key}&with=1.1.before&pane=difference"))
    said = page.locator("#readout b")
    expect(said).to_have_count(3)
    more = now[key] - then[key]
    sign = "+" if more > 0 else "−"
    expect(said).to_have_text([f"{now[key]:.3f}", f"{then[key]:.3f}", f"{sign}{abs(more):.3f}"])
    page = open_page(address(after, "view=heads&layer=1&head=2&score=entropy&of=change"))
    change = arrays[0]["1/entropy"][2] - arrays[1]["1/entropy"][2]
    assert float(page.locator(".chosen b").inner_text()) == pytest.approx(change, abs=0.006)


@pytest.mark.parametrize("kept", [True, False])
def test_what_is_left_out_is_said(open_page, tmp_path, kept):
    folder = tmp_path / "record"
    write_exact_record(folder, 23)
    header = json.loads((folder / "record.json").read_text())
    header["model"]["layers"] = 5
    (folder / "record.json").write_text(json.dumps(header | {"kept": kept}))
    write_page(folder)
    said = open_page(address(folder)).locator(".left-out")
    expect(said).to_contain_text("Weights below 0.01 are left out")
    expect(said).to_contain_text("1 of 5 layers were looked at")
    assert ("regard serve" in said.inner_text()) is kept
    assert ("no weight can be recomputed" in said.inner_text()) is not kept


def test_the_pairs_that_make_up_a_score(open_page, serve, tmp_path):
    """Served, the page shows the products of the coordinates of the pinned pair."""
    folder = tmp_path / "record"
    weights = write_exact_record(folder, 29)
    tensors = load_file(folder / "tensors.safetensors")
    url = serve(folder)
    page = open_page(f"{url}#view=map&layer=0&head=1&token=20&key=7")
    products = tensors["0/q"][1, 20] * tensors["0/k"][1, 7] * 5**-0.5
    said = page.locator(".neurons b")
    expect(said).to_have_count(2)
    assert float(said.nth(0).inner_text()) == pytest.approx(products.sum(), abs=6e-4)
    weight = float(said.nth(1).inner_text().removeprefix("< "))
    assert weight == pytest.approx(weights[1, 20, 7], rel=0.06, abs=1e-3)
    expect(page.locator(".products rect")).to_have_count(5)
    expect(page.locator(".strips").nth(0).locator("rect")).to_have_count(10)  # q and k


def test_rows_that_were_sampled_make_up_the_thumbnails(open_page, tmp_path):
    """Of a cell half of whose rows are known, the mean over the known ones is drawn; each layer has rows of its own."""
    folder = write_record(tmp_path / "record", 8, 2, 1)
    arrays = load_file(folder / "arrays.safetensors")
    for layer in (0, 1):
        for name in ("edge_keys", "edge_weights"):
            arrays[f"{layer}/{name}"] = arrays[f"{layer}/{name}"][:0]
        arrays[f"{layer}/edge_rows"][:], arrays[f"{layer}/edge_starts"][:] = 0, 0
        arrays[f"{layer}/pooled"][:] = np.where(np.tri(8), 0.005, 0)
        arrays[f"{layer}/pooled"][:, 1 - layer :: 2] = np.nan
        arrays[f"{layer}/entropy_rows"][:, 1 - layer :: 2] = np.nan
    save_file(arrays, folder / "arrays.safetensors")
    header = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(header | {"rows": {"count": 4, "seed": 0}}))
    write_page(folder)
    page = open_page(address(folder))
    expect(page.locator(".thumbnail[data-drawn]")).to_have_count(2)
    drawn = "all => all.map(one => [...one.getContext('2d').getImageData(0, 0, 8, 8).data])"
    pictures = np.array(page.locator(".thumbnail").evaluate_all(drawn)).reshape(2, 8, 8, 4)
    for layer in (0, 1):
        known = (np.arange(8) % 2 == layer)[:, None]
        np.testing.assert_array_equal(pictures[layer, ..., 3] > 0, np.tri(8, dtype=bool) & known)


def test_two_prompts_beside_each_other(open_page, tmp_path):
    """Another text of as many tokens: its own words on its map, both pairs in words, and the difference."""
    texts = ["<s>", *(f" w{i}" for i in range(1, 23))]
    one = write_record(tmp_path / "one", 23, 2, 3, seed=1, texts=texts)
    other = write_record(tmp_path / "other", 23, 2, 3, seed=2, texts=[*texts[:7], " else", *texts[8:]])
    ids = json.loads((other / "tokens.json").read_text())
    ids["ids"][7] = 99
    (other / "tokens.json").write_text(json.dumps(ids))
    write_page(one, beside=other)
    page = open_page(address(one, "view=map&layer=1&head=0&token=22&key=7&with=1.0.before"))
    expect(page.get_by_role("note")).to_contain_text("of which 1 differ: ‘w7’ / ‘else’ at 7")
    expect(page.locator(".room h2").nth(1)).to_have_text("Layer 1 · head 0, other text")
    expect(page.locator("#readout")).to_contain_text("key ‘w7’ at 7")
    expect(page.locator("#readout")).to_contain_text("of ‘w22’ at 22 → ‘else’ at 7,")
    page.get_by_role("button", name="difference").click()
    expect(page.locator(".room h2").nth(1)).to_have_text("Layer 1 · head 0 − Layer 1 · head 0, other text")
    longer = write_record(tmp_path / "longer", 24, 2, 3)
    with pytest.raises(ValueError, match="beside: got a record of other length, want one of the same length"):
        write_page(one, beside=longer)


def test_a_link_opens_the_text_at_its_token_with_what_it_is_shaded_by(open_page, tmp_path):
    """The token is in the middle of the window, and what the text is shaded by stays above it."""
    folder = write_record(tmp_path / "record", 1501, 1, 2, texts=["<s>", *([" word\n"] * 1500)])
    write_page(folder)
    page = open_page(address(folder, "view=text&layer=0&head=0&token=700"))
    box = page.locator("#t700").bounding_box()
    assert 200 < box["y"] < 660
    expect(page.get_by_role("group", name="Shade by")).to_be_in_viewport()
    expect(page.locator(".readout")).to_be_in_viewport()
    page.locator("#t700").click()
    for _ in range(30):
        page.keyboard.press("ArrowLeft")
    controls = page.locator(".controls").bounding_box()
    assert page.locator("#t670").bounding_box()["y"] >= controls["y"] + controls["height"] - 1


def test_two_maps_are_saved_beside_each_other(open_page, record, tmp_path):
    page = open_page(address(record, "view=map&layer=3&head=1&with=4.0&pane=difference"))
    expect(page.locator(".room canvas")).to_have_count(2)
    root = ElementTree.parse(saved(page, tmp_path, "SVG")).getroot()
    tags = [node.tag.rsplit("}", 1)[-1] for node in root.iter()]
    assert tags.count("image") == 2
    told = " ".join(node.text or "" for node in root.iter())
    assert "Layer 3 · head 1: queries down" in told
    assert "Layer 3 · head 1 − Layer 4 · head 0: queries down" in told


def test_causes_of_many_texts_have_their_error(open_page, tmp_path):
    folder = write_record(tmp_path / "record", N, 1, 2)
    header = json.loads((folder / "record.json").read_text())
    table = [
        {"layer": 0, "head": 0, "roles": [], "loss_rise": -0.5, "loss_rise_error": 0.125, "entropy": 1.5},
        {"layer": 0, "head": 1, "roles": [], "loss_estimate": 0.25, "loss_estimate_error": None, "entropy": 2.5},
    ]
    (folder / "record.json").write_text(json.dumps(header | {"analyses": {"heads": table}}))
    write_page(folder)
    page = open_page(address(folder, "view=map&layer=0&head=0"))
    expect(page.locator(".side")).to_contain_text("without it the loss falls by 0.500 ± 0.125")
    page = open_page(address(folder, "view=map&layer=0&head=1"))
    expect(page.locator(".side")).to_contain_text("without it the loss rises by 0.250, estimated")
    page = open_page(address(folder, "view=heads&layer=0&head=1&score=texts_entropy"))
    expect(page.locator(".chosen b")).to_have_text("2.50")
    expect(page.locator(".heads .key")).to_contain_text("its entropy in nats")
