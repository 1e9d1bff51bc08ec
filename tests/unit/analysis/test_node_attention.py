"""Attention between nodes: paths by hand, heads that follow planted edges, and graphs whose nodes are exchanged."""

import pytest
import torch

from regard.analysis.base import DenseMaps
from regard.analysis.node_attention import (
    GraphText,
    HopWindow,
    NodeAttention,
    drawn_text,
    edge_correlation,
    hop_weights,
    hop_window,
    hops,
    planted_edges,
)
from regard.analysis.planted import planted_model
from regard.claims.graph_texts import NODES, graph_text
from regard.hosts.attach import attach
from regard.hosts.small import path
from regard.laws import examine, examples_of


@pytest.mark.parametrize("law", ["known", "planted", "null", "heads", "merge", "table"])
def test_the_laws_of_analyses_hold(law):
    (sample,) = examples_of(NodeAttention)
    finding = examine(sample, law, kind="analysis")
    assert finding.verdict == "holds", finding.detail


def test_exchanged_nodes_are_not_followed():
    texts = [drawn_text(seed) for seed in range(3)]
    subject = DenseMaps(lambda ids: planted_edges(ids, texts))
    own = NodeAttention().run(subject, texts).of((0, 1))
    other = NodeAttention().run(subject, [text.shuffled(5) for text in texts]).of((0, 1))
    assert own > 0.8
    assert abs(other) < 0.4


def test_hops_of_a_graph_in_two_parts():
    far = hops(5, [(0, 1), (1, 2), (2, 0), (3, 4)])
    assert far.tolist() == [
        [0, 1, 1, -1, -1],
        [1, 0, 1, -1, -1],
        [1, 1, 0, -1, -1],
        [-1] * 3 + [0, 1],
        [-1] * 3 + [1, 0],
    ]
    ring = hops(7, [(i, (i + 1) % 7) for i in range(7)])
    assert ring[0].tolist() == [0, 1, 2, 3, 3, 2, 1]


def test_distances_that_there_are_none_of_have_no_weight():
    maps = torch.full((2, 3, 3), 1 / 3)
    found = hop_weights(maps, [(0, 1), (1, 2)], 3)
    torch.testing.assert_close(found[:, :2], torch.full((2, 2), 1 / 3).double())
    assert bool(found[:, 2].isnan().all())


def test_nodes_of_a_text_are_its_names():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path("tiny"), local_files_only=True)
    text = graph_text(tokenizer, 3)
    told = [tokenizer.decode(text.ids[list(slots)]).strip() for slots in text.nodes]
    assert len(set(told)) == NODES
    whole = tokenizer.decode(text.ids)
    a, b = text.edges[0]
    assert f"{told[a]} knows {told[b]}." in whole


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="edges"):
        GraphText(torch.arange(2), ((0,), (1,)), ((0, 2),))
    with pytest.raises(ValueError, match="edges"):
        edge_correlation(torch.full((1, 2, 2), 0.5), [(0, 1)])
    with pytest.raises(ValueError, match="no texts"):
        NodeAttention().run(DenseMaps(lambda ids: []), [])


def test_windows_are_those_of_hops_by_hand():
    text = GraphText(torch.arange(6), ((0, 3), (1,), (2, 4)), ((0, 1), (1, 2)))
    one = torch.ones(6, 6).bool()
    for a, b in ((0, 2), (0, 4), (3, 2), (3, 4)):  # the ends of the path are two hops apart; token 5 is of no node
        one[a, b] = one[b, a] = False
    assert torch.equal(hop_window(text, 1), one)
    assert bool(hop_window(text, 2).all())
    alone = hop_window(text, 0)
    assert alone[0].tolist() == [True, False, False, True, False, True]
    with pytest.raises(ValueError, match="most"):
        hop_window(text, -1)


def test_a_window_hides_in_a_model_what_it_does_not_show():
    model, ids = planted_model([(0, 0), (0, 1), (1, 2)]), torch.arange(6)
    text = GraphText(ids, ((0, 3), (1,), (2, 4)), ((0, 1), (1, 2)))
    changed = torch.stack([ids, ids])
    changed[1, 2] = 20
    for most, seen in ((0, False), (1, False), (2, True)):  # token 2 is of the node at the path's other end
        with torch.no_grad(), attach(model, edits=[HopWindow(hop_window(text, most))]):
            at = model(changed).logits
        assert (float((at[0, 3] - at[1, 3]).abs().max()) > 0) is seen, most
        assert float((at[0, 4] - at[1, 4]).abs().max()) > 0
    with (
        pytest.raises(ValueError, match="windows"),
        torch.no_grad(),
        attach(model, edits=[HopWindow(torch.ones(5, 5))]),
    ):
        model(changed)
    with pytest.raises(ValueError, match="windows"):
        HopWindow(torch.ones(5, 4))
