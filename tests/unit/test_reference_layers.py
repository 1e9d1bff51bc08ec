"""Whole layers on the weights of published code, written down by tests/reference/layers.py: hosted as their papers have
them."""

import json
from pathlib import Path

import pytest
import torch

from regard import Layout, build
from regard.blocks.attention import Attention, Handed
from regard.core.sizes import Sizes
from regard.projections.base import Grouped, split_heads
from regard.projections.rotary import Rotary
from regard.projections.selective import MultiValue, Selective

VALUES = json.loads((Path(__file__).parents[1] / "reference" / "layers.json").read_text())
CAUSAL = Layout(causal=True)


def taps(*weights):
    """Convolutions ``(channels, 1, T)`` side by side, the token itself first."""
    return torch.cat([weight[:, 0] for weight in weights]).mT.flip(0)


def plain(w):
    """The four matrices, where each has a name."""
    own = {f"projection.{name}.weight": w[f"{name}_proj.weight"] for name in "qkv"}
    return own | {"projection.out.weight": w["o_proj.weight"]}


def linear(w):
    return Attention(build("linear"), Grouped(Sizes(6, 2, 2, 3, 3))), plain(w)


def retnet(w):
    own = plain(w) | {"output.gate.weight": w["g_proj.weight"], "output.norm.weight": w["g_norm_swish_gate.weight"]}
    return Attention(build("retnet"), Grouped(Sizes(8, 2, 2, 4, 8)), Rotary(4)), own


def gla(w):
    """Ours decays by −softplus of what is projected, so that its sign is turned."""
    own = plain(w) | {
        "output.gate.weight": w["g_proj.weight"],
        "output.norm.weight": w["g_norm_swish_gate.weight"],
        "signals.maps.log_decay.down.weight": w["gk_proj.0.weight"],
        "signals.maps.log_decay.weight": -w["gk_proj.1.weight"],
        "signals.maps.log_decay.bias": -w["gk_proj.1.bias"],
    }
    return Attention(build("gla"), Grouped(Sizes(6, 2, 2, 3, 3))), own


def deltanet(w):
    own = plain(w) | {
        "signals.maps.beta.weight": w["b_proj.weight"],
        "signals.maps.beta.bias": torch.zeros(2),
        "convolution.weight": taps(*(w[f"{name}_conv1d.weight"] for name in "qkv")),
        "output.norm.weight": w["o_norm.weight"],
    }
    return Attention(build("deltanet"), Grouped(Sizes(6, 2, 2, 3, 3))), own


def gated_deltanet(w):
    """Rows of the joint matrices by head: q, k, v, gate; β, decay."""
    q, k, v, z = w["in_proj_qkvz.weight"].view(2, 16, 6).split([3, 3, 5, 5], dim=1)
    beta, decay = w["in_proj_ba.weight"].view(2, 2, 6).unbind(1)
    own = {
        **{f"projection.{name}.weight": part.flatten(0, 1) for name, part in zip("qkv", (q, k, v), strict=True)},
        "projection.out.weight": w["out_proj.weight"],
        "signals.maps.beta.weight": beta,
        "signals.maps.beta.bias": torch.zeros(2),
        "signals.maps.log_decay.weight": decay,
        "signals.maps.log_decay.bias": w["dt_bias"],
        "signals.rates.log_decay": w["A_log"],
        "convolution.weight": taps(w["conv1d.weight"]),
        "output.norm.weight": w["norm.weight"],
        "output.gate.weight": z.flatten(0, 1),
    }
    return Attention(build("gated_deltanet"), Grouped(Sizes(6, 2, 2, 3, 5))), own


def kimi_delta(w):
    own = plain(w) | {
        "signals.maps.beta.weight": w["b_proj.weight"],
        "signals.maps.beta.bias": torch.zeros(2),
        "signals.maps.log_decay.down.weight": w["forget_gate.f_a_proj.weight"],
        "signals.maps.log_decay.weight": w["forget_gate.f_b_proj.weight"],
        "signals.maps.log_decay.bias": w["forget_gate.dt_bias"],
        "signals.rates.log_decay": w["forget_gate.A_log"].flatten(),
        "convolution.weight": taps(w["conv1d.weight"]),
        "output.norm.weight": w["o_norm.weight"],
        "output.gate.down.weight": w["g_a_proj.weight"],
        "output.gate.weight": w["g_b_proj.weight"],
        "output.gate.bias": torch.zeros(6),
    }
    return Attention(build("kimi_delta"), Grouped(Sizes(6, 2, 2, 3, 3))), own


def mamba_parts(w, rank):
    """Weights of their mixer by our names; the step is of ``rank``."""
    value, gate = w["in_proj.weight"].chunk(2)
    step, k, q = w["x_proj.weight"].split([rank, 3, 3])
    return {
        "mechanism.log_rate": w["A_log"],
        "projection.q.weight": q,
        "projection.k.weight": k,
        "projection.v.weight": value,
        "projection.out.weight": w["out_proj.weight"],
        "signals.maps.step.down.weight": step,
        "signals.maps.step.weight": w["dt_proj.weight"],
        "signals.maps.step.bias": w["dt_proj.bias"],
        "convolution.weight": taps(w["conv1d.weight"]),
        "convolution.bias": w["conv1d.bias"],
        "output.skip": w["D"],
        "output.gate.weight": gate,
    }


def mamba(w):
    """Heads of one channel each, three state dimensions."""
    return Attention(build("mamba", heads=6, head_dim=3), Selective(Sizes(6, 6, 1, 3, 1))), mamba_parts(w, 1)


def mamba_normed(w):
    """Scales of the step's norm are in the map behind it, as ours are."""
    own = mamba_parts(w, 2) | {
        "signals.maps.step.weight": w["dt_proj.weight"] * w["dt_layernorm.weight"],
        "norms.k.weight": w["b_layernorm.weight"],
        "norms.q.weight": w["c_layernorm.weight"],
    }
    return Attention(build("mamba", heads=18, head_dim=3, normed=True), Selective(Sizes(18, 18, 1, 3, 1))), own


def mamba2(w):
    """Four heads in two groups; theirs convolves x, B, C, ours C, B, x."""
    gate, value, k, q, step = w["in_proj.weight"].split([12, 12, 10, 10, 4])
    value_taps, k_taps, q_taps = w["conv1d.weight"].split([12, 10, 10])
    value_bias, k_bias, q_bias = w["conv1d.bias"].split([12, 10, 10])
    own = {
        "mechanism.log_rate": w["A_log"],
        "projection.q.weight": q,
        "projection.k.weight": k,
        "projection.v.weight": value,
        "projection.out.weight": w["out_proj.weight"],
        "signals.maps.step.weight": step,
        "signals.maps.step.bias": w["dt_bias"],
        "convolution.weight": taps(q_taps, k_taps, value_taps),
        "convolution.bias": torch.cat([q_bias, k_bias, value_bias]),
        "output.skip": w["D"],
        "output.norm.weight": w["norm.weight"].view(4, 3),
        "output.gate.weight": gate,
    }
    return Attention(build("mamba2", heads=4), MultiValue(Sizes(6, 4, 2, 5, 3))), own


def lightning(w):
    """The second of three layers: slopes are smaller there."""
    q, k, v = (part.flatten(0, 1) for part in w["qkv_proj.weight"].view(2, 12, 6).split(4, dim=1))
    own = {
        **{"projection.q.weight": q, "projection.k.weight": k, "projection.v.weight": v},
        "projection.out.weight": w["out_proj.weight"],
        "output.norm.weight": w["norm.weight"].view(2, 4),
        "output.gate.weight": w["output_gate.weight"],
    }
    slopes = tuple(slope * (1 - 1 / (2 + 1e-5) + 1e-5) for slope in (2**-4, 2**-8))
    return Attention(build("lightning", slopes=slopes), Grouped(Sizes(6, 2, 2, 4, 4))), own


def rwkv6(w):
    """Readers in our order: q, k, v, gate, decay; in theirs: q, decay, k, v, gate."""
    ours = [0, 2, 3, 4, 1]
    own = {
        "projection.q.weight": w["r_proj.linear.weight"],
        "projection.k.weight": w["k_proj.linear.weight"],
        "projection.v.weight": w["v_proj.linear.weight"],
        "projection.out.weight": w["o_proj.weight"],
        "mechanism.bonus": w["bonus"],
        "shift.share": w["x_bias"][ours],
        "shift.common": w["x_proj.0.mu"],
        "shift.down.weight": w["x_proj.0.linear.weight"].view(5, 32, 6)[ours].flatten(0, 1),
        "shift.up": w["x_proj.2.weight"].view(6, 5, 32).permute(1, 2, 0)[ours],
        "signals.maps.log_decay.down.weight": w["w_proj.linear.lora.0.weight"],
        "signals.maps.log_decay.weight": w["w_proj.linear.lora.2.weight"],
        "signals.maps.log_decay.bias": w["w_proj.linear.lora.2.bias"],
        "output.norm.weight": w["g_norm.weight"].view(2, 3),
        "output.norm.bias": w["g_norm.bias"].view(2, 3),
        "output.gate.weight": w["g_proj.linear.weight"],
    }
    return Attention(build("rwkv6", heads=2, head_dim=3), Grouped(Sizes(6, 2, 2, 3, 3))), own


def rwkv7(w):
    own = {
        "projection.q.weight": w["r_proj.weight"],
        "projection.k.weight": w["k_proj.weight"],
        "projection.v.weight": w["v_proj.weight"],
        "projection.out.weight": w["o_proj.weight"],
        "mechanism.gain": w["k_a"].view(2, 3),
        "signals.factors.removed": w["k_k"].view(2, 3),
        "shift.share": torch.cat([w[f"x_{name}"][0] for name in "rkvgwa"]),
        **{
            f"signals.maps.{name}.{ours}": w[f"{letter}_lora.lora.{theirs}"]
            for name, letter in (("log_decay", "w"), ("rate", "a"))
            for ours, theirs in (("down.weight", "0.weight"), ("weight", "2.weight"), ("bias", "2.bias"))
        },
        "output.bonus": w["r_k"],
        "output.norm.weight": w["g_norm.weight"].view(2, 3),
        "output.norm.bias": w["g_norm.bias"].view(2, 3),
        "output.gate.down.weight": w["g_lora.lora.0.weight"],
        "output.gate.weight": w["g_lora.lora.2.weight"],
    }
    return Attention(build("rwkv7", heads=2, head_dim=3), Grouped(Sizes(6, 2, 2, 3, 3))), own


def rwkv7_later(w):
    """Values of the first layer are the hidden states, their channels from the last."""
    theirs = {"down.weight": "0.weight", "weight": "2.weight", "bias": "2.bias"}
    own = rwkv7(w)[1] | {f"mix.{name}": w[f"v_lora.lora.{their}"] for name, their in theirs.items()}
    return Attention(build("rwkv7", heads=2, head_dim=3), Grouped(Sizes(6, 2, 2, 3, 3)), later=True), own


def dynamic_mask(w):
    own = plain(w) | {f"norms.{name}.weight": w[f"{name}_norm.weight"] for name in "qk"}
    own |= {"signals.maps.score.weight": w["dt_proj.weight"], "signals.maps.score.bias": torch.zeros(1)}
    own["signals.rates.score"] = w["A"]
    return Attention(build("dynamic_mask", keep=4), Grouped(Sizes(6, 2, 1, 4, 4)), Rotary(4)), own


def forgetting_pro(w):
    """Ours forgets by −softplus of what is projected, so that its sign is turned."""
    own = {f"projection.{name}.weight": w[f"{name}_proj.linear.weight"] for name in "kv"}
    own |= {"projection.q.weight": w["q_proj.weight"], "projection.out.weight": w["o_proj.weight"]}
    own |= {f"norms.{name}.weight": w[f"{name}_norm.weight"].view(2, 3) for name in "qk"}
    own |= {
        "blend.weight": torch.cat([w[f"{name}_proj.shift_proj.weight"] for name in "kv"]),
        "signals.maps.log_forget.weight": -w["fgate_proj.weight"],
        "signals.maps.log_forget.bias": -w["fgate_proj.bias"],
        "output.norm.weight": w["output_norm.weight"].view(2, 3),
        "output.gate.weight": w["ogate_proj.weight"],
    }
    return Attention(build("forgetting", pro=True), Grouped(Sizes(6, 2, 2, 3, 3))), own


MAPS = [
    linear,
    retnet,
    gla,
    deltanet,
    gated_deltanet,
    kimi_delta,
    mamba,
    mamba2,
    lightning,
    rwkv6,
    rwkv7,
    rwkv7_later,
    dynamic_mask,
    forgetting_pro,
    mamba_normed,
]


def test_every_layer_that_is_written_down_is_compared():
    assert {made.__name__ for made in MAPS} == VALUES.keys()


@pytest.mark.parametrize("made", MAPS, ids=lambda made: made.__name__)
def test_a_hosted_layer_is_that_of_published_code(made):
    """Every parameter comes from theirs; one call and any steps of it agree with what theirs gives."""
    values = VALUES[made.__name__]
    weights = {name: torch.tensor(value, dtype=torch.float64) for name, value in values["weights"].items()}
    x, want = (torch.tensor(values[name], dtype=torch.float64) for name in ("x", "out"))
    layer, given = made(weights)
    own = dict(layer.double().named_parameters())
    assert given.keys() == own.keys()
    for name, value in given.items():
        assert own[name].shape == value.shape, name
        own[name].data.copy_(value)
    state, steps = layer.start(2, dtype=torch.float64), []

    def first(x):
        return None if layer.mix is None else Handed(split_heads(x.flip(2), 2))

    for part in x.split([3, 1, 1, 2], dim=1):
        out, state = layer.extend(part, state, handed=first(part))
        steps.append(out)
    for got in (layer(x, CAUSAL, handed=first(x)), torch.cat(steps, 1)):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
