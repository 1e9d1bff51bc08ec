"""Mixtures of heads: gates of one are multi-head attention, fewer heads cost little, and all of them are used."""

import pytest
import torch
import torch.nn.functional as F

import regard
from regard.blocks.attention import Attention
from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.projections.base import Grouped
from regard.projections.mixture import MixtureOfHeads, head_activation, load_balance, to_mixture

CAUSAL, EXACT, WIDTH = Layout(causal=True), {"atol": 1e-12, "rtol": 0}, 24


def attention(projection):
    return Attention(regard.build("softmax"), projection).double()


def hidden(n=17, seed=0):
    return torch.randn(2, n, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("router", "shared"), [("norm", 2), ("softmax", 2), ("softmax", 0), ("norm", 0)])
def test_gates_of_one_are_multi_head_attention(router, shared):
    """MoH: converted from any grouped projection with all heads routed, it computes the same."""
    torch.manual_seed(0)
    plain = Grouped(Sizes(WIDTH, 4, 2, 5, 7)).double()
    mixed = to_mixture(plain, shared, router=router)
    torch.testing.assert_close(mixed.gates(hidden()), torch.ones(2, 4, 17, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(attention(mixed)(hidden(), CAUSAL), attention(plain)(hidden(), CAUSAL), **EXACT)


def test_gates_follow_the_equation():
    """MoH: y = Σ_h g_h o_h W^O_h with the gates of the equation, head by head and token by token."""
    torch.manual_seed(0)
    mixed, x = MixtureOfHeads(Sizes(WIDTH, 5, 5, 3, 7), shared=2, routed=2).double(), hidden()
    layer = attention(mixed)
    q, k, v = mixed(x, x)
    heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    score = {name: x @ matrix.weight.T for name, matrix in mixed.routers.items()}
    want = torch.zeros_like(x)
    for b in range(2):
        for i in range(17):
            alpha = score["balance"][b, i].softmax(0)
            common, p = score["share"][b, i].softmax(0), score["route"][b, i].softmax(0)
            best = sorted(range(3), key=lambda r: -p[r])[:2]
            gates = [2 * alpha[0] * 2 * common[h] for h in range(2)]
            gates += [2 * alpha[1] * 2 * p[r] / sum(p[s] for s in best) if r in best else 0.0 for r in range(3)]
            for h, gate in enumerate(gates):
                want[b, i] += gate * mixed.out.weight[:, 7 * h : 7 * h + 7] @ heads[b, h, i]
    torch.testing.assert_close(layer(x, CAUSAL), want, **EXACT)


def test_norm_keeps_the_longest_queries_and_relu_opens_as_many_as_it_likes():
    torch.manual_seed(0)
    x = hidden()
    mixed = to_mixture(Grouped(Sizes(WIDTH, 5, 5, 3, 7)).double(), shared=1, routed=2)
    lengths = mixed(x, x)[0].norm(dim=-1)[:, 1:]
    longest = lengths >= lengths.sort(1, descending=True).values[:, 1:2]
    assert torch.equal(mixed.gates(x)[:, 1:], longest.double())
    assert torch.equal(mixed.gates(x)[:, 0], torch.ones(2, 17, dtype=torch.float64))
    free = MixtureOfHeads(Sizes(WIDTH, 5, 5, 3, 7), shared=1, router="relu").double()
    alpha = 2 * free.routers["balance"](x).softmax(-1)
    want = torch.cat([alpha[..., :1], alpha[..., 1:] * free.routers["route"](x).relu()], -1).mT
    torch.testing.assert_close(free.gates(x), want, **EXACT)
    assert {0, 1, 2, 3, 4} >= set((free.gates(x)[:, 1:] > 0).sum(1).flatten().tolist()) > {2}


def test_losses_are_those_of_their_definitions():
    """Load balance is K when all are used alike and R when one takes all; closed heads cost what the formula says."""
    p, chosen = torch.full((3, 7, 4), 0.25), torch.zeros(3, 7, 4, dtype=torch.bool)
    chosen.view(-1, 4)[torch.arange(21), torch.arange(21) % 4] = True
    even = load_balance(p[:, :4].flatten(0, 1)[:12], chosen.flatten(0, 1)[:12])
    torch.testing.assert_close(even, torch.tensor(1.0))
    one = F.one_hot(torch.zeros(3, 7, dtype=torch.int64), 4)
    torch.testing.assert_close(load_balance(one.float(), one.bool()), torch.tensor(4.0))
    scores = torch.tensor([[1.0, -1.0], [1.0, -2.0], [-1.0, -3.0], [2.0, -4.0]], requires_grad=True)
    cost = head_activation(scores, 0.5)  # the first is closed to 1/4, the second to all
    torch.testing.assert_close(cost, (torch.tensor(2 * (1 - 0.5)).exp() - 1) / 2)
    cost.backward()
    assert scores.grad is not None
    assert (scores.grad[:, 1] < 0).all()
    assert not scores.grad[:, 0].any()


def test_activation_loss_opens_closed_heads():
    """PVChat: heads closed to every token open under the loss, to more than its share; some gates stay exactly zero."""
    torch.manual_seed(0)
    mixed = MixtureOfHeads(Sizes(WIDTH, 6, 6, 4, 4), shared=1, router="relu").double()
    x = hidden(64) + 1
    route = mixed.routers["route"].weight
    with torch.no_grad():
        route[:3] -= 0.5
    assert (mixed.gates(x)[:, 1:4] == 0).all()
    optimiser = torch.optim.Adam([route], 0.003)
    for _ in range(400):
        optimiser.zero_grad()
        head_activation(x @ route.T, target=0.5).backward()
        optimiser.step()
    gates = mixed.gates(x)
    assert (gates.mean((0, 2)) > 0).all()
    assert (gates == 0).any()


def test_bad_sizes_are_named():
    for change, argument in (
        ({"shared": 4}, "shared"),
        ({"shared": -1}, "shared"),
        ({"shared": 1, "routed": 4}, "routed"),
        ({"routed": 0}, "routed"),
        ({"routed": 2, "router": "relu"}, "routed"),
        ({"router": "top"}, "router"),
    ):
        with pytest.raises(ValueError, match=f"{argument}: got"):
            MixtureOfHeads(Sizes(WIDTH, 4, 4, 6, 6), **change)  # pyright: ignore
    with pytest.raises(ValueError, match="target: got 1"):
        head_activation(torch.zeros(3, 4), 1)
