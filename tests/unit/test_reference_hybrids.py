"""Layers of recurrences and attention as their authors' code computes them, written down by
tests/reference/hybrids.py."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from regard import Layout, build
from regard.networks.mega import MegaBlock
from regard.networks.sha_rnn import ShaBlock
from regard.projections.base import merge_heads, split_heads

VALUES = json.loads((Path(__file__).parents[1] / "reference" / "hybrids.json").read_text())
CAUSAL = Layout(causal=True)


def told(name):
    """``(weights by name, x, out)`` in float64."""
    weights = {key: torch.tensor(x, dtype=torch.float64) for key, x in VALUES[name]["weights"].items()}
    x = torch.tensor(VALUES[name]["x"], dtype=torch.float64)
    return weights, x, torch.tensor(VALUES[name]["out"], dtype=torch.float64).view(x.shape)


def filled(module, weights, names):
    """The module in float64 with weights by its own names, others untouched."""
    state = module.double().state_dict()
    module.load_state_dict(state | {own: weights[theirs].view(state[own].shape) for own, theirs in names.items()})
    return module


def both(*names):
    return {f"{own}.{kind}": f"{theirs}.{kind}" for own, theirs in names for kind in ("weight", "bias")}


def same(got, want):
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "chunk"), [("mega", 8), ("mega in chunks of 4", 4)])
def test_mega_is_its_authors(name, chunk):
    weights, x, want = told(name)
    own = both(("norms.0", "norm"), *((f"attention.{a}", b) for a, b in PROJECTED))
    own |= {f"attention.average.{part}": f"move.{part}" for part in ("alpha", "delta", "beta", "gamma", "omega")}
    own |= {"attention.gamma": "gamma", "attention.beta": "beta"}
    block = filled(MegaBlock(6, 3, 4, 5, 3, chunk), weights, own)
    with torch.no_grad():
        block.attention.bias.copy_(weights["rel_pos_bias.rel_pos_bias"][:chunk].flip(0))  # there by j − i
        for parameter in block.network[2].parameters():
            parameter.zero_()
        same(block(x, CAUSAL), want)
        first, state = block.extend(x[:, :3], block.start(2, dtype=x.dtype))
        rest, _ = block.extend(x[:, 3:], state)
        same(torch.cat([first, rest], 1), want)


PROJECTED = (("value", "v_proj"), ("base", "mx_proj"), ("out", "h_proj"))


def test_the_layer_of_an_lstm_with_one_head_is_its_authors():
    weights, x, want = told("sha_rnn")
    norms = {"start": "lnstart", "query": "lnmid", "memory": "lnmem", "main": "lnff", "rest": "lnxff"}
    own = both(*((f"norms.{a}", b) for a, b in norms.items()), ("boom.up", "ff.linear1"))
    own |= both(("attention.query", "attn.q"), ("attention.norm", "attn.qln"), ("attention.over", "attn.vq.l1"))
    own |= {f"attention.{part}_scale": f"attn.{part}s" for part in "qkv"}
    own |= {f"lstm.{part}": f"rnn.{part}" for part in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")}
    block = filled(ShaBlock(6, True, 100, 2), weights, own)
    with torch.no_grad():
        same(block(x, CAUSAL), want)


def test_rat_is_its_authors():
    weights, x, want = told("rat")
    normed = F.rms_norm(x, (16,), weights["input_norm.weight"], 1e-6)
    opened, v, gate, q, k = (normed @ weights["in_proj.weight"].mT).split([16, 16, 16, 8, 8], -1)
    q, k = (split_heads(part, 2).repeat(1, 2, 1, 1) for part in (q, k))  # head j reads group j mod 2
    gate = split_heads(torch.sigmoid(gate + weights["gate_bias"]), 4)
    out = build("rat", chunk=3)(q, k, split_heads(v, 4), CAUSAL, gate=gate)
    same(x + (torch.sigmoid(opened) * merge_heads(out)) @ weights["out_proj.weight"].mT, want)
