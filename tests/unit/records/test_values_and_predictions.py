"""What a record keeps beside A: how long values are, and what the model expected next."""

from __future__ import annotations

import pytest
import torch

from regard.hosts import small
from regard.records.predictions import predictions, texts
from regard.records.record import record
from unit.hosts.models import bert, causal, eager, tokens
from unit.hosts.test_own import model as own
from unit.hosts.test_own import tokens as own_tokens

N = 37


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "GPT2"])
def test_the_norms_are_those_of_the_values_that_heads_mix(name):
    """What the value projection gives, a row for each kv head."""
    model, ids, heard = causal(name), tokens(1, N), []
    for block in model.base_model.layers if name != "GPT2" else model.base_model.h:
        if name == "GPT2":
            block.attn.c_attn.register_forward_hook(lambda m, i, out: heard.append(out[0, :, 48:].unflatten(1, (3, 8))))
        else:
            block.self_attn.v_proj.register_forward_hook(lambda m, i, out: heard.append(out[0].unflatten(1, (3, 4))))
    seen = record(model, None, ids)
    for layer, values in enumerate(heard[:2]):
        norms = seen.arrays[f"{layer}/value_norms"]
        torch.testing.assert_close(norms, values.norm(dim=2).T)
        heads = seen.layers[layer]["heads"]
        every = norms.repeat_interleave(heads // len(norms), 0)  # neighbouring heads share a kv head
        torch.testing.assert_close(torch.stack([seen.value_norms(layer, head) for head in range(heads)]), every)


def test_a_layer_that_is_not_linear_in_its_values_has_no_norms():
    seen = record(own(), None, own_tokens(N)[0])
    there = [f"{layer['index']}/value_norms" in seen.arrays for layer in seen.layers]
    assert there == [not layer["shares"] for layer in seen.layers]
    with pytest.raises(ValueError, match="of whose values nothing was kept"):
        seen.value_norms(there.index(False), 0)


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "GPT2"])
def test_predictions_are_the_models_own(name):
    model, ids = causal(name), tokens(1, N)
    if name == "Gemma2":
        assert model.config.final_logit_softcapping
    chances = eager(model, input_ids=ids).logits[0].double().softmax(-1)
    seen = record(model, None, ids, predict=3)
    best = chances.topk(3)
    torch.testing.assert_close(seen.arrays["next/probabilities"].double(), best.values, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(chances.gather(1, seen.arrays["next/ids"].long()), best.values, atol=1e-4, rtol=1e-3)
    came = seen.arrays["next/log_probability"]
    assert came[0].isnan()
    torch.testing.assert_close(came[1:].double().exp(), chances[torch.arange(N - 1), ids[0, 1:]], atol=1e-4, rtol=1e-3)


def test_blocks_of_rows_give_what_all_rows_give(monkeypatch):
    logits = torch.randn(11, 7, generator=torch.Generator().manual_seed(0))
    ids = [3, 1, 4, 1, 5, 2, 6, 5, 3, 5, 0]
    whole = predictions(lambda rows: logits[rows], ids, 2, 7)
    monkeypatch.setattr("regard.records.predictions.BLOCK", 7 * 3)
    parts = predictions(lambda rows: logits[rows], ids, 2, 7)
    for one, other in zip(vars(whole).values(), vars(parts).values(), strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)
    came = logits.log_softmax(1)[torch.arange(10), torch.tensor(ids)[1:]]
    torch.testing.assert_close(whole.log_probability[1:], came)


def test_a_model_whose_logits_are_made_otherwise_says_nothing(monkeypatch):
    """Logits that the output embedding does not give are not guessed."""
    model = causal("Llama")
    model.lm_head.register_forward_hook(lambda m, i, out: out.roll(1, -1) if out.dim() == 3 else None)
    assert "next/ids" not in record(model, None, tokens(1, N)).arrays


@pytest.mark.parametrize("make", [bert, lambda: causal("Llama")])
def test_none_are_kept_where_there_are_none_or_none_are_wanted(make):
    seen = record(make(), None, tokens(1, N), predict=0 if make is not bert else 5)
    assert not any(name.startswith("next/") for name in seen.arrays)
    assert "vocabulary" not in seen.tokens


def test_texts_of_tokens_have_their_spaces():
    _, tokenizer = small.load("tiny")
    ids = tokenizer("return x", add_special_tokens=False)["input_ids"]
    found = texts(tokenizer, ids)
    assert [found[str(i)] for i in ids[1:]] == ["turn", " x"]
