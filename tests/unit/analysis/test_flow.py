"""Rollout against the product of dense matrices, flow against another library's, and what is conserved."""

from __future__ import annotations

import networkx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.analysis.flow import GivenMaps, WatchedMaps, flow, max_flow, rollout
from regard.hosts import small

LAYERS, HEADS = 3, 2


def maps(n: int, seed: int = 0, causal: bool = True) -> torch.Tensor:
    scores = 2 * torch.randn(LAYERS, HEADS, n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if causal:
        scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
    return scores.softmax(3)


def product(dense: torch.Tensor) -> torch.Tensor:
    found = torch.eye(dense.shape[2], dtype=torch.float64)
    for layer in dense:
        found = (0.5 * layer.mean(0) + 0.5 * torch.eye(len(found))) @ found
    return found


@given(n=st.integers(1, 23), block=st.integers(1, 9), seed=st.integers(0, 99), causal=st.booleans())
@settings(max_examples=15, deadline=None)
def test_rollout_is_the_product(n, block, seed, causal):
    dense = maps(n, seed, causal)
    found = rollout(GivenMaps(dense), list(range(n)), block=block)
    torch.testing.assert_close(found, product(dense), atol=1e-12, rtol=0)
    torch.testing.assert_close(found.sum(1), torch.ones(n, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("causal", [True, False])
def test_flow_is_networkx_maximum_flow(causal):
    n = 5
    dense = maps(n, 1, causal)
    graph = networkx.DiGraph()
    for layer in range(LAYERS):
        mixed = 0.5 * dense[layer].mean(0) + 0.5 * torch.eye(n)
        for i in range(n):
            for j in range(n):
                if mixed[i, j] > 0:
                    graph.add_edge((layer + 1, i), (layer, j), capacity=float(mixed[i, j]))
    found = max_flow(GivenMaps(dense), [n - 1, 2])
    for row, token in enumerate((n - 1, 2)):
        for key in range(n):
            known = (0, key) in graph
            want = networkx.maximum_flow_value(graph, (LAYERS, token), (0, key)) if known else 0
            assert abs(float(found[row, key]) - want) < 1e-5
    assert float(found[0].sum()) > 1.01  # each input alone: more than the rows, which share their mass


def test_keys_left_out_take_nothing_from_others():
    dense = maps(11)
    found = flow(dense, [10, 0], without=[0]).values
    assert float(found[0, 0]) == 0
    assert float(found[1, 0]) == 1
    torch.testing.assert_close(found.sum(1), torch.ones(2, dtype=torch.float64))


def test_a_model_is_walked_without_its_whole_maps():
    model, tokenizer = small.load("tiny")
    ids = tokenizer("def add(a, b):\n    return a + b\n", return_tensors="pt").input_ids
    with torch.no_grad():
        model.set_attn_implementation("eager")
        dense = torch.stack(model(ids, output_attentions=True).attentions)[:, 0].double()
        model.set_attn_implementation("sdpa")
    found = flow(model, [-1, 4], ids=ids[0])
    assert found.tokens == (ids.shape[1] - 1, 4)
    torch.testing.assert_close(found.values, product(dense)[[-1, 4]], atol=1e-5, rtol=0)
    whole = flow(model, -1, ids=ids[0]).merge(flow(model, 4, ids=ids[0]))
    torch.testing.assert_close(whole.values, found.values, atol=1e-6, rtol=0)
    assert len(whole.table()) == 2 * ids.shape[1]
    bidirectional, words = small.load("minilm")
    text = words("the cat sat", return_tensors="pt").input_ids
    rows = flow(WatchedMaps(bidirectional, text[0]), range(text.shape[1])).values
    torch.testing.assert_close(rows.sum(1), torch.ones(text.shape[1], dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"to": 7}, r"to: got \[7\], want some of the 7 tokens"),
        ({"to": []}, r"to: got \[\]"),
        ({"way": "sum"}, "way: got 'sum', want rollout or maxflow"),
        ({"way": "maxflow", "without": [0]}, r"without: got \[0\], want none"),
    ],
)
def test_bad_input_is_named(how, said):
    with pytest.raises(ValueError, match=said):
        flow(maps(7), **how)


def test_long_texts_have_no_flow():
    with pytest.raises(ValueError, match="to: got a text of 513 tokens"):
        max_flow(GivenMaps(torch.eye(513)[None, None]), [0])
    with pytest.raises(ValueError, match="ids: got None"):
        flow(small.load("tiny")[0])
