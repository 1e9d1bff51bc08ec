"""The page of a comparison in a real browser: charts, choices, a table that filters and sorts."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from regard.compare.cost import CostCell
from regard.compare.quality import QualityCell
from regard.web.results import write_results_page

pytestmark = pytest.mark.browser

ORIGIN = {"regard": "0", "torch": "2", "python": "3", "machine": "a machine", "gpu": "", "command": "x", "key": "k"}


def cost(mechanism: str, phase: str, length: int, seconds: float) -> dict:
    fields = CostCell(mechanism, phase, length, heads=2, kv_heads=2, head_dim=8).fields
    figures = {"seconds": seconds, "baseline_seconds": 1e-9 * length**2, "ratio": seconds / (1e-9 * length**2)}
    figures |= {"ratio_low": 0.9 * figures["ratio"], "ratio_high": 1.1 * figures["ratio"], "state_bytes": 512}
    return {"kind": "cost", **fields, **figures, "time_growth": "linear", "state_growth": "constant", **ORIGIN}


def quality(mechanism: str, seed: int, accuracy: float, seconds: float) -> dict:
    figures = {"accuracy": accuracy, "answers": 99, "seconds": seconds, "tokens": 10**6, "chance": 0.03}
    return {"kind": "quality", **QualityCell(mechanism, "recall", seed).fields, **figures, **ORIGIN}


@pytest.fixture
def page(tmp_path, open_page):
    rows = [cost("lightning", phase, n, 1e-6 * n) for phase in ("prefill", "train") for n in (64, 128, 256)]
    rows += [cost("<b>window</b>", "prefill", n, 2e-6 * n) | {"mechanism": "window(size=5)"} for n in (64, 128, 256)]
    rows += [quality("lightning", seed, 0.3 + seed / 10, 1.0) for seed in range(2)]
    rows += [quality("softmax", seed, 0.9, 3.0) for seed in range(2)]
    target = tmp_path / "results.html"
    write_results_page(rows, [4096], target)
    return open_page(target.as_uri())


def test_the_charts_show_every_mechanism_and_prediction(page):
    expect(page.locator(".chart h2").first).to_have_text("Time over length: one pass")
    chart = page.locator(".chart").first
    expect(chart.locator("circle.full")).to_have_count(9)  # two mechanisms and the baseline
    expect(chart.locator("circle.open")).to_have_count(2)
    expect(chart.locator(".key")).to_contain_text("lightning n^1.00 ± 0.00, claimed n^1")
    page.get_by_role("button", name="train · mechanism").click()
    expect(page.locator(".chart h2").first).to_have_text("Time over length: forward and backward")
    expect(chart.locator("circle.full")).to_have_count(6)


def test_quality_stands_over_cost_with_its_interval(page):
    chart = page.locator(".chart").nth(1)
    expect(chart.locator("circle.full")).to_have_count(2)
    expect(chart.locator(".whisker")).to_have_count(2)
    expect(chart.locator(".key")).to_contain_text("softmax none cheaper is as good")
    assert "90.0%" in chart.locator("circle.full title").nth(1).text_content()


def test_the_table_filters_and_sorts(page):
    body = page.locator("tbody tr")
    expect(body).to_have_count(12)  # nine measured, three predicted
    page.get_by_label("filter rows").fill("window")
    expect(body).to_have_count(4)
    page.get_by_label("filter rows").fill("prefill lightning")
    page.get_by_role("button", name=re.compile("^length")).click()
    page.get_by_role("button", name=re.compile("^length")).click()
    expect(body.locator("td:nth-child(3)")).to_have_text(["4,096", "256", "128", "64"])
    page.get_by_role("button", name="quality").click()
    expect(body).to_have_count(4)
    expect(page.locator("footer")).to_contain_text("a machine")
