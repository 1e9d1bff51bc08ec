"""What else the page shows of a head than A between tokens: weighted values, words, what was expected next."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect
from safetensors.numpy import load_file, save_file

from regard.records.kept import mark_kept
from regard.records.record import record as record_of
from regard.web.page import page_html, write_page
from unit.hosts.models import causal, tokens
from unit.records.test_two_texts import marian
from web.links import texts_of, unpacked_map
from web.saving import saved, table_of
from web.synthetic import tell_more, write_exact_record, write_record

pytestmark = pytest.mark.browser

N = 31
WORDS = ["<s>", "un", "believ", "able", " ships", ",", " sail", "ed", "\n", *(f" w{i}" for i in range(N - 9))]
STARTS = [0, 1, 4, 5, 6, 8, *range(9, N)]
"""The first tokens of the words that these make up."""


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> tuple[Path, np.ndarray, dict[str, np.ndarray]]:
    """A record with its page, its weights ``(heads, n, n)`` and what it has beside them."""
    folder = tmp_path_factory.mktemp("measures") / "record"
    weights = write_exact_record(folder, N)
    tokens = folder / "tokens.json"
    tokens.write_text(tokens.read_text().replace(tokens.read_text().split('"texts": ')[1].split("]")[0], listed()))
    more = tell_more(folder)
    write_page(folder)
    return folder, np.where(weights >= 0.01, weights.astype(np.float16), 0).astype(float).round(3), more


def listed() -> str:
    """The texts as they stand in tokens.json, without the closing bracket."""
    return "[" + ", ".join('"' + text.replace("\n", "\\n") + '"' for text in WORDS)


def address(folder: Path, fields: str) -> str:
    return (folder / "page.html").resolve().as_uri() + f"#{fields}"


def of_words(weights: np.ndarray) -> np.ndarray:
    """The sum over keys, the mean over queries."""
    ends = [*STARTS[1:], N]
    sums = np.add.reduceat(np.add.reduceat(weights, STARTS, 0), STARTS, 1)
    return sums / np.subtract(ends, STARTS)[:, None]


def test_weighted_values_of_a_pair_and_of_a_row(open_page, record):
    folder, weights, more = record
    row, head = 20, 1
    values = weights[head, row] * more["0/value_norms"][head]
    key = int(values.argmax())
    page = open_page(address(folder, f"view=map&layer=0&head={head}&token={row}&key={key}&measure=value"))
    expect(page.locator("#readout")).to_contain_text("‖A v‖")
    assert float(page.locator("#readout b").inner_text()) == pytest.approx(values[key], abs=2e-3, rel=2e-3)
    shown = [float(text) for text in texts_of(page.locator(".token .value"))]
    np.testing.assert_allclose(shown, np.sort(values)[::-1][: len(shown)], atol=2e-3, rtol=2e-3)
    longest = more["0/value_norms"][head].max()
    assert float(page.locator(".legend .ticks span").last.inner_text()) == pytest.approx(longest, rel=0.06)
    page.get_by_role("button", name="weights A").click()
    expect(page.locator("#readout b")).to_have_text(f"{weights[head, row, key]:.3f}")


def test_a_layer_without_values_offers_none(open_page, tmp_path):
    folder = write_record(tmp_path / "record", N, 1, 2)
    write_page(folder)
    page = open_page(address(folder, "view=map&measure=value"))
    expect(page.get_by_role("button", name="values ‖A v‖")).to_be_disabled()
    expect(page.get_by_role("button", name="weights A")).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".left-out")).to_contain_text("how long values are was not kept")
    expect(page.locator(".next")).to_have_count(0)
    expect(page.get_by_role("button", name="surprise")).to_have_count(0)


def test_words_sum_over_keys_and_average_over_queries(open_page, record, tmp_path):
    folder, weights, _ = record
    merged = of_words(weights[2])
    page = open_page(address(folder, "view=map&layer=0&head=2&token=7&grain=words"))
    expect(page.locator(".token .piece").first).to_have_text("sailed")
    shown = [float(text) for text in texts_of(page.locator(".token .value"))]
    want = np.sort(merged[4])[::-1]
    np.testing.assert_allclose(shown, want[want > 0][: len(shown)], atol=1e-3)
    unpacked_map(page)
    _, *rows = table_of(saved(page, tmp_path, "CSV"))
    found = {(int(row[0]), int(row[2])): float(row[4]) for row in rows}
    places = [(i, j) for i in range(len(STARTS)) for j in range(len(STARTS)) if merged[i, j] > 0]
    assert set(found) == {(STARTS[i], STARTS[j]) for i, j in places}
    for i, j in places:
        assert found[STARTS[i], STARTS[j]] == pytest.approx(merged[i, j], abs=1e-4)
    page = open_page(address(folder, "view=text&layer=0&head=2&token=2&grain=words"))
    expect(page.locator(".tapestry [aria-selected]")).to_have_count(3)
    expect(page.locator(".readout")).to_contain_text("‘unbelievable’ at 1")
    expect(page.locator(".readout")).to_contain_text("sum over keys, mean over queries")


def test_what_was_expected_next_is_listed(open_page, record):
    folder, _, more = record
    page = open_page(address(folder, "view=text&token=17"))
    listed = page.locator(".next li")
    expect(listed).to_have_count(3)
    expect(listed.locator(".piece")).to_have_text([f"<b>{i}" for i in more["next/ids"][17]])
    shown = [float(text) for text in listed.locator(".value").all_inner_texts()]
    np.testing.assert_allclose(shown, more["next/probabilities"][17], atol=1e-3)
    came = int(np.flatnonzero((more["next/ids"][:-1] == np.arange(1, N)[:, None]).any(1))[0])
    page = open_page(address(folder, f"view=text&token={came}"))
    expect(page.locator(".next .came .piece")).to_have_text(f"<b>{came + 1}")
    missed = int(np.flatnonzero((more["next/ids"][:-1] != np.arange(1, N)[:, None]).all(1))[0])
    page = open_page(address(folder, f"view=text&token={missed}"))
    said = page.locator(".next p").inner_text().rsplit(" ", 1)[1].rstrip(".")
    assert float(said) == pytest.approx(np.exp(more["next/log_probability"][missed + 1]), rel=0.06, abs=1e-3)


@pytest.mark.parametrize("width", [1280, 390])
def test_small_figures_are_not_cut(open_page, tmp_path, width):
    write_exact_record(tmp_path / "small", N)
    tell_more(tmp_path / "small")
    arrays = load_file(tmp_path / "small/arrays.safetensors")
    arrays["next/probabilities"][:] = [0.99, 0.00012, 3e-6]
    save_file(arrays, tmp_path / "small/arrays.safetensors")
    write_page(tmp_path / "small")
    page = open_page(address(tmp_path / "small", "view=text&token=17"), viewport={"width": width, "height": 844})
    expect(page.locator(".next .value")).to_have_text(["0.990", "0.00012", "0.0000030"])
    expect(page.locator(".token .bars .value")).not_to_have_count(0)
    for figure in page.locator(".bars .value").all():
        text, wide, room = figure.evaluate("e => [e.textContent, e.scrollWidth, e.clientWidth]")
        assert wide <= room, text
        assert figure.evaluate("e => e.getBoundingClientRect().right <= e.closest('li').getBoundingClientRect().right")
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_surprise_shades_the_text(open_page, record):
    folder, _, more = record
    page = open_page(address(folder, "view=text&mode=surprise"))
    expect(page.locator(".readout")).to_contain_text("−ln of the probability")
    expect(page.locator(".tapestry > span[style*=background]")).not_to_have_count(0)
    paints = page.locator(".tapestry > span").evaluate_all("all => all.map(span => span.style.backgroundColor)")
    assert paints[0] == ""
    order = np.argsort(more["next/log_probability"][1:]) + 1
    assert paints[order[0]] != paints[order[-1]]
    worst = -more["next/log_probability"][1:].min()
    assert float(page.locator(".legend .ticks span").last.inner_text()) == pytest.approx(worst, rel=2e-3)


def test_served_weighted_values_are_exact(open_page, serve, record):
    folder, _, more = record
    whole = write_exact_record(folder.parent / "again", N)  # the same weights, not rounded
    faint = int(np.argmin(whole[1, 30, :30]))
    url = serve(folder)
    page = open_page(f"{url}#view=map&layer=0&head=1&token=30&key={faint}&measure=value")
    expect(page.locator("#readout b")).not_to_contain_text("below")
    shown = page.locator("#readout b").inner_text().removeprefix("< ")
    want = whole[1, 30, faint] * more["0/value_norms"][1, faint]
    assert float(shown) == pytest.approx(want, rel=0.06, abs=1e-6)


@pytest.fixture(scope="module")
def two_texts(tmp_path_factory):
    """The page of an encoder–decoder, and its record."""
    source, target = (tokens(1, size, seed=size)[0].tolist() for size in (23, 10))
    seen = record_of(marian(), None, source, target, generate=2)
    return seen.save(tmp_path_factory.mktemp("two") / "record", extra={"page.html": page_html}), seen


def test_two_texts_and_what_one_reads_of_the_other(open_page, two_texts):
    folder, seen = two_texts
    page = open_page(address(folder, "view=heads"))
    expect(page.locator(".matrix .stack")).to_have_text(["encoder", "decoder, itself", "decoder → encoder"])
    cross = next(layer["index"] for layer in seen.layers if layer["reads"] == ["target", "source"])
    page = open_page(address(folder, f"view=text&layer={cross}&head=1&token=4"))
    expect(page.locator(".which")).to_have_text(["what the decoder wrote", "what the encoder read"])
    weights = seen.region(cross, 1, slice(4, 5), slice(None))[0]
    shown = [float(text) for text in texts_of(page.locator(".token .value"))]
    np.testing.assert_allclose(shown, weights.sort(descending=True).values[: len(shown)], atol=2e-3)
    page.locator("#s9").click()
    page.wait_for_url(re.compile("key=9"))
    page.get_by_role("button", name="attended by", exact=True).click()
    expect(page.locator(".which")).to_have_text(["what the encoder read", "what the decoder wrote"])
    column = seen.region(cross, 1, slice(None), slice(9, 10))[:, 0]
    best = int(column.argmax())
    expect(page.locator(".token .at").first).to_have_text(str(best))
    expect(page.locator(".token .value").first).to_have_text(f"{column[best]:.3f}")


def test_the_map_between_two_texts_is_exact_where_it_is_served(open_page, serve, two_texts):
    folder, seen = two_texts
    cross = max(layer["index"] for layer in seen.layers)
    weight = float(seen.region(cross, 2, slice(7, 8), slice(21, 22)))
    url = serve(folder)
    page = open_page(f"{url}#view=map&layer={cross}&head=2&token=7&key=21")
    expect(page.locator("#readout b")).to_have_text(f"{weight:.3f}" if weight >= 0.01 else re.compile("0.00"))
    said = page.locator("#readout").inner_text()
    assert f"‘⟨{seen.tokens['source']['ids'][21]}⟩’ at 21" in said
    assert f"‘⟨{seen.tokens['ids'][7]}⟩’ at 7" in said


def test_what_a_policy_keeps_is_shaded_and_what_it_forgets_struck_out(open_page, tmp_path):
    model = causal("Llama")
    seen = mark_kept(record_of(model, None, tokens(1, 43)), model, "snapkv(window=3)", 11)
    folder = seen.save(tmp_path / "record", extra={"page.html": page_html})
    page = open_page(address(folder, "view=text&layer=1&head=4&token=41&mode=kept"))
    expect(page.locator(".readout")).to_contain_text("what snapkv(window=3), budget 11, keeps of the prompt")
    shaded = "all => all.flatMap((span, at) => (span.style.backgroundColor ? [at] : []))"
    kept = seen.arrays["1/kept"]
    assert page.locator(".tapestry > span").evaluate_all(shaded) == kept[2].nonzero()[:, 0].tolist()
    page.get_by_role("button", name="its layer").click()
    expect(page.locator(".readout")).to_contain_text("the heads of layer 1")
    assert page.locator(".tapestry > span").evaluate_all(shaded) == kept.any(0).nonzero()[:, 0].tolist()
    keys = [int(text) for text in texts_of(page.locator(".token .at"))]
    gone = page.locator(".token .piece").evaluate_all("all => all.map(one => one.classList.contains('gone'))")[1:]
    assert gone == [not kept[2, key] for key in keys]
    assert {True, False} == set(gone)
    page = open_page(address(folder, "view=heads&layer=1&head=4&score=kept_mass"))
    assert float(page.locator(".chosen b").inner_text()) == pytest.approx(
        float(seen.arrays["1/kept_mass"][4]), abs=6e-3
    )
