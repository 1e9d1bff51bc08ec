"""Graph attention beside the layers of PyTorch Geometric, of equal weights; layers made at their first call."""

import json
from pathlib import Path

import pytest
import torch

import regard

VALUES = json.loads((Path(__file__).parents[2] / "reference" / "graphs.json").read_text())
NAMES = {
    "gat": {"lin.weight": "map.weight", "att_src": "source", "att_dst": "target", "lin_edge.weight": "edge_map.weight"}
    | {"att_edge": "edge", "bias": "bias"},
    "gatv2": {f"lin_{side}.{part}": f"{name}.{part}" for side, name in (("l", "source"), ("r", "target"))
              for part in ("weight", "bias")} | {"att": "out", "lin_edge.weight": "edge.weight", "bias": "bias"},
    "graph_transformer": {f"lin_{name}.{part}": f"{name}.{part}" for name in ("query", "key", "value")
                          for part in ("weight", "bias")} | {"lin_edge.weight": "edge.weight"},
}  # fmt: skip
MADE = {
    "gat": {"edge_channels": 3},
    "gat_mean": {"concat": False},
    "gatv2": {"edge_channels": 3},
    "gatv2_shared": {"concat": False, "shared": True},
    "graph_transformer": {"edge_channels": 3},
}


@pytest.mark.parametrize("case", MADE)
def test_layers_are_those_of_pytorch_geometric(case):
    """Outputs, the weights of the edges in their order, and the gradient of the nodes."""
    given = {name: torch.tensor(value) for name, value in VALUES[case].items() if name != "state"}
    kind = next(name for name in sorted(NAMES, key=len, reverse=True) if case.startswith(name))
    layer = regard.graph(kind, channels=4, size=3, heads=2, **MADE[case]).double()
    state = {
        NAMES[kind][name]: torch.tensor(value) for name, value in VALUES[case]["state"].items() if name in NAMES[kind]
    }
    shapes = dict(layer.named_parameters())
    layer.load_state_dict({name: value.reshape(shapes[name].shape) if name in shapes else value
                           for name, value in state.items()})  # fmt: skip
    x, features = given["x"].double().requires_grad_(), given.get("features")
    features = None if features is None else features.double()
    out = layer(x, given["edges"], features)
    torch.testing.assert_close(out, given["out"].double(), rtol=0, atol=2e-6)
    weights = layer.weights(x, given["edges"], features)
    torch.testing.assert_close(weights, given["weights"].double(), rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad((out * given["weighting"]).sum(), x)
    torch.testing.assert_close(gradient, given["dx"].double(), rtol=0, atol=5e-6)


def test_a_layer_takes_its_channels_from_the_first_call():
    """And is trained by an optimiser that was made before it."""
    layer = regard.graph("gatv2", heads=4)
    optimiser = torch.optim.SGD(layer.parameters(), 0.1)
    edges = torch.tensor([[0, 1, 2], [1, 1, 0]])
    out = layer(torch.ones(3, 5), edges)
    before = layer.source.weight.detach().clone()
    out.sum().backward()
    optimiser.step()
    assert out.shape == (3, 32)
    assert layer.weights(torch.ones(3, 5), edges).shape == (3, 4)
    assert not torch.equal(layer.source.weight, before)


def test_edges_twice_count_twice():
    """By hand: of three edges of equal scores, two from one node."""
    layer = regard.graph("gat", channels=2, size=2, bias=False)
    with torch.no_grad():
        layer.map.weight.copy_(torch.eye(2))
        layer.source.zero_()
        layer.target.zero_()
    out = layer(torch.tensor([[3.0, 0.0], [0.0, 6.0], [1.0, 1.0]]), torch.tensor([[0, 0, 1], [2, 2, 2]]))
    torch.testing.assert_close(out, torch.tensor([[0.0, 0.0], [0.0, 0.0], [2.0, 2.0]]))


def test_dropout_leaves_weights_out_and_raises_the_others():
    """Of ones along a ring of loops, each output is 0 or 1 / (1 − p), only in training."""
    layer = regard.graph("gatv2", channels=3, size=2, bias=False, dropout=0.25)
    loops = torch.arange(200).expand(2, -1)
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    plain = layer.eval()(x, loops)
    ratio = (layer.train()(x, loops) / plain).mean(1)
    assert torch.isclose(ratio, ratio.new_tensor(4 / 3)).logical_or(ratio == 0).all()
    assert 20 < int((ratio == 0).sum()) < 80
    torch.testing.assert_close(layer.weights(x, loops), torch.ones(200, 1))
    with pytest.raises(ValueError, match=r"dropout.*below 1"):
        regard.graph("gat", dropout=1.0)
