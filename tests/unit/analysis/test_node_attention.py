"""Attention between nodes: paths by hand, heads that follow planted edges, and graphs whose nodes are exchanged."""

import pytest
import torch

from regard.analysis.base import DenseMaps
from regard.analysis.node_attention import (
    GraphText,
    NodeAttention,
    drawn_text,
    edge_correlation,
    hop_weights,
    hops,
    planted_edges,
)
from regard.claims.graph_texts import NODES, graph_text
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
