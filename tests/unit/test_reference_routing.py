"""Attention that chooses its keys, against what published code computes: see tests/reference/routing.py."""

import json
from pathlib import Path

import pytest
import torch

from regard.core.layout import Layout
from regard.mechanisms.sparse.dynamic_mask import DynamicMask
from regard.mechanisms.sparse.learned_nsa import LearnedNativeSparse
from regard.mechanisms.sparse.moba import MoBA
from regard.mechanisms.sparse.mosa import ExpertChoice
from regard.mechanisms.sparse.nsa import NativeSparse
from regard.mechanisms.sparse.sparge import Sparge
from regard.patterns.choice import Rows
from regard.routers.shares import SCOPES, ScaledShare

VALUES = json.loads((Path(__file__).parents[1] / "reference" / "routing.json").read_text())
NATIVE = json.loads((Path(__file__).parents[1] / "reference" / "native.json").read_text())
CAUSAL = Layout(causal=True)


def given(of: str, *names: str) -> list[torch.Tensor]:
    return [torch.tensor(VALUES[of][name]) for name in names]


def near(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, atol=2e-6, rtol=2e-5)


def test_moba_of_packed_sequences():
    q, k, v, out = given("moba", "q", "k", "v", "out")
    segments = (torch.arange(23) >= 9).long()[None]
    near(MoBA(4, 3)(q, k, v, Layout(causal=True, segments=segments)), out)


@pytest.mark.parametrize("branch", ["compressed", "selected"])
def test_native_sparse_branches(branch):
    q, k, v, out = given("nsa", "q", "k", "v", branch)
    gates = {name: torch.full((1, 16, 23), float(name == branch)) for name in NativeSparse.signals}
    near(NativeSparse(3, 4, 7)(q, k, v, CAUSAL, **gates), out)


def test_native_sparse_chooses_the_same_blocks():
    q, k, index = given("nsa", "q", "k", "index")
    wanted = torch.zeros(1, 1, 23, 9, dtype=torch.bool).scatter_(3, index.masked_fill(index < 0, 8), True)[..., :8]
    assert torch.equal(NativeSparse(3, 4, 7).choice(q, k, True).mask, wanted.expand(-1, 16, -1, -1))


def learned() -> tuple[LearnedNativeSparse, dict[str, torch.Tensor]]:
    """Native sparse attention with the networks of the reference, and its inputs."""
    made = LearnedNativeSparse(6, block=8, budget=4, window=7, length=4, stride=2)
    weights = {name: torch.tensor(NATIVE[name]) for name in made.state_dict()}
    made.load_state_dict(weights)
    names = "q", "k", "v", *(name for name in made.signals if name not in NativeSparse.signals)
    return made, {name: torch.tensor(NATIVE[name]) for name in names}


@pytest.mark.parametrize("branch", NativeSparse.signals)
def test_native_sparse_with_learned_blocks(branch):
    made, given = learned()
    gates = {name: torch.full((1, 4, 37), float(name == branch)) for name in NativeSparse.signals}
    near(made(layout=CAUSAL, **given, **gates), torch.tensor(NATIVE[f"{branch} out"]))


def test_learned_blocks_choose_the_same():
    made, given = learned()
    places = torch.arange(37)[None]
    rows = Rows(places, 37, 8)
    short = made.compressed(given["compressed_key"], given["compressed_value"])[0]
    index = torch.tensor(NATIVE["index"])
    wanted = torch.zeros(1, 2, 37, 6, dtype=torch.bool).scatter_(3, index.masked_fill(index < 0, 5), True)[..., :5]
    assert torch.equal(made.chosen(made.turned(given["q"], places), short, rows).mask, wanted.repeat_interleave(2, 1))
    assert wanted.sum(-1).max() == 4 < 5


def test_dynamic_mask_of_doge():
    q, k, v, score, out = given("dynamic_mask", "q", "k", "v", "score", "out")
    near(DynamicMask(5)(q, k, v, CAUSAL, score=score), out)


@pytest.mark.parametrize("scope", SCOPES)
def test_shares_of_scaled_scores(scope):
    gate, wanted = given("video", "gate", scope)
    rows = Rows(torch.arange(11)[None], 12, 2, causal=False)
    assert torch.equal(ScaledShare(2, 0.3, scope).choose(gate, rows).mask, wanted)


def test_sparge_takes_the_same_blocks():
    q, k, wanted = given("sparge", "q", "k", "map")
    router = Sparge(16, 16, 0.8, 0.5).router
    found = router(q, k, router.rows(torch.arange(-16, 48)[None], 48, False)).mask
    assert torch.equal(found, wanted)
    assert 0 < wanted.double().mean() < 1


@pytest.mark.parametrize("first", [0, 1])
def test_heads_that_choose_their_tokens(first):
    q, k, v, route, out, after = given("mosa", *(f"{name}{first}" for name in ("q", "k", "v", "route", "out", "O")))
    heads = ExpertChoice(4, bool(first))(q, k, v, CAUSAL, route=route)
    near(torch.einsum("betj,eji->bti", heads, after), out)
