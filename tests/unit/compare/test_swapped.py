"""The swap report: what changes when attention does, and what is refused before anything long."""

from __future__ import annotations

import math

import pytest
import torch

from regard.compare.swap_report import swap_report, text_loss
from regard.hosts import small

TEXT = "def area(width, height):\n    return width * height\n" * 3


@pytest.fixture(scope="module")
def tiny():
    return small.load("tiny")


def test_a_window_of_everything_loses_nothing_and_a_narrow_one_loses_the_recall(tiny):
    rows = {row.layers: row for row in swap_report(*tiny, "window(size=97)", TEXT, [97], samples=1)}
    assert list(rows) == ["none", "all", 0, 1, 2, 3]
    assert rows["none"].recall[97] == 1.0
    for row in rows.values():
        assert math.isclose(row.loss, rows["none"].loss, rel_tol=1e-4)
        assert row.recall == rows["none"].recall
    narrow = {row.layers: row for row in swap_report(*tiny, "window(size=3)", TEXT, [97], samples=1)}
    assert narrow["all"].recall[97] < 0.5
    assert narrow["all"].loss > narrow["none"].loss


def test_loss_does_not_depend_on_how_the_text_is_cut_where_it_fits(tiny):
    model, tokenizer = tiny
    ids = torch.tensor(tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        whole = torch.cat([torch.tensor([tokenizer.bos_token_id]), ids])[None]
        want = model(input_ids=whole, labels=whole).loss.item()
    assert math.isclose(text_loss(model, ids, 512, tokenizer.bos_token_id), want, rel_tol=1e-5)


@pytest.mark.parametrize(
    ("mechanism", "text", "lengths", "message"),
    [
        ("window(size=3)", TEXT, [], "lengths"),
        ("window(size=3)", "", [97], "text"),
        ("softmax(sink_heads=8)", TEXT, [97], "needs sink"),
    ],
)
def test_bad_input_is_named(tiny, mechanism, text, lengths, message):
    with pytest.raises(ValueError, match=message):
        list(swap_report(*tiny, mechanism, text, lengths))
