"""Alternating layers: what stands where, and what a group's heads share."""

import pytest
import torch

from regard.core.layout import Layout
from regard.mechanisms.sparse.global_nsa import GlobalNative
from regard.mechanisms.sparse.nsa import NativeSparse
from regard.mechanisms.sparse.window import SlidingWindow
from regard.networks.alternating_nsa import alternating_nsa
from regard.projections.group_latent import GroupLatent
from regard.projections.latent import Latent

CAUSAL = Layout(causal=True)


def test_layers_take_turns():
    model = alternating_nsa(29, 24, 4, 4, 2, 5, 3, 2, window=5, block=4, budget=3, seed=0)
    kinds = [type(block.attention.mechanism) for block in model.layers]
    assert kinds == [SlidingWindow, GlobalNative] * 2
    assert [type(block.attention.projection) for block in model.layers] == [Latent, GroupLatent] * 2
    assert [block.attention.projection.kv_heads for block in model.layers] == [1, 2, 1, 2]
    with pytest.raises(ValueError, match="layers: got 3"):
        alternating_nsa(29, layers=3)


def test_global_branches_are_those_of_three_with_the_third_shut():
    torch.manual_seed(0)
    q, (k, v) = torch.randn(2, 4, 37, 6), torch.randn(2, 2, 2, 37, 6)
    gates = {name: torch.rand(2, 4, 37) for name in ("compressed", "selected")}
    want = NativeSparse(4, 4, 5)(q, k, v, CAUSAL, **gates, near=torch.zeros(2, 4, 37))
    torch.testing.assert_close(GlobalNative(4, 4)(q, k, v, CAUSAL, **gates), want)


def test_keys_of_a_group_by_hand():
    torch.manual_seed(0)
    p = GroupLatent(7, 4, 2, 3, 2, 2, 2).double()
    x = torch.randn(1, 3, 7, dtype=torch.float64)
    _, k, v = p(x, x)
    down = x[0] @ p.down.weight.T
    for head in range(4):
        latent = down[:, 2 + 3 * (head // 2) :][:, :3]
        latent = latent * (latent.square().mean(1, keepdim=True) + 1e-6).rsqrt()
        torch.testing.assert_close(k[0, head], torch.cat([down[:, :2], latent @ p.key_up[head]], 1))
        torch.testing.assert_close(v[0, head], latent @ p.value_up[head])
    with pytest.raises(ValueError, match="groups: got 3"):
        GroupLatent(7, 4, 3, 3, 2, 2, 2)
