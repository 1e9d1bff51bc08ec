"""Attention along edges with a gated skip, beside PyTorch Geometric; labels that are hidden in training."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from regard.mechanisms.structured.graph_transformer import GraphTransformer
from regard.networks.unified_messages import GatedSkip, UnifiedMessages

VALUES = json.loads((Path(__file__).parents[2] / "reference" / "graphs.json").read_text())
NAMES = {"lin_skip": "skip", "lin_beta": "gate"}
EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 6], [1, 2, 3, 4, 5, 6, 0, 3]])


@pytest.mark.parametrize(("case", "given"), [("gated", {"edge_channels": 3}), ("gated_mean", {"concat": False})])
def test_the_gated_skip_is_that_of_pytorch_geometric(case, given):
    """From equal weights to outputs and the gradient of the nodes; the norm and the kink are around it."""
    values = VALUES[f"graph_transformer_{case}"]
    state = {name: torch.tensor(value) for name, value in values["state"].items()}
    layer = GatedSkip(GraphTransformer(4, 3, 2, **given), norm=False)
    named = {}
    for name, value in state.items():
        part, rest = name.split(".")
        named[f"{NAMES[part]}.{rest}" if part in NAMES else f"attention.{part.removeprefix('lin_')}.{rest}"] = value
    layer.load_state_dict(named)
    layer.double()
    x, edges = torch.tensor(values["x"]).double().requires_grad_(), torch.tensor(values["edges"])
    features = torch.tensor(values["features"]).double() if "features" in values else None
    out = layer(x, edges, features)
    torch.testing.assert_close(out, torch.tensor(values["out"]).double(), rtol=0, atol=2e-6)
    (gradient,) = torch.autograd.grad((out * torch.tensor(values["weighting"])).sum(), x)
    torch.testing.assert_close(gradient, torch.tensor(values["dx"]).double(), rtol=0, atol=5e-6)
    whole = GatedSkip(layer.attention, norm=True).double()
    whole.load_state_dict(layer.state_dict(), strict=False)
    normed = F.relu(F.layer_norm(out, out.shape[-1:]))
    torch.testing.assert_close(whole(x, edges, features), normed)


def drawn():
    """A network of two layers on a small graph, with labels of which three are known."""
    model = UnifiedMessages(5, 3, size=4, seed=0).double()
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)).double()
    known = torch.tensor([True, False, True, True, False, False, False])
    return model, x, torch.tensor([0, 1, 2, 1, 0, 2, 1]), known


def test_known_labels_are_read_and_others_are_not():
    """As far as two layers see: no known node is within two edges before the last."""
    model, x, labels, known = drawn()
    out = model(x, EDGES, labels, known)
    assert out.shape == (7, 3)
    other = (labels + 1) % 3
    torch.testing.assert_close(model(x, EDGES, torch.where(known, labels, other), known), out, rtol=0, atol=0)
    changed = (model(x, EDGES, torch.where(known, other, labels), known) - out).abs().amax(1)
    assert (changed[:6] > 1e-4).all()
    assert changed[6] == 0


def test_the_loss_asks_for_hidden_labels_without_showing_them():
    """With all known labels hidden it is the cross-entropy of a network that is told none."""
    model, x, labels, known = drawn()
    loss = model.loss(x, EDGES, labels, known, 1.0, torch.Generator().manual_seed(0))
    blind = F.cross_entropy(model(x, EDGES, labels, torch.zeros_like(known))[known], labels[known])
    torch.testing.assert_close(loss, blind)
    few = model.loss(x, EDGES, labels, known, 1e-6, torch.Generator().manual_seed(0))
    hidden = [F.cross_entropy(model(x, EDGES, labels, known & (torch.arange(7) != i))[i], labels[i]) for i in (0, 2, 3)]
    assert min(abs(few - each) for each in hidden) < 1e-12
    with pytest.raises(ValueError, match="a known node"):
        model.loss(x, EDGES, labels, torch.zeros_like(known), 0.5, torch.Generator())
