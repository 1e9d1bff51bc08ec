"""Parts of methods that stand beside what other files hold to their authors' code, from tests/reference/parts.py."""

import json
from pathlib import Path

import pytest
import torch

from regard import Layout, build
from regard.blocks.attention import Attention
from regard.core.sizes import Sizes
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.sparse.mosa import ExpertChoice
from regard.networks.mega import MegaBlock
from regard.networks.mosa import MosaHeads
from regard.patterns import RoundedRadial
from regard.projections.base import Grouped
from regard.projections.rotary import Rotary

VALUES = json.loads((Path(__file__).parents[1] / "reference" / "parts.json").read_text())
CAUSAL = Layout(causal=True)


def told(name):
    """``(weights by name, x, out)`` in float64."""
    weights = {key: torch.tensor(x, dtype=torch.float64) for key, x in VALUES[name]["weights"].items()}
    x = torch.tensor(VALUES[name]["x"], dtype=torch.float64)
    return weights, x, torch.tensor(VALUES[name]["out"], dtype=torch.float64).view(x.shape)


def filled(module, weights):
    """The module in float64 with all of these weights, and no others."""
    module = module.double()
    state = module.state_dict()
    module.load_state_dict({name: weights[name].reshape(x.shape) for name, x in state.items()})
    return module


def same(got, want):
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_multi_token_attention_is_its_authors_layer():
    """Theirs mixes heads behind the softmax from the right."""
    w, x, want = told("multi_token")
    mechanism = build("multi_token", heads=4, query_taps=2, key_taps=3, after_query_taps=3, after_key_taps=5, group=2,
                      group_before=4)  # fmt: skip
    own = {f"projection.{a}.weight": w[f"w{b}.weight"] for a, b in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o"))}
    own |= {"mechanism.kernel": w["mta_kernel"], "mechanism.after": w["mta_kernel_after_sm"]}
    own |= {"mechanism.before": w["wpsm.weight"], "mechanism.mix": w["head_kernel"].mT}
    own |= {"output.norm.weight": w["subln.weight"]}
    own |= {f"output.gate.{kind}": w[f"gate.{kind}"] for kind in ("weight", "bias")}
    layer = filled(Attention(mechanism, Grouped(Sizes(7, 4, 2, 3, 3))), own)
    same(layer(x, CAUSAL), want)
    first, state = layer.extend(x[:, :4], layer.start(2, dtype=x.dtype))
    same(torch.cat([first, layer.extend(x[:, 4:], state)[0]], 1), want)


@pytest.mark.parametrize(
    ("name", "chunk"),
    [
        ("mega laplace", 4),
        ("mega both laplace", 8),
        ("mega both laplace in chunks of 4", 4),
        ("mega both softmax", 4),
    ],
)
def test_mega_is_its_authors_with_the_laplace_function_and_in_both_ways(name, chunk):
    w, x, want = told(name)
    both = "both" in name
    block = MegaBlock(6, 3, 4, 5, 3, chunk, "laplace" in name, both)
    own = {name: torch.zeros_like(part) for name, part in block.state_dict().items()}
    pairs = (("norms.0", "norm"), ("attention.value", "v_proj"), ("attention.base", "mx_proj"))
    for mine, theirs in (*pairs, ("attention.out", "h_proj")):
        own |= {f"{mine}.{kind}": w[f"{theirs}.{kind}"] for kind in ("weight", "bias")}
    own |= {f"attention.average.{part}": w[f"move.{part}"] for part in ("alpha", "delta", "beta", "gamma", "omega")}
    own |= {"attention.gamma": w["gamma"], "attention.beta": w["beta"]}
    table = w["rel_pos_bias.rel_pos_bias"].flip(0)  # there by j − i
    own["attention.bias"] = table if both else table[len(table) // 2 :]
    block = filled(block, own)
    same(block(x, Layout(causal=not both)), want)
    with pytest.raises(ValueError, match="layout"):
        block(x, Layout(causal=both))


def test_what_padding_holds_says_nothing_in_both_ways():
    """A padded sequence is what it is alone."""
    torch.manual_seed(0)
    block, x = MegaBlock(6, 3, 4, 5, 3, 4, True, True).double(), torch.randn(1, 7, 6, dtype=torch.float64)
    keys = torch.tensor([[False, False, True, True, True, True, True]])
    torch.testing.assert_close(block(x, Layout(key_mask=keys))[:, 2:], block(x[:, 2:], Layout()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("first", [0, 1])
def test_heads_project_the_tokens_that_they_choose_alone(first):
    """With half of the coordinates turned, and dense heads beside, whose matrix theirs has by heads."""
    w, x, want = told(f"mosa {first}")
    dense = Attention(Softmax(), Grouped(Sizes(6, 2, 2, 5, 5)), Rotary(2))
    layer = MosaHeads(6, 3, 5, ExpertChoice(4, bool(first)), dense, Rotary(2))
    own = {"route.weight": w["mosa_heads.r.0.weight"], "project": w["mosa_heads.QKV.W"], "out": w["mosa_heads.O.W"]}
    parts = w["other_heads.W_QKV.weight"].unflatten(0, (2, 3, 5)).unbind(1)
    own |= {f"beside.projection.{name}.weight": part for name, part in zip("qkv", parts, strict=True)}
    own["beside.projection.out.weight"] = w["other_heads.W_O.weight"]
    layer = filled(layer, own)
    same(layer(x, CAUSAL), want)
    with pytest.raises(ValueError, match="threshold"):
        layer.start(2)


def test_chosen_heads_leave_padding_and_other_documents_out():
    """Each of two packed documents, and a padded one, is what it is alone."""
    torch.manual_seed(0)
    dense = Attention(Softmax(), Grouped(Sizes(6, 2, 2, 5, 5)), Rotary(2))
    layer = MosaHeads(6, 3, 5, ExpertChoice(3), dense, Rotary(2)).double()
    x = torch.randn(1, 17, 6, dtype=torch.float64)
    segments = torch.tensor([[0] * 7 + [1] * 10])
    alone = torch.cat([layer(x[:, :7]), layer(x[:, 7:])], 1)
    torch.testing.assert_close(layer(x, Layout(causal=True, segments=segments)), alone, rtol=0, atol=1e-12)
    keys = (torch.arange(17) >= 4)[None]
    padded = layer(x, Layout(causal=True, key_mask=keys))
    torch.testing.assert_close(padded[:, 4:], layer(x[:, 4:]), rtol=0, atol=1e-12)


def test_a_network_of_two_hidden_layers_scores_pairs_as_its_authors_does():
    """Whose projections of queries and keys, and whose network, all heads share."""
    w, x, want = told("neural")
    mechanism = build("neural", heads=3, head_dim=3, hidden=4, second=2, projected=4, shared=True)
    layer = Attention(mechanism, Grouped(Sizes(9, 3, 3, 3, 3)))
    parts = w["to_qkv.weight"].unflatten(0, (3, 3, 3)).unbind(1)  # (d, k, h) there
    own = {f"projection.{n}.weight": part.transpose(0, 1).flatten(0, 1) for n, part in zip("qkv", parts, strict=True)}
    own["projection.out.weight"] = w["W_out.weight"]
    own |= {f"mechanism.projections.{n}.{p}": w[f"{n}_proj.{p}"] for n in "qk" for p in ("weight", "bias")}
    query, key = w["linear1.weight"].split(4, 1)
    own |= {"mechanism.query": query.mT, "mechanism.key": key.mT, "mechanism.bias": w["linear1.bias"]}
    own |= {"mechanism.middle": w["linear2.weight"].mT, "mechanism.middle_bias": w["linear2.bias"]}
    own["mechanism.out"] = w["linear3.weight"]
    same(filled(layer, own)(x, CAUSAL), want)


@pytest.mark.parametrize("case", VALUES["radial"])
def test_bands_are_rounded_to_the_blocks_of_radial_attention(case):
    frames, tokens, factor = case.split()
    rows = VALUES["radial"][case]
    want = torch.tensor([[cell == "1" for cell in row] for row in rows])
    pattern = RoundedRadial((int(frames), int(tokens)), 128, 128, float(factor))
    assert torch.equal(pattern.kept[: len(rows), : len(rows)], want)
    assert pattern.kept[len(rows) :].all()
    assert 0 < want.double().mean() < 1


def test_attention_in_rounded_bands_is_masked_attention():
    """Forward and backward, with a last frame that is cut short."""
    torch.manual_seed(0)
    mechanism = build("radial", frame=11, least=2, block=4)
    q, k, v = (torch.randn(2, 2, 107, 5, dtype=torch.float64, requires_grad=True) for _ in range(3))
    seen = RoundedRadial((10, 11), 4, 2).dense(107)
    out, want = mechanism(q, k, v), torch.nn.functional.scaled_dot_product_attention(q, k, v, seen)
    assert 0.1 < seen.double().mean() < 0.9
    torch.testing.assert_close(out, want, rtol=0, atol=1e-12)
    torch.testing.assert_close(mechanism.weights(q, k) @ v, want, rtol=0, atol=1e-12)
    for mine, theirs in zip(*(torch.autograd.grad(x.sin().sum(), (q, k, v)) for x in (out, want)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
