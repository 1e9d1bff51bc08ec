"""GUI-KV by its authors' choices, by hand, and in a model whose states it reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers.cache_utils import DynamicCache

import regard
from regard.core.policy import View, best
from regard.hosts import caches
from regard.policies import GUIKV, AdaKV, SnapKV
from regard.policies.gui_kv import frames_of
from unit.hosts.models import causal, tokens

from .test_policies import view

VALUES = json.loads((Path(__file__).parents[2] / "reference" / "screens.json").read_text())
FRAMES = tuple(map(tuple, VALUES["frames"]))


@pytest.mark.parametrize("case", VALUES["cases"], ids=lambda case: str(case["about"]["alpha"]))
@pytest.mark.parametrize("told", [False, True])
def test_the_tokens_that_the_authors_keep(case, told):
    """With states that are read, and with norms that are given."""
    about, size = case["about"], VALUES["size"]
    q, k, states = (torch.tensor(case[name]) / 8 for name in ("q", "k", "states"))
    norms = states[FRAMES[-1][0] : FRAMES[-1][1]].norm(dim=1)
    policy = GUIKV(
        window=about["window_size"],
        kernel=about["kernel_size"],
        pooling=about.get("pooling", "avgpool").removesuffix("pool"),
        frames=FRAMES,
        alpha=about["alpha"],
        tau=about["temperature"],
        saliency=tuple(norms.tolist()) if told else (),
    )
    n = len(q)
    common = (k, k, torch.arange(n), n, q.shape[1] ** -0.5)
    stats = {name: torch.full((n,), fill) for name, fill in policy.keeps.items()}
    policy.observe(View(0, 1, 0, 1, q[None], *common, stats=stats, states=states))
    assert bool(stats) != told
    one = View(0, 1, 0, 1, q[None, -policy.window :], *common, stats=stats, budget=size)
    kept = best(policy.scores(one), size).tolist()
    assert kept[-policy.window :] == list(range(n - policy.window, n))
    assert kept[: -policy.window] == case["kept"]


def norms_of(model, ids, layer):
    """The norms of what a layer's attention is given."""
    with torch.no_grad():
        states = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[layer]
        gpt = model.config.model_type == "gpt2"
        norm = model.transformer.h[layer].ln_1 if gpt else model.model.layers[layer].input_layernorm
        return norm(states)[0].norm(dim=1)


@pytest.mark.parametrize("name", ["Llama", "GPT2"])
@pytest.mark.parametrize("chunks", [[17], [5, 9, 3]])
def test_norms_are_those_of_what_the_models_attention_is_given(name, chunks):
    """GPT-2 gives them to its attention by place, Llama by name."""
    model, ids = causal(name), tokens(1, 17)
    policy = GUIKV(window=2, frames=((1, 5), (6, 15)), rank=2)
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), regard.compress(model, policy, 17) as session:
        for part in ids.split(chunks, 1):
            model(input_ids=part, **caches.given(model, cache))
    for layer, store in session.store.layers.items():
        for head in range(store.kv_heads):
            torch.testing.assert_close(store.held(0, head).stats["state_norm"], norms_of(model, ids, layer))
    assert not [hook for module in model.modules() for hook in module._forward_pre_hooks]


def test_a_padded_batch_keeps_what_its_texts_keep_alone():
    model, ids = causal("Llama"), tokens(1, 17)
    policy = AdaKV(of=GUIKV(window=2, frames=((1, 5), (6, 15)), rank=2))
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.int64), ids], 1)
    kept = []
    for given, mask in ((ids, torch.ones(1, 17)), (padded, torch.arange(21)[None] >= 4)):
        places = (mask.long().cumsum(1) - 1).clamp(min=0)
        with torch.no_grad(), regard.compress(model, policy, 9) as session:
            model(input_ids=given, attention_mask=mask.long(), position_ids=places, use_cache=True)
        kept.append([[at.tolist() for at in session.store.kept(layer)] for layer in (0, 1)])
    assert kept[0] == kept[1]


def test_a_louder_frame_is_kept_more_of():
    """With a large α the states decide: the tokens of the largest norms in the current frame stay."""
    model, ids = causal("Llama"), tokens(1, 17)
    loudest = [(6 + norms_of(model, ids, layer)[6:15].topk(2).indices).tolist() for layer in (0, 1)]
    policy = GUIKV(window=2, frames=((1, 5), (6, 15)), rank=2, alpha=1e4, tau=0.1)
    with torch.no_grad(), regard.compress(model, policy, 6) as session:
        model(input_ids=ids, use_cache=True)
    for layer in (0, 1):
        for at in session.store.kept(layer):
            assert set(loudest[layer]) <= set(at.tolist())


def test_frames_are_the_runs_of_their_token():
    assert frames_of(torch.tensor([7, 7, 1, 2, 7, 3, 7, 7, 7]), 7) == ((0, 2), (4, 5), (6, 9))
    assert frames_of(torch.tensor([1, 2]), 7) == ()


@pytest.mark.parametrize("basis", ["first", "pivoted", "svd"])
def test_gui_kv_zeroes_what_the_current_frame_repeats(basis):
    one = view(t=17, rows=2, budget=9)
    one.keys[3:6] = one.keys[9:12] * torch.tensor([[2.0], [-1.0], [0.5]])  # of the current frame, but for its length
    policy = GUIKV(window=2, kernel=1, frames=((2, 8), (9, 12)), rank=3, basis=basis, alpha=0.0)
    found, plain = policy.scores(one), 2 * SnapKV(window=2, kernel=1).scores(one)  # the sum of two rows
    told = [j for j in range(17) if found[j] != plain[j]]
    assert len(told) == 2  # int((1 − 9/17) · 6)
    assert set(told) < {3, 4, 5}
    assert found[told].tolist() == [0, 0]
    salient = GUIKV(window=2, kernel=1, frames=((9, 12),), saliency=(1.0, 2.0, 3.0), alpha=1.5, tau=0.5)
    z = torch.tensor([-1.0, 0.0, 1.0]) / 0.5  # the unbiased deviation is 1
    torch.testing.assert_close((salient.scores(one) - plain)[9:12], 1.5 * z.softmax(0))
    assert torch.equal(salient.scores(one)[:9], plain[:9])
    alike = GUIKV(window=2, kernel=1, frames=((9, 12),), saliency=(4.0, 4.0, 4.0))
    torch.testing.assert_close((alike.scores(one) - plain)[9:12], torch.full((3,), 2 / 3))
    assert (alike.alpha, alike.tau, alike.rank, GUIKV().window) == (2.0, 3.5, 32, 8)  # the paper's


def test_gui_kv_is_told_what_it_cannot_do():
    for about, message in (
        ({"frames": ((3, 2),)}, "frames: got"),
        ({"frames": ((0, 3), (2, 5))}, "frames: got"),
        ({"basis": "qr"}, "one of first, pivoted, svd"),
        ({"frames": ((0, 3),), "saliency": (1.0,)}, "saliency: got 1 norms"),
    ):
        with pytest.raises(ValueError, match=message):
            GUIKV(**about)
    with pytest.raises(ValueError, match="rank: got 32, for keys of 5 numbers, want at most 4"):
        GUIKV(frames=((0, 3), (3, 8)), window=1, alpha=0.0).scores(view(t=11, budget=4))
