"""Scored attention as published code computes it, written down by tests/reference/scored.py; and its limits."""

import json
from pathlib import Path

import pytest
import torch

from regard import Layout, build
from regard.blocks.attention import Attention
from regard.core.sizes import Sizes
from regard.networks import LM, Config
from regard.projections.base import Grouped
from regard.projections.rotary import Rotary

VALUES = json.loads((Path(__file__).parents[1] / "reference" / "scored.json").read_text())
CAUSAL = Layout(causal=True)


def tensors(name):
    return {field: torch.tensor(value, dtype=torch.float64) for field, value in VALUES[name].items()}


def draw(heads, n, *sizes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, heads, n, size, generator=generator, dtype=torch.float64) for size in sizes]


@pytest.mark.parametrize("name", ["forgetting", "composed"])
def test_forget_gates_are_those_of_flash_linear_attention(name):
    """Output, weights and gradients, those of the gates included; as a mechanism and as a part."""
    given = tensors("forgetting")
    mechanism = build("composed", bias="forget", heads=4, head_dim=5) if name == "composed" else build(name)
    leaves = {field: given[field].requires_grad_() for field in ("q", "k", "v", "log_forget")}
    q, k, v, gates = leaves.values()
    out = mechanism(q, k, v, CAUSAL, log_forget=gates)
    dense = mechanism.weights(q, k, CAUSAL, log_forget=gates) @ v.repeat_interleave(2, 1)
    for got in (out, dense):
        torch.testing.assert_close(got, given["out"], rtol=0, atol=1e-6)
        found = torch.autograd.grad((got * given["weight"]).sum(), list(leaves.values()))
        for field, gradient in zip(leaves, found, strict=True):
            torch.testing.assert_close(gradient, given[f"d{field}"], rtol=0, atol=2e-6)


def test_open_gates_are_softmax_attention_and_a_shut_one_hides_its_past():
    mechanism, softmax = build("forgetting"), build("softmax")
    q, k, v = draw(3, 300, 5, 5, 7)
    gates = torch.zeros(2, 3, 300, dtype=torch.float64)
    torch.testing.assert_close(mechanism(q, k, v, CAUSAL, log_forget=gates), softmax(q, k, v, CAUSAL))
    gates[:, :, 190] = -torch.inf
    late = mechanism(q, k, v, CAUSAL, log_forget=gates)[:, :, 190:]
    torch.testing.assert_close(late, softmax(*(x[:, :, 190:] for x in (q, k, v)), CAUSAL), atol=1e-12, rtol=0)


def test_weak_gates_keep_their_weight_after_many_strong_ones():
    """In single precision, far behind where running sums would have lost them."""
    q, k, v = (x.float() for x in draw(1, 3000, 4, 4, 3))
    gates = torch.full((2, 1, 3000), -0.01)
    gates[:, :, :2900] = -1500.0
    got = build("forgetting")(q, k, v, CAUSAL, log_forget=gates)
    alone = build("forgetting")(*(x[:, :, 2899:] for x in (q, k, v)), CAUSAL, log_forget=gates[:, :, 2899:])
    torch.testing.assert_close(got[:, :, 2899:], alone, atol=1e-5, rtol=0)


def pairs(weight, heads):
    """Rows of 2 h heads, one half after the other, as h heads of both."""
    return weight.unflatten(0, (2, heads, -1)).transpose(0, 1).flatten(0, 2)


def test_a_layer_of_differential_attention_is_that_of_diffllama():
    given = tensors("differential")
    layer = Attention(
        build("differential", head_dim=8, layer_index=3), Grouped(Sizes(24, 4, 2, 8, 8)), Rotary(4)
    ).double()
    vectors = torch.stack([given[f"lambda_{name}"] for name in ("q1", "k1", "q2", "k2")])
    p = "projection."
    state = {
        "mechanism.vectors": vectors,
        "output.norm.weight": torch.ones(8),
        f"{p}out.weight": given["o_proj.weight"],
    }
    state |= {f"{p}{name}.weight": pairs(given[f"{name}_proj.weight"], 4 if name == "q" else 2) for name in "qkv"}
    layer.load_state_dict(state)
    torch.testing.assert_close(layer(given["x"], CAUSAL), given["out"], rtol=0, atol=2e-6)
    state, steps = layer.start(1, dtype=torch.float64), []
    for t in range(given["x"].shape[1]):
        out, state = layer.extend(given["x"][:, t : t + 1], state)
        steps.append(out)
    torch.testing.assert_close(torch.cat(steps, 1), given["out"], rtol=0, atol=2e-6)


def test_what_both_maps_see_alike_cancels_by_its_share():
    mechanism = build("differential", head_dim=6, layer_index=2).double()
    q, k, v = draw(3, 11, 3, 3, 7)
    q, k = (torch.cat([x, x], 3) for x in (q, k))
    plain = build("softmax")(q[..., :3], k[..., :3], v, CAUSAL)
    torch.testing.assert_close(mechanism(q, k, v, CAUSAL), (1 - mechanism.share(q)) * plain)


def test_each_layer_of_a_model_starts_by_its_depth():
    model = LM(Config(17, 32, "differential*3", heads=2), seed=0)
    found = [block.attention.mechanism.initial for block in model.layers]
    assert found == pytest.approx([0.2, 0.8 - 0.6 * 0.7408182, 0.8 - 0.6 * 0.5488116])
    ids = torch.randint(17, (2, 9))
    logits, state = model.extend(ids[:, :5], model.start(2))
    later, _ = model.extend(ids[:, 5:], state)
    torch.testing.assert_close(torch.cat([logits, later], 1), model(ids), atol=1e-5, rtol=0)


def test_gates_are_kept_and_chosen_with_the_keys():
    mechanism = build("forgetting")
    q, k, v = draw(3, 9, 5, 5, 7)
    gates = -torch.rand(2, 3, 9, dtype=torch.float64)
    _, state = mechanism.extend(q, k, v, mechanism.start(2, dtype=torch.float64), log_forget=gates)
    torch.testing.assert_close(state.signals[0][..., 0], gates)
    assert state.bytes == 8 * (k.numel() + v.numel() + gates.numel())
    assert torch.equal(state.select(torch.tensor([1, 1])).signals[0][0], state.signals[0][1])
