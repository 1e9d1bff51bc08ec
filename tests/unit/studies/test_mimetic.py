"""Mimetic initialisation: Mamba that begins as linear attention learns to copy sooner."""

from __future__ import annotations

import pytest
import torch

from regard.core.layout import Layout
from regard.networks import LM, Config
from regard.studies.mimetic_init import INGREDIENTS, mimetic

SYMBOLS, LENGTH, FIRST, STEPS = 32, 64, 3, 500
FULL = ("decay", "step", "products")


def model_with(ingredients: tuple[str, ...]) -> LM:
    """Two layers of Mamba-2 with the uniform convolutions of the authors' code, and the ingredients given."""
    model = LM(Config(SYMBOLS + 1, width=64, layers="mamba2*2", heads=2, head_dim=64, rotary_base=None), seed=0)
    torch.manual_seed(0)
    for block in model.layers:
        with torch.no_grad():
            block.attention.convolution.weight.uniform_(-0.5, 0.5)
        mimetic(block.attention, ingredients)
    return model


def test_the_layer_begins_as_linear_attention():
    """At first, weights are C·B alone to 7%: nothing has faded over 64 tokens, and a token's own product is largest."""
    layer = model_with(INGREDIENTS).layers[0].attention
    x = torch.randn(4, LENGTH, 64)
    q, k, _, signals = layer.inputs(x, Layout(causal=True))
    weights = layer.mechanism.weights(q, k, Layout(causal=True), **signals)
    torch.testing.assert_close(weights, (q @ k.mT).tril(), rtol=0.07, atol=1e-5)
    torch.testing.assert_close(q, k)
    torch.testing.assert_close(signals["step"], torch.ones_like(signals["step"]))


def test_each_ingredient_changes_its_part_alone():
    """Parameters that an ingredient does not name stay as they were; unknown ones and other layers are refused."""
    parts = {"decay": "log_rate", "step": "maps.step", "products": "projection.q", "convolution": "convolution.weight"}
    before = dict(model_with(()).layers[0].attention.state_dict())
    for ingredient in INGREDIENTS:
        after = model_with((ingredient,)).layers[0].attention.state_dict()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed
        assert all(parts[ingredient] in name for name in changed)
    layer = model_with(()).layers[0].attention
    with pytest.raises(ValueError, match="ingredients: got 'gate'"):
        mimetic(layer, ["gate"])
    with pytest.raises(ValueError, match="memory: got 0"):
        mimetic(layer, FULL, memory=0)
    with pytest.raises(ValueError, match="layer: got Softmax"):
        mimetic(LM(Config(8, width=16, layers="softmax")).layers[0].attention)
