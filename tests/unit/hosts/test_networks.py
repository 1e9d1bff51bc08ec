"""Watching networks of images: every mechanism's rows, gates and modulators, nothing left behind."""

from typing import cast

import pytest
import torch
from torch import nn

import regard
from regard.featuremap.gate import Gate
from regard.hosts.mechanism_call import ImplicitAttention
from regard.hosts.network_session import evenness
from regard.probes import Entropy, Received

TEXT = (
    """stages(widths=(8, 12), heads=2, layers=('cpe + windows(side=3) + channels', 'focal + summary(ratio=2) + mlp'))"""
)


def test_every_mechanism_of_a_network_is_seen_and_nothing_changes():
    net, images = regard.vision(TEXT, classes=5).eval(), torch.randn(2, 3, 33, 41)
    before, hooks = net(images), [len(module._forward_pre_hooks) for module in net.modules()]
    with regard.watch(net, probes=[Entropy(), Received()], keep=1e9) as seen:
        assert torch.equal(net(images), before)
    assert [layer.mechanism for layer in seen.layers] == ["Windows", "Softmax", "Softmax"]
    assert [layer.cross for layer in seen.layers] == [False, False, False]
    shown = net.intermediates(images)
    for layer, name in zip(seen.layers, ("0.blocks.0.1", "0.blocks.0.2", "1.blocks.0.1"), strict=True):
        (weights,) = (value for key, value in shown.items() if key.startswith(f"stages.{name}."))
        rows, source = torch.arange(weights.shape[2]), cast(ImplicitAttention, seen.maps[layer.index])
        torch.testing.assert_close(source.weights(rows), weights.float(), atol=1e-6, rtol=1e-5)
        want = torch.special.entr(weights).sum(-1).mean((0, 2)).double()
        torch.testing.assert_close(seen["entropy"][layer.index].value, want, atol=1e-5, rtol=1e-5)
    assert [len(module._forward_pre_hooks) for module in net.modules()] == hooks


def test_what_is_no_attention_is_kept_as_factors():
    net, images = regard.vision(TEXT, classes=5).eval(), torch.randn(2, 3, 33, 41)
    with regard.watch(net) as seen:
        net(images)
        net(images[:1])
    (name,) = seen.gates
    record = seen.gates[name]
    assert (name, record.calls, record.images) == ("stages.1.blocks.0.0.step", 2, 3)
    shown = net.intermediates(images[:1])
    for part, factor in record.latest.items():
        torch.testing.assert_close(factor, shown[f"{name}.{part}"])


@pytest.mark.parametrize("text", ["se | spatial", "triplet", "eca"])
def test_gates_in_any_module(text):
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), regard.gate(text)(8)).eval(), torch.randn(2, 3, 9, 7)
    with regard.watch(model) as seen:
        model(x)
    gate, record = cast(Gate, model[1]), seen.gates["1"]
    factors = gate.factors(model[0](x))
    assert factors.keys() == record.latest.keys()
    mean = torch.stack([factor.mean() for factor in factors.values()]).mean()
    assert record.mean == pytest.approx(mean.item(), abs=1e-6)
    assert 0 < record.evenness <= 1
    assert record.dead_share == 0


def test_evenness_and_dead_factors_by_hand():
    torch.testing.assert_close(
        evenness(torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]])), torch.tensor([1.0, 0, 0.5])
    )
    assert evenness(torch.ones(2, 1)).tolist() == [1, 1]


def test_a_module_without_anything_of_ours_is_refused():
    with pytest.raises(TypeError, match="Transformers"), regard.watch(nn.Linear(2, 3)):
        pass
