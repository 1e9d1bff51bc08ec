"""The summary of a record and its arrays on checkable numbers, and on lengths that cells do not divide."""

import math

import pytest
import torch

import regard.records.record as making
from regard.records.record import ranked_heads, ranked_tokens, record
from unit.hosts.models import causal, eager, tokens


def test_heads_are_ranked_over_all_layers():
    """The best first, those without a score left out, no more than 32."""
    scores = {3: torch.tensor([0.5, math.nan, 0.75]), 5: torch.tensor([0.625])}
    assert ranked_heads(scores) == [[3, 2, 0.75], [5, 0, 0.625], [3, 0, 0.5]]
    many = ranked_heads({i: torch.arange(7.0) + 7 * i for i in range(6)})
    assert len(many) == 32
    assert many[0] == [5, 6, 41.0]
    assert many[-1] == [1, 3, 10.0]


def test_tokens_are_ranked():
    assert ranked_tokens(torch.tensor([0.25, 1.0, 0.5])) == [[1, 1.0], [2, 0.5], [0, 0.25]]
    assert [token for token, _ in ranked_tokens(torch.arange(29.0))] == list(range(28, 12, -1))


@pytest.mark.parametrize(("n", "cells"), [(53, 7), (53, 52), (31, 30), (19, 2)])
def test_cells_that_do_not_divide_the_text(monkeypatch, n, cells):
    """Cell (y, x) is the mean over the visible pairs of rows ⌊yn/c⌋ … and keys ⌊xn/c⌋ …, in every layer and head."""
    monkeypatch.setattr(making, "CELLS", cells)
    model, ids = causal("Llama"), tokens(1, n)
    seen = record(model, None, ids)
    assert seen.header["cells"] == cells
    edges = [y * n // cells for y in range(cells + 1)]
    visible = torch.ones(n, n).tril()
    for layer, dense in enumerate(eager(model, input_ids=ids).attentions):
        want = torch.zeros(dense.shape[1], cells, cells)
        for y in range(cells):
            for x in range(cells):
                part = (..., slice(edges[y], edges[y + 1]), slice(edges[x], edges[x + 1]))
                want[:, y, x] = dense[0][part].sum((1, 2)) / visible[part].sum().clamp(min=1)
        torch.testing.assert_close(seen.arrays[f"{layer}/pooled"].float(), want, atol=1e-3, rtol=1e-3)


def test_masses_are_shares_of_all_attention():
    """The shares of the tokens, averaged over all heads of all layers, as the dense weights have them."""
    model, ids = causal("Llama"), tokens(1, 16)
    seen = record(model, None, ids)
    every = torch.cat([dense[0] for dense in eager(model, input_ids=ids).attentions]).double()
    want = every.sum(1).mean(0) / 16
    found = dict(map(tuple, seen.header["summary"]["sink_positions"]))
    assert sum(found.values()) == pytest.approx(1)
    assert [found[i] for i in range(16)] == pytest.approx(want.tolist(), abs=1e-5)
    share = 1 - torch.arange(16.0) / 16
    weighed = (every.sum(1) / (16 * share)).mean(0) * 5 * share / (4 * share + 1)
    received = dict(map(tuple, seen.header["summary"]["received"]))
    assert [received[i] for i in range(16)] == pytest.approx(weighed.tolist(), abs=1e-5)
