"""What published code computes, written down by tests/reference/make.py; and numbers that can be checked by hand."""

import json
from pathlib import Path

import pytest
import torch

from regard import Layout, build
from regard.mechanisms.scored.positional import sinusoids
from regard.mechanisms.slopes import alibi_slopes
from regard.projections.base import merge_heads, split_heads
from regard.projections.latent import Latent
from regard.projections.rotary import Rotary

VALUES = json.loads((Path(__file__).parents[1] / "reference" / "values.json").read_text())
CAUSAL = Layout(causal=True)


def tensors(name, *fields):
    return [torch.tensor(VALUES[name][field], dtype=torch.float64) for field in fields]


def both_forms(mechanism, q, k, v, layout=CAUSAL):
    """``forward`` and the definition."""
    dense = mechanism.weights(q, k, layout)
    return mechanism(q, k, v, layout), dense @ v.repeat_interleave(q.shape[1] // v.shape[1], 1)


@pytest.mark.parametrize("heads", [int(heads) for heads in VALUES["slopes"]])
def test_alibi_slopes_are_those_of_bloom(heads):
    torch.testing.assert_close(torch.tensor(alibi_slopes(heads)), torch.tensor(VALUES["slopes"][str(heads)]))


def test_scores_are_capped_before_the_bias_as_in_gemma():
    q, k, v, want = tensors("softcap", "q", "k", "v", "out")
    mechanism = build("composed", bias="alibi", softcap=VALUES["softcap"]["softcap"])
    for got in both_forms(mechanism, q, k, v):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_sinks_are_those_of_gpt_oss():
    q, k, v, sink, want = tensors("sinks", "q", "k", "v", "sink", "out")
    for mechanism, name in (
        (build("softmax", sink_heads=4), "sink"),
        (build("composed", normaliser="softmax(sinks=True)"), "normaliser.sink"),
    ):
        mechanism.load_state_dict({name: sink})
        for got in both_forms(mechanism.double(), q, k, v):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-7)


def test_latent_attention_is_that_of_deepseek():
    x, want = tensors("latent", "x", "out")
    given = {name: torch.tensor(value, dtype=torch.float64) for name, value in VALUES["latent"]["weights"].items()}
    made = Latent(6, 2, 4, 3, 2, 3, query_rank=5).double()
    heads = given["q_b_proj.weight"].view(2, 5, 5)
    up = given["kv_b_proj.weight"].view(2, 6, 4).mT
    latent, turned = given["kv_a_proj_with_mqa.weight"].split([4, 2])
    made.load_state_dict(
        {
            "query_down.weight": given["q_a_proj.weight"],
            "query_norm.weight": given["q_a_layernorm.weight"],
            "query_up.weight": torch.cat([heads[:, 3:], heads[:, :3]], 1).flatten(0, 1),
            "down.weight": torch.cat([turned, latent]),
            "norm.weight": given["kv_a_layernorm.weight"],
            "key_up": up[..., :3],
            "value_up": up[..., 3:],
            "out.weight": given["o_proj.weight"],
        }
    )
    for projection in (made, made.as_form("absorbed")):
        q, k, v = projection(x, x)
        q, k = (Rotary(2)(part, torch.arange(7)[None]) for part in (q, k))
        got = projection.merge(build("softmax")(q, k, v, CAUSAL))
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_sinusoids_are_those_of_tensor2tensor():
    want = torch.tensor(VALUES["sinusoids"])
    torch.testing.assert_close(sinusoids(*want.shape), want)


def test_shifted_groups_are_those_of_longlora():
    """But for the group that its roll makes of the text's two ends."""
    groups = torch.tensor(VALUES["shifted_groups"])
    heads, tokens = groups.shape
    together = groups[:, :, None] == groups[:, None]
    ends = torch.arange(tokens) < tokens // 2
    together[heads // 2 :] &= ~((groups == groups[:, :1])[heads // 2 :, :, None] & (ends[:, None] != ends))
    seen = build("sinklora", heads=heads, size=8, sinks=0).support(tokens, tokens, Layout())
    assert torch.equal(seen[0], together)


def test_shifted_windows_are_those_of_swin():
    x, want = tensors("swin", "x", "out")
    weights = {name: torch.tensor(value, dtype=torch.float64) for name, value in VALUES["swin"]["weights"].items()}
    table = weights.pop("relative_position_bias.relative_position_bias_table")
    q, k, v = (
        split_heads(torch.nn.functional.linear(x, weights[f"{name}_proj.weight"], weights[f"{name}_proj.bias"]), 2)
        for name in "qkv"
    )
    made = build("windows", side=3, bias=True, heads=2, shift=1).double()
    with torch.no_grad():
        made.table.copy_(table.T.view(2, 5, 5))
    for got in both_forms(made, q, k, v, Layout(grid=(6, 9))):
        got = torch.nn.functional.linear(merge_heads(got), weights["o_proj.weight"], weights["o_proj.bias"])
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("power", "want"), [(1.0, (4 / 3, 0, 3)), (1.5, (8 / 3, 0, 9)), (2.0, (16 / 3, 0, 27))])
def test_relu_to_a_power_over_the_visible_keys_by_hand(power, want):
    """Scores 4, −1 and 9 over three keys."""
    q, k = torch.ones(1, 1, 1, 1), torch.tensor([4.0, -1.0, 9.0]).view(1, 1, 3, 1)
    mechanism = build("composed", normaliser=f"relu(power={power})", heads=1, head_dim=1)
    torch.testing.assert_close(mechanism.weights(q, k, CAUSAL).flatten(), torch.tensor(want))


def test_a_learned_temperature_starts_at_the_root_of_the_head_dim():
    torch.testing.assert_close(build("l2vit", heads=3, head_dim=16).temperature.detach(), torch.full((3,), 0.25))
