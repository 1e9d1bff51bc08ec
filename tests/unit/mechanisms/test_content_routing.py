"""Clusters of tokens that attend to one another: by hand, and how centroids move."""

import pytest
import torch

from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.mechanisms.sparse.content_routing import ContentRouting, learning, normed
from regard.networks.lm import LM, Config
from regard.projections.selective import SharedKeys

CAUSAL = Layout(causal=True)


def test_clusters_by_hand():
    """Tokens 0 and 2 are of the first cluster, 1 and 2 of the second, 3 of none."""
    mechanism = ContentRouting(1, 2, 2, 2).double()
    mechanism.get_buffer("centroids").copy_(torch.tensor([[[1.0, -1], [-1.0, 1]]]))
    near = {0: [0, 2], 1: [1, 2]}
    k = torch.randn(1, 1, 4, 2, dtype=torch.float64)
    mechanism.members = lambda given: torch.tensor([[[near[0], near[1]]]])
    q, v = torch.randn(1, 1, 4, 2, dtype=torch.float64), torch.eye(4, dtype=torch.float64)[None, None]
    p, r = normed(q)[0, 0], normed(k)[0, 0]
    first = torch.stack([p[2] @ r[0], p[2] @ r[2]]).softmax(0)
    second = torch.stack([p[2] @ r[1], p[2] @ r[2]]).softmax(0)
    want = torch.zeros(4, 4, dtype=torch.float64)
    want[0, 0] = want[1, 1] = 1 / 1.01
    want[2] = torch.stack([first[0], second[0], first[1] + second[1], torch.tensor(0.0)]) / 2.01
    for got in (mechanism(q, k, v, CAUSAL)[0, 0], mechanism.weights(q, k, CAUSAL)[0, 0]):
        torch.testing.assert_close(got, want)


def test_centroids_move_to_the_means_of_their_keys_in_training_alone():
    torch.manual_seed(0)
    mechanism = ContentRouting(2, 4, 3, decay=0.75)
    q, k, v = torch.randn(3, 1, 2, 30, 4)
    before = mechanism.get_buffer("centroids").clone()
    mechanism(q, k, v, CAUSAL)
    assert torch.equal(mechanism.get_buffer("centroids"), before)
    k.requires_grad_()
    with learning(mechanism) as found:
        mechanism(q, k, v, CAUSAL)
        assert found == [mechanism]
        mechanism.loss.backward()
    assert k.grad.abs().sum() > 0
    assert mechanism.loss is None
    keys = normed(k.detach())[0]
    for head in range(2):
        near = (keys[head] @ before[head].T).argmax(1)
        for cluster in range(3):
            own = keys[head][near == cluster]
            want = 0.75 * before[head, cluster] + 0.25 * own.mean(0) if len(own) else before[head, cluster]
            torch.testing.assert_close(mechanism.get_buffer("centroids")[head, cluster], want)


def test_refusals():
    with pytest.raises(ValueError, match="clusters, window: got 0"):
        ContentRouting(1, 2, 0)


def test_relative_positions_are_of_ranks_inside_of_a_cluster():
    """Tokens 0, 2 and 5 are a cluster; 5 is two ranks from 0, which is cut to one; values get what positions add."""
    torch.manual_seed(0)
    mechanism = ContentRouting(1, 2, 1, 3, relative=1, value_dim=3).double()
    mechanism.members = lambda given: torch.tensor([[[[0, 2, 5]]]])
    q, k = torch.randn(2, 1, 1, 6, 2, dtype=torch.float64)
    v = torch.randn(1, 1, 6, 3, dtype=torch.float64)
    p, r = normed(q)[0, 0], normed(k)[0, 0]
    before, own, _ = mechanism.keys
    a = torch.stack([p[5] @ (r[0] + before), p[5] @ (r[2] + before), p[5] @ (r[5] + own)]).softmax(0)
    adds, middle, _ = mechanism.values
    want = (a[0] * (v[0, 0, 0] + adds) + a[1] * (v[0, 0, 2] + adds) + a[2] * (v[0, 0, 5] + middle)) / 1.01
    for got in (mechanism(q, k, v, CAUSAL)[0, 0], mechanism.define(q, k, v, CAUSAL)[0, 0]):
        torch.testing.assert_close(got[5], want)
        assert not got[[1, 3, 4]].any()


def test_queries_are_the_keys_of_a_shared_layer():
    layers = "routing_transformer(clusters=2, shared=True, relative=3)"
    model = LM(Config(29, 12, layers, heads=2), seed=0)
    projection = model.layers[0].attention.projection
    assert projection.parameter_count == sum(p.numel() for p in projection.parameters()) == 12 * 2 * (6 + 12)
    q, k, _, _ = model.layers[0].attention.inputs(torch.randn(1, 7, 12), CAUSAL)
    assert torch.equal(q, k)
    assert model(torch.arange(9)[None]).isfinite().all()
    with pytest.raises(ValueError, match="kv_heads"):
        SharedKeys(Sizes(12, 4, 2, 3, 3))
