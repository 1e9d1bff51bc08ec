"""The neuron view: queries and keys of some heads on the page, their products, and what is said of other heads."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import expect
from safetensors.numpy import load_file, save_file

from regard.web import vectors as room
from regard.web.page import write_page
from regard.web.payload import pack_one, page_threshold, read_header
from regard.web.vectors import encoded, leading, packed, vectors
from web.synthetic import write_exact_record

N = 29


@pytest.fixture
def record(tmp_path) -> Path:
    folder = tmp_path / "record"
    write_exact_record(folder, N)
    return folder


def ask(folder: Path, heads: list[list[int]]) -> None:
    path = folder / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"neurons": heads}))


def address(folder: Path, fields: str) -> str:
    write_page(folder)
    return f"{(folder / 'page.html').resolve().as_uri()}#{fields}"


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 7), st.integers(1, 5), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), st.integers()
)
def test_vectors_are_kept_to_thousandths_of_their_largest(n, d, dtype, seed):
    """Read back as the page does: the planes of the largest, then those of the codes, coordinate by coordinate."""
    draw = np.random.default_rng(abs(seed))
    wanted = torch.tensor(draw.normal(size=(n, d)) * 10.0 ** draw.integers(-2, 3, (n, 1))).to(dtype)
    wanted[0] = 0
    data = zlib.decompress(packed(wanted), -15)
    head, rest = np.frombuffer(data, np.uint8)[: 2 * n], np.frombuffer(data, np.uint8)[2 * n :]
    largest = (head[:n].astype("<u2") << 8 | head[n:]).view("<f2").astype(float)
    codes = (rest[: n * d].astype("<u2") << 8 | rest[n * d :]).view("<i2").reshape(d, n).T
    np.testing.assert_allclose(codes * largest[:, None] / 1000, wanted.double(), atol=6e-4 * largest.max(), rtol=0)
    assert (np.abs(codes * largest[:, None] / 1000 - wanted.double().numpy()) <= 6e-4 * largest[:, None] + 1e-9).all()


def test_heads_lead_by_their_roles_until_the_room_is_full(record, monkeypatch):
    header = read_header(record)
    header["summary"] |= {"retrieval": [[0, 2, 0.5]], "induction": [[0, 1, 0.6], [0, 2, 0.4]]}
    assert list(leading(header)) == [(0, 2), (0, 1), (0, 0)]
    heads, blobs = vectors(record, header)
    assert heads == [(0, 2), (0, 1), (0, 0)]
    one = encoded({name: blob for name, blob in blobs.items() if name in ("0/q/2", "0/k/2")})
    monkeypatch.setattr(room, "BYTES", one)
    assert vectors(record, header)[0] == [(0, 2)]
    monkeypatch.setattr(room, "BYTES", one - 1)
    assert vectors(record, header) == ([], {})
    assert vectors(record, header | {"neurons": [[0, 1]]})[0] == [(0, 1)]  # who asks is not held to it
    monkeypatch.setattr(room, "MOST", 10)
    with pytest.raises(ValueError, match="neurons: got 1 heads of 29 tokens, want fewer"):
        vectors(record, header | {"neurons": [[0, 1]]})
    assert vectors(record, header | {"kept": False}) == ([], {})


def test_edges_give_way_to_vectors(record, monkeypatch):
    from regard.web import payload

    header = read_header(record)
    with monkeypatch.context() as few:
        few.setattr(payload, "MAX_EDGES", 400)
        assert page_threshold(record, header, 300) > page_threshold(record, header)
        assert page_threshold(record, header, 10**7) == 1001  # none are left
    found, blobs = pack_one(record)
    assert sorted(found["neurons"]) == [[0, 0], [0, 1], [0, 2]]
    names = [name for name, _ in blobs]
    assert {"0/q/0", "0/k/2"} <= set(names)
    assert not any("/q/" in name or "/k/" in name for name, _ in pack_one(record, alone=False)[1])


@pytest.mark.browser
@pytest.mark.parametrize("kv_heads", [3, 1])
def test_a_page_alone_shows_what_a_score_is_made_of(open_page, record, kv_heads):
    """By the head's own key, or by the one that all heads share, which is there once."""
    tensors = load_file(record / "tensors.safetensors")
    tensors["0/k"] = tensors["0/k"][:kv_heads]
    save_file(tensors, record / "tensors.safetensors")
    header = json.loads((record / "record.json").read_text())
    header["layers"][0]["kv_heads"] = kv_heads
    (record / "record.json").write_text(json.dumps(header))
    assert sum("/k/" in name for name, _ in pack_one(record)[1]) == kv_heads
    page = open_page(address(record, "view=map&layer=0&head=1&token=20"))
    expect(page.locator(".neurons")).to_contain_text("Pin a pair")
    page = open_page(address(record, "view=map&layer=0&head=1&token=20&key=7"))
    scores = tensors["0/k"][kv_heads // 2] @ tensors["0/q"][1, 20] * 5**-0.5
    said = page.locator(".neurons b")
    assert float(said.nth(0).inner_text()) == pytest.approx(scores[7], abs=0.02)
    expect(page.locator(".products rect")).to_have_count(5)
    by_key = page.locator(".strips").nth(1).get_by_role("listitem")
    shown = [(int(row.locator(".at").inner_text()), float(row.locator(".value").inner_text())) for row in by_key.all()]
    assert shown[0][0] == 7
    assert 2 <= len(shown) <= 7
    best = [int(at) for at in np.argsort(-scores[:21]) if at != 7]
    assert kv_heads == 1 or [at for at, _ in shown[1:]] == best[: len(shown) - 1]  # by weights, which the record has
    assert all(score == pytest.approx(scores[at], abs=0.02) for at, score in shown)
    expect(page.locator(".left-out")).to_contain_text("The page has the queries and keys of all heads")


@pytest.mark.browser
def test_more_keys_stand_beside_each_other_until_all_do(open_page, record):
    tensors = load_file(record / "tensors.safetensors")
    page = open_page(address(record, "view=map&layer=0&head=1&token=20&key=7"))
    rows = page.locator(".strips").nth(1).get_by_role("listitem")
    expect(rows).not_to_have_count(0)
    kept, more = rows.count(), page.get_by_role("button", name="more keys")
    for all_now in (19, 21):  # the pinned key, and 18 others, and all that the query may see
        more.click()
        expect(rows).to_have_count(all_now)
    expect(more).to_have_count(0)
    scores = tensors["0/k"][1] @ tensors["0/q"][1, 20] * 5**-0.5
    shown = {int(row.locator(".at").inner_text()): float(row.locator(".value").inner_text()) for row in rows.all()}
    assert sorted(shown) == list(range(21))
    assert all(score == pytest.approx(scores[at], abs=0.02) for at, score in shown.items())
    page.get_by_role("button", name="keys", exact=True).click()
    said = rows.first.locator("rect title").first.text_content()
    assert float(said.rpartition(" ")[2].replace("−", "-")) == pytest.approx(tensors["0/k"][1, 7, 0], abs=0.02)
    page.get_by_role("button", name="fewer").click()
    expect(rows).to_have_count(kept)


@pytest.mark.browser
def test_a_head_without_vectors_says_where_they_are(open_page, record):
    ask(record, [[0, 2]])
    page = open_page(address(record, "view=map&layer=0&head=1&token=20&key=7"))
    said = page.locator(".neurons")
    expect(said).to_contain_text("regard look --neurons 0.1")
    expect(said).to_contain_text("regard serve")
    expect(page.locator(".left-out")).to_contain_text("Of 1 of 3 heads the page has queries and keys")
    said.get_by_role("button", name="L0 · H2").click()
    expect(page.locator("aside h2").first).to_have_text("Layer 0 · head 2")
    expect(page.locator(".products rect")).to_have_count(5)
    header = json.loads((record / "record.json").read_text())
    (record / "record.json").write_text(json.dumps(header | {"kept": False}))
    page = open_page(address(record, "view=map&layer=0&head=1&token=20&key=7"))
    expect(page.locator(".neurons")).to_contain_text(re.compile("were not kept; regard look --keep"))
    assert "regard serve" not in page.locator("body").inner_text()
