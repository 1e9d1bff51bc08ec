"""Attention layers that are out: nothing is computed or kept for them, and all else is as it was."""

from __future__ import annotations

import pytest
import torch
from transformers.cache_utils import DynamicCache

import regard
from regard.analysis.gate_norm import couplings, gate_norms
from regard.analysis.prune import loss_of, losses_without
from regard.hosts import caches
from regard.hosts.prune import NoAttention, attention_layers
from regard.laws.small import llama, tokens

LAYERS, N = 3, 11


def by_definition(model, ids, out):
    """The logits of a Llama whose layers ``out`` are feed-forward networks alone, written down once more."""
    inner = model.model
    x = inner.embed_tokens(ids)
    rotary = inner.rotary_emb(x, torch.arange(ids.shape[1])[None])
    seen = torch.ones(ids.shape[1], ids.shape[1]).tril().log()[None, None]
    for index, block in enumerate(inner.layers):
        if index not in out:
            x = x + block.self_attn(block.input_layernorm(x), position_embeddings=rotary, attention_mask=seen)[0]
        x = x + block.mlp(block.post_attention_layernorm(x))
    return model.lm_head(inner.norm(x))


@pytest.mark.parametrize("out", [[0], [1], [0, 2]])
@torch.no_grad()
def test_the_other_layers_are_computed_as_before(out):
    model, ids = llama(LAYERS), tokens(2, N)
    whole, want = model(input_ids=ids).logits, by_definition(model, ids, out)
    assert (whole - want).abs().max() > 1e-3
    with regard.prune(model, out) as pruned:
        assert pruned.layers == tuple(out)
        torch.testing.assert_close(model(input_ids=ids).logits, want)
        cache, parts = DynamicCache(config=model.config), []
        for at, n in ((0, 5), (5, 1), (6, 4), (10, 1)):
            parts.append(model(input_ids=ids[:, at : at + n], **caches.given(model, cache)).logits)
        torch.testing.assert_close(torch.cat(parts, 1), want)
        assert cache.get_seq_length() == N
        taken = [layer.keys.nbytes + layer.values.nbytes for layer in cache.layers]
        assert [size == 2 * N for size in taken] == [layer in out for layer in range(LAYERS)]
    assert torch.equal(model(input_ids=ids).logits, whole)


@torch.no_grad()
def test_padding_beams_and_a_cache_that_forgets():
    model, ids = llama(LAYERS), tokens(1, N)
    with regard.prune(model, [0]):
        alone = model(input_ids=ids).logits
        padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
        mask = (torch.arange(N + 3) >= 3).long()[None]
        places = (mask.cumsum(1) - 1).clamp(min=0)
        both = model(input_ids=padded, attention_mask=mask, position_ids=places).logits
        torch.testing.assert_close(both[:, 3:], alone, atol=1e-5, rtol=1e-4)
        about = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        want = model.generate(ids, num_beams=2, **about)
        with regard.compress(model, "snapkv(window=2)", N + 9):
            assert torch.equal(model.generate(ids, num_beams=2, **about), want)
        with regard.compress(model, "snapkv(window=2)", 5) as session:
            model.generate(ids, **about)
            assert {len(at) for layer in (1, 2) for at in session.store.kept(layer)} == {5}
            assert 0 not in session.store.layers


def test_the_lowest_go_and_come_back():
    model, texts = llama(LAYERS), list(tokens(2, N))
    pruned = regard.prune(model, share=0.4)
    norms = gate_norms(model)
    assert pruned.layers == (norms.index(min(norms)),)
    losses = losses_without(model, texts)
    assert len(set(losses)) == LAYERS
    with regard.prune(model, "loss", share=0.67, texts=texts) as pruned:
        assert pruned.layers == tuple(sorted(sorted(range(LAYERS), key=losses.__getitem__)[:2]))
        assert pruned.why == pytest.approx(losses)
        assert sum(isinstance(module, NoAttention) for _, _, module in attention_layers(model)) == 2
        with pytest.raises(RuntimeError, match="pruned already"):
            regard.prune(model, pruned.layers).install()
    assert not any(isinstance(module, NoAttention) for _, _, module in attention_layers(model))
    logs = model(input_ids=texts[0][None]).logits.log_softmax(-1)[0, :-1]
    assert loss_of(model, texts[:1]) == pytest.approx(-logs.gather(1, texts[0][1:, None]).mean().item(), rel=1e-5)


def test_norms_of_heads_by_their_definition():
    draw = torch.Generator().manual_seed(0)
    q, k = torch.randn(6 * 5, 7, generator=draw), torch.randn(2 * 5, 7, generator=draw)
    want = [(q.view(6, 5, 7)[h].T @ k.view(2, 5, 7)[h // 3]).norm() for h in range(6)]
    torch.testing.assert_close(couplings(q, k, 6, 2), torch.stack(want))
    model = llama(LAYERS)
    block = model.model.layers[1]
    plain = gate_norms(model, "plain")
    with torch.no_grad():
        block.input_layernorm.weight.fill_(3.0)
    assert gate_norms(model, "plain") == pytest.approx(plain)
    assert gate_norms(model)[1] == pytest.approx(9 * plain[1])
    relative = plain[1] / (block.self_attn.q_proj.weight.norm() * block.self_attn.k_proj.weight.norm()).item()
    assert gate_norms(model, "relative")[1] == pytest.approx(relative)


def test_what_cannot_be_is_told():
    model = llama(LAYERS)
    for given, error, message in (
        ({"by": "gatenorm"}, LookupError, "by: got 'gatenorm', want one of gate_norm, loss"),
        ({"by": "loss"}, ValueError, "texts: got none"),
        ({"by": []}, ValueError, "layers: got \\[\\] of 3 layers"),
        ({"by": range(3)}, ValueError, "and not all"),
        ({"share": 0.1}, ValueError, "layers: got"),
    ):
        with pytest.raises(error, match=message):
            regard.prune(model, **given)
    with pytest.raises(ValueError, match="scale"):
        gate_norms(model, "log")
