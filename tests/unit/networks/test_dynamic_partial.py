"""The search for a share of channels: groups by gates, what they cost, and that the search moves them."""

import pytest
import torch
import torch.nn.functional as F

import regard
from regard.networks.stages.steps.dynamic import DynamicPartial, search_loss, searched, straight
from regard.train.fit import Recipe, fit


def step(*gates):
    torch.manual_seed(0)
    made = DynamicPartial(2 ** len(gates)).double()
    with torch.no_grad():
        made.gates.copy_(torch.tensor(gates))
    return made


@pytest.mark.parametrize(("gates", "groups"), [((-1, -1, 1), 4), ((-1, 1, 1), 2), ((1, 1, 1), 1), ((-1, -1, -1), 8)])
def test_ordered_gates_are_a_convolution_of_groups(gates, groups):
    made, x = step(*gates), torch.randn(2, 8, 5, 7, dtype=torch.float64)
    each = 8 // groups
    blocks = [made.convolution.weight[n * each : (n + 1) * each, n * each : (n + 1) * each] for n in range(groups)]
    want = F.conv2d(x, torch.cat(blocks), padding=1, groups=groups)
    torch.testing.assert_close(made.train().mixed(x), want, rtol=0, atol=1e-12)
    used = made.eval().mixed(x)
    torch.testing.assert_close(used[:, :each], want[:, :each], rtol=0, atol=1e-12)
    assert torch.equal(used[:, each:], x[:, each:])
    assert made.divisor == groups
    assert made.connections().item() == made.mask().sum().item() == 64 / groups
    assert not made.disorder()


def test_disorder_by_hand():
    """The first gate of 0 after one of 1 is the third: it and all behind it count."""
    assert step(-0.5, 0.2, -0.3, 0.4).disorder().item() == pytest.approx(0.7)
    assert step(0.2, -0.3).disorder().item() == pytest.approx(0.3)


def test_gradients_pass_signs_between_minus_one_and_one():
    gates = torch.tensor([-2.0, -0.5, 0.5, 2.0], requires_grad=True)
    out = straight(gates)
    assert out.tolist() == [0, 0, 1, 1]
    out.sum().backward()
    assert gates.grad is not None
    assert gates.grad.tolist() == [0, 0.5, 0.5, 0]


def test_the_search_brings_connections_below_their_share():
    net = regard.vision(
        "stages(stem='patch(side=2)', widths=(8, 16), layers='dynamic_partial*2', norm='batch')", classes=3
    )
    for each in searched(net):
        torch.nn.init.constant_(each.gates, 0.05)
    images, wanted = torch.randn(6, 3, 8, 8), torch.arange(6) % 3

    def loss(model, _):
        return search_loss(model, F.cross_entropy(model(images), wanted), 0.25, 0.5)

    def used():
        return sum(each.connections().item() for each in searched(net)) / sum(
            4 ** len(each.gates) for each in searched(net)
        )

    assert used() == 1
    fit(net, loss, Recipe(40, 2e-2, decay=0.0))
    assert used() <= 0.5
    with pytest.raises(ValueError, match="network, share"):
        search_loss(torch.nn.Linear(2, 2), torch.ones(()))
    with pytest.raises(ValueError, match="width"):
        DynamicPartial(12)
