"""Tuning for longer texts: what is trained, what it is merged into, what is refused, and that a run resumes."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from regard.train.extend import Extension, extend, interpolated
from regard.train.fit import Recipe
from regard.train.tiny.make import config

STREAM = torch.randint(60, (500,), generator=torch.Generator().manual_seed(0))


def model():
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(config(64, layers=2, width=32, heads=4)).eval()


def logits(m, ids):
    with torch.no_grad():
        return m(input_ids=ids, use_cache=False).logits


def test_positions_are_divided():
    """Every second token of a text of twice the length is turned as far as the text itself."""
    plain, longer = model(), interpolated(model(), 2)
    x = torch.zeros(1, 1, 32)
    few, many = torch.arange(10)[None], 2 * torch.arange(10)[None]
    for a, b in zip(plain.model.rotary_emb(x, few), longer.model.rotary_emb(x, many), strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.allclose(logits(plain, STREAM[None, :20]), logits(longer, STREAM[None, :20]))


@pytest.mark.parametrize("mechanism", [None, "sinklora(heads=4, size=16, sinks=2)"])
def test_what_is_tuned_is_a_plain_model_that_learned(mechanism, tmp_path):
    begun, losses = model(), []
    extension, recipe = Extension(1, 64, mechanism, rank=2), Recipe(8, 1e-2, seed=3)
    tuned = extend(begun, STREAM, extension, recipe, tmp_path, report=lambda step, loss: losses.append(loss))
    assert type(tuned) is type(begun)
    assert {name for name, _ in tuned.named_parameters()} == {name for name, _ in begun.named_parameters()}
    changed = {
        n for (n, a), b in zip(tuned.named_parameters(), begun.parameters(), strict=True) if not torch.equal(a, b)
    }
    assert not any("mlp" in name for name in changed)
    for part in ("q_proj", "k_proj", "v_proj", "o_proj", "norm", "embed_tokens"):
        assert any(part in name for name in changed), part
    assert min(losses[-3:]) < losses[0]
    again = extend(begun, STREAM, extension, recipe, tmp_path)  # finished: read from the checkpoint, not trained
    torch.testing.assert_close(logits(again, STREAM[None, :30]), logits(tuned, STREAM[None, :30]))


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="stream"):
        extend(model(), STREAM[:50], Extension(2, 64), Recipe(1))
    with pytest.raises(ValueError, match="positions"):
        interpolated(GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=9)), 2)
    with pytest.raises(ValueError, match="factor"):
        Extension(0.5)
