"""Mechanisms as their authors' code computes them, written down by tests/reference/authors.py."""

import json
from pathlib import Path

import pytest
import torch

from regard import Layout, build, entries
from regard.patterns import Neighborhood, Radial
from regard.patterns.line import Trailing

VALUES = json.loads((Path(__file__).parents[1] / "reference" / "authors.json").read_text())
CAUSAL = Layout(causal=True)


def tensors(name, *fields):
    return [torch.tensor(VALUES[name][field], dtype=torch.float64) for field in fields]


def both_forms(mechanism, q, k, v, layout):
    """``forward`` and the definition, in float64."""
    mechanism = mechanism.double()
    return mechanism(q, k, v, layout), mechanism.weights(q, k, layout) @ v


def same(got, want):
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", VALUES["radial"])
def test_bands_of_frames_are_those_of_radial_attention(case):
    tokens, factor = case.split()
    pattern = Radial((24, int(tokens)), 128, float(factor))
    near = [min(width, int(tokens)) for width in VALUES["radial"][case]]
    assert [min(pattern.width_at(t), int(tokens)) for t in range(24)] == near


def test_an_adaptive_filter_weighs_as_its_authors_does():
    q, k, numbers, want = tensors("adaptive_filter", "q", "k", "numbers", "weights")
    mechanism = build("adaptive_filter", heads=3).double()
    mechanism.load_state_dict({"logs": numbers.log()})
    eye = torch.eye(7, dtype=torch.float64).expand(1, 3, 7, 7)
    for got in both_forms(mechanism, q, k, eye, CAUSAL):
        same(got, want)


def test_positional_attention_has_biases():
    encodings, v, weight, bias, want = tensors("positional", "encodings", "v", "weight", "bias", "out")
    mechanism = build("positional", heads=3, places=7, size=4).double()
    mechanism.encodings = encodings
    for name, part in zip(("query", "key"), weight.unbind(1), strict=True):
        setattr(mechanism, name, torch.nn.Parameter(part.mT))
    mechanism.biases.data.copy_(bias.transpose(0, 1))
    blank = torch.zeros(1, 3, 7, 1, dtype=torch.float64)
    for got in both_forms(mechanism, blank, blank, v, Layout()):
        same(got, want)


@pytest.mark.parametrize("field", ["bidirectional", "causal"])
def test_flows_are_those_of_flowformer(field):
    q, k, v, want = tensors("flow", "q", "k", "v", field)
    for got in both_forms(build("flow"), q, k, v, Layout(causal=field == "causal")):
        same(got, want)


@pytest.mark.parametrize("name", ["efficient", "agent"])
def test_two_sided_attention_through_a_small_matrix(name):
    q, k, v, want = tensors(name, "q", "k", "v", "out")
    mechanism = build("agent", agents=3) if name == "agent" else build(name)
    for got in both_forms(mechanism, q, k, v, Layout()):
        same(got, want)


def test_cog_keeps_signs():
    q, k, v, weights, want = tensors("cog", "q", "k", "v", "weights", "out")
    same(build("cog").double().weights(q, k, CAUSAL), weights)
    same(build("cog").double()(q, k, v, CAUSAL), want)


def test_sums_are_clamped_as_in_l2vit():
    q, k, v, temperature, want = tensors("l2vit", "q", "k", "v", "temperature", "out")
    mechanism = build("l2vit", heads=3, head_dim=4).double()
    mechanism.load_state_dict({"temperature": temperature})
    sums = (q.relu() @ k.relu().mT).sum(-1)
    assert sums.min() < 100 < sums.max()
    for got in both_forms(mechanism, q, k, v, Layout()):
        same(got, want)


def test_sigmoid_attention_has_one_bias():
    q, k, v, want = tensors("sigmoid", "q", "k", "v", "out")
    for got in both_forms(build("sigmoid", bias=VALUES["sigmoid"]["bias"]), q, k, v, CAUSAL):
        same(got, want)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("causal", [False, True])
def test_polynomials_are_those_of_fastmax(order, causal):
    q, k, v, want = tensors("fastmax", "q", "k", "v", f"{order} {int(causal)}")
    for got in both_forms(build("fastmax", order=order), q, k, v, Layout(causal=causal)):
        same(got, want)


@pytest.mark.parametrize(("steps", "prior"), [(0, "norm"), (1, "uniform")])
def test_keys_adapt_as_in_probabilistic_attention(steps, prior):
    q, k, v, want = tensors("probabilistic", "q", "k", "v", str(steps))
    mechanism = build("probabilistic", steps=steps, precision=VALUES["probabilistic"]["precision"], prior=prior)
    for got in both_forms(mechanism, q, k, v, Layout()):
        same(got, want)


@pytest.mark.parametrize("number", range(len(VALUES["neighborhood"])))
def test_neighbourhoods_are_those_of_natten(number):
    case = VALUES["neighborhood"][number]
    shape, window, stride, dilation, causal = case["case"]
    want = torch.tensor([[cell == "1" for cell in row] for row in case["rows"]])
    got = Neighborhood(tuple(shape), tuple(window), tuple(stride), tuple(dilation), tuple(causal)).dense(len(want))
    assert torch.equal(got[0], want)
    if len(shape) == 1 and causal[0] and dilation[0] == 1:
        whole = len(want) // stride[0] * stride[0]  # the last group may be cut short where more tokens are to come
        assert torch.equal(Trailing(window[0], stride[0]).dense(whole)[0], want[:whole, :whole])


def test_scores_are_convolved_and_heads_mixed_as_in_multi_token_attention():
    """Theirs mixes from the right."""
    q, k, kernel, mix, want = tensors("multi_token", "q", "k", "kernel", "mix", "weights")
    mechanism = build("multi_token", heads=4, query_taps=3, key_taps=5).double()
    mechanism.load_state_dict({"kernel": kernel, "mix": mix.mT})
    eye = torch.eye(7, dtype=torch.float64).expand(1, 4, 7, 7)
    for got in both_forms(mechanism, q, k, eye, CAUSAL):
        same(got, want)


def test_sparse_rows_are_corrected_as_in_delta_attention():
    """The first five groups: theirs takes the last 128 queries from dense attention."""
    q, k, v, want = tensors("delta", "q", "k", "v", "out")
    for got in both_forms(build("delta", of="window(size=3, sinks=1)", gamma=4), q, k, v, CAUSAL):
        same(got, want)


@pytest.mark.parametrize(("text", "field"), [("softmax", "causal"), ("window(size=3)", "window")])
def test_softmax_and_its_window_are_those_of_pytorch_and_transformers(text, field):
    q, k, v, want = tensors("window", "q", "k", "v", field)
    name, _, size = text.partition("(size=")
    mechanism = build(name, size=int(size[:-1])) if size else build(name)
    for got in both_forms(mechanism, q, k, v, CAUSAL):
        same(got, want)


def test_every_published_mechanism_says_what_its_evidence_is():
    """Values are of code, and of entries that say so."""
    folder = Path(__file__).parents[1] / "reference"
    code = json.loads((folder / "evidence.json").read_text())
    evidence = {entry.name: entry.fidelity for entry in entries(kind="mechanism") if entry.arxiv}
    assert {name for name, said in evidence.items() if said is None} <= {
        "routed",
        "hip",
    }  # of parts of several papers; held to no values from outside
    for name, about in code.items():
        assert evidence.get(name, "third-party code") in ("authors' code", "third-party code"), name
        assert about["code"], name
        assert (folder / about["values"]).is_file(), name
