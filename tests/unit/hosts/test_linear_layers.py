"""Layers of ours in the place of a model's own attention: what they are made of, their caches, and their files."""

import copy

import pytest
import torch
import transformers

from regard.hosts.linear_layers import LayerPlan, converted, load, real_among

from .models import causal

IDS = torch.randint(3, 29, (2, 11), generator=torch.Generator().manual_seed(0))
PADDED = torch.arange(11) >= torch.tensor([[0], [4]])


def made(name, to, layers=(0, 1), **more):
    model = causal(name)
    changed = copy.deepcopy(model)
    converted(changed, LayerPlan(to, layers, **more))
    return model.eval(), changed.eval()


@torch.no_grad()
def written(model, **given):
    return model.generate(
        IDS, attention_mask=PADDED.long(), max_new_tokens=7, do_sample=False, eos_token_id=None, **given
    )


@pytest.mark.parametrize("layers", [(0,), (1,), (0, 1)])
def test_softmax_layers_of_ours_are_the_model_as_it_was(layers):
    model, changed = made("Llama", "softmax", layers)
    with torch.no_grad():
        torch.testing.assert_close(changed(IDS).logits, model(IDS).logits, atol=1e-5, rtol=1e-5)
        got, want = (m(IDS, attention_mask=PADDED.long()).logits[PADDED] for m in (changed, model))
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert torch.equal(written(changed), written(model))
    assert torch.equal(written(changed, num_beams=3), written(model, num_beams=3))


@pytest.mark.parametrize("to", ["gated_deltanet", "window(size=5)", "linear"])
def test_generation_from_the_state_is_generation_without_a_cache(to):
    _, changed = made("Llama", to, window=4, layers=(1,))
    assert torch.equal(written(changed), written(changed, use_cache=False))
    cache = changed(IDS, use_cache=True).past_key_values
    assert cache.get_seq_length() == 11
    if to == "gated_deltanet":
        before = cache.layers[1].state.bytes
        changed(IDS, past_key_values=cache)
        assert cache.layers[1].state.bytes == before


def test_several_calls_are_one():
    _, changed = made("Llama", "gated_deltanet")
    with torch.no_grad():
        want = changed(IDS).logits
        cache = transformers.DynamicCache()
        parts = [changed(part, past_key_values=cache).logits for part in IDS.split([4, 1, 6], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), want, atol=1e-5, rtol=1e-5)


def test_what_is_taken_over():
    model, changed = made("Qwen3", "gated_deltanet", (1,), values=2)
    old, new = model.model.layers[1].self_attn, changed.model.layers[1].self_attn.attention
    assert torch.equal(new.projection.q.weight, old.q_proj.weight)
    assert new.projection.v.weight.shape[0] == 2 * old.v_proj.weight.shape[0]
    assert torch.equal(new.convolution.weight.sum(0), torch.ones(new.channels))
    _, plain = made("Llama", "kimi_delta", (0,))
    assert plain.model.layers[0].self_attn.attention.projection.out.weight.shape == (24, 24)


def test_a_model_is_read_as_it_was_written(tmp_path):
    _, changed = made("Llama", "gated_deltanet", (1,), window=6)
    changed.save_pretrained(tmp_path)
    read = load(tmp_path)
    with torch.no_grad():
        assert torch.equal(read(IDS).logits, changed(IDS).logits)
    causal("Llama").save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="regard_layers"):
        load(tmp_path / "plain")


def test_refusals():
    for plan in ((), (0, 0), (-1,)):
        with pytest.raises(ValueError, match="layers: got"):
            LayerPlan("gla", plan)
    with pytest.raises(ValueError, match="layers: got \\[2\\]"):
        converted(causal("Llama"), LayerPlan("gla", (0, 2)))
    with pytest.raises(ValueError, match="q_proj"):
        converted(causal("GPT2"), LayerPlan("gla", (0,)))
    with pytest.raises(ValueError, match="queries, keys and values"):
        converted(causal("Llama"), LayerPlan("mamba", (0,)))
    _, changed = made("Llama", "gated_deltanet")
    with pytest.raises(ValueError, match="a new DynamicCache"):
        changed(IDS, past_key_values=transformers.StaticCache(changed.config, 32))
    cache = changed(IDS, use_cache=True).past_key_values
    with pytest.raises(RuntimeError, match="crop: got 1 tokens"):
        cache.crop(-1)


def test_padding_is_what_does_not_see_itself():
    seen = torch.ones(2, 1, 3, 5, dtype=torch.bool)
    assert real_among(seen, 3) is None
    seen[1, 0, 0, 2] = False
    want = torch.tensor([[True, True, True], [False, True, True]])
    assert torch.equal(real_among(seen, 3), want)
    assert torch.equal(real_among(torch.zeros(2, 1, 3, 5).masked_fill(~seen, -1e9), 3), want)
    assert torch.equal(real_among(want.long(), 3), want)
