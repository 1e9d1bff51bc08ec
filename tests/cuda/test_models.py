"""The verbs on a model that stands on CUDA say what they say of it on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch

import regard
from regard.edits import Highlight, ZeroTuning
from regard.hosts import small
from regard.probes import Entropy, Received

TEXT = "def add(first, second):\n    total = first + second\n    return total\n\n\ndef twice(value):\n    return add("


@pytest.fixture(scope="module")
def loaded():
    """The shipped model on both devices, and a text of it."""
    model, tokenizer = small.load("tiny")
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    return model.float().eval(), copy.deepcopy(model).float().eval().to("cuda"), ids, tokenizer


def same(mine, want, tolerance=1e-4):
    torch.testing.assert_close(
        mine.detach().double().cpu(), want.detach().double().cpu(), atol=tolerance, rtol=tolerance
    )


def test_statistics_of_a_pass_and_of_generated_tokens(loaded):
    here, there, ids, _ = loaded
    found = []
    for model in (here, there):
        with torch.no_grad(), regard.watch(model, probes=[Received(), Entropy()]) as seen:
            logits = model(ids.to(model.device)).logits
        with regard.watch(model, probes=[Entropy()]) as told:
            out = model.generate(ids.to(model.device), max_new_tokens=7, do_sample=False)
        found.append((logits, out, [seen[name] for name in ("received", "entropy")], told["entropy"]))
    (logits, out, seen, told), (mine, out_there, seen_there, told_there) = found
    same(mine, logits, 1e-3)
    assert torch.equal(out_there.cpu(), out)
    for layers, wanted in zip((*seen_there, told_there), (*seen, told), strict=True):
        for layer, want in wanted.items():
            same(torch.as_tensor(layers[layer].value), torch.as_tensor(want.value), 1e-3)


@pytest.mark.parametrize("mechanism", [("softmax", {}), ("window", {"size": 9, "sinks": 2}), ("sigmoid", {})])
def test_swapped(mechanism, loaded):
    here, there, ids, _ = loaded
    name, given = mechanism
    found = []
    for model in (here, there):
        with torch.no_grad(), regard.swap(model, name, **given):
            logits = model(ids.to(model.device)).logits
            found.append((logits, model.generate(ids.to(model.device), max_new_tokens=7, do_sample=False)))
    same(found[1][0], found[0][0], 1e-3)
    assert torch.equal(found[1][1].cpu(), found[0][1])


def test_steered(loaded):
    here, there, ids, _ = loaded
    found = []
    for model in (here, there):
        with torch.no_grad(), regard.steer(model, Highlight([(4, 6)], strength=2.0), ZeroTuning(0.6)):
            found.append(model(ids.to(model.device)).logits)
    same(found[1], found[0], 1e-3)


@pytest.mark.parametrize("policy", ["streaming", "snapkv(window=4)", "h2o", "tova", "knorm"])
def test_compressed(policy, loaded):
    here, there, ids, _ = loaded
    found = []
    for model in (here, there):
        with regard.compress(model, policy, budget=12):
            found.append(model.generate(ids.to(model.device), max_new_tokens=9, do_sample=False))
    assert torch.equal(found[1].cpu(), found[0])


def test_roles_of_heads(loaded):
    here, there, _, tokenizer = loaded
    want, mine = (regard.heads(model, tokenizer, TEXT).table() for model in (here, there))
    for row, found in zip(want, mine, strict=True):
        assert row.keys() == found.keys()
        for name, value in row.items():
            if isinstance(value, float):
                assert found[name] == pytest.approx(value, abs=1e-3)
            elif name != "roles":  # a head at a threshold may fall on either side
                assert found[name] == value


def test_patched_sites(loaded):
    here, there, _, tokenizer = loaded
    base, donor = "def f(a):\n    return a +", "def f(b):\n    return b +"
    found = [regard.patch(model, base, donor, (" a", " b"), tokenizer=tokenizer) for model in (here, there)]
    want, mine = (effects.table() for effects in found)
    for row, other in zip(want, mine, strict=True):
        for name, value in row.items():
            assert other[name] == (pytest.approx(value, abs=2e-3) if isinstance(value, float) else value)
