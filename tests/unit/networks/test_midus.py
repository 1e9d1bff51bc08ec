"""Memories read what a search over all slots finds, and a deeper model begins as the one that it is made of."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from regard.core.layout import Layout
from regard.hosts.memories import deepened, load
from regard.networks import LM, Config
from regard.networks.midus import HeadMemory, Midus, duplicated, upscaled
from unit.hosts.models import causal, tokens


def test_the_best_slots_of_all_are_read():
    torch.manual_seed(0)
    memory, x = HeadMemory(15, 3, 4, keys=5, top=4, latent=7), torch.randn(2, 6, 12)
    got = memory(x).detach()
    assert got.shape == (2, 6, 15)
    memory.requires_grad_(False)
    for b, t, h in ((0, 0, 0), (1, 5, 2), (0, 3, 1)):
        q = x[b, t, 4 * h : 4 * h + 4] @ memory.query[h]
        scores = {
            (i, j): float(q[:2] @ memory.keys[0, h, i] + q[2:] @ memory.keys[1, h, j])
            for i in range(5)
            for j in range(5)
        }
        best = sorted(scores, key=lambda at: -scores[at])[:4]
        shares = torch.tensor([scores[at] for at in best]).softmax(0)
        latent = sum(share * memory.bank[5 * i + j] for share, (i, j) in zip(shares, best, strict=True))
        torch.testing.assert_close(got[b, t, 5 * h : 5 * h + 5], latent @ memory.expand[h], atol=1e-5, rtol=1e-4)


def test_a_deeper_model_says_the_same_at_first_for_fewer_parameters():
    model, ids = LM(Config(11, width=16, layers="softmax, gla, softmax", heads=2), seed=1), torch.arange(11)[None]
    found, copies = upscaled(model, [0, 2], keys=4, top=3, latent=5), duplicated(model, [0, 2])
    assert [type(block.attention.mechanism).__name__ for block in found.layers] == [
        *["Softmax"] * 2,
        type(model.layers[1].attention.mechanism).__name__,
        *["Softmax"] * 2,
    ]
    for one in (found, copies):
        assert (one(ids) - model(ids)).abs().max() < 1e-6
        assert torch.equal(one.layers[1].attention.projection.q.weight, model.layers[0].attention.projection.q.weight)
    added, more = (one.parameter_count - model.parameter_count for one in (found, copies))
    assert added == 2 * (3 * 16**2 + 16 + 2 * 8 * 8 + 2 * 2 * 4 * 4 + 16 * 5 + 2 * 5 * 8)
    assert added < 0.5 * more
    found.loss(ids).backward()
    assert found.layers[1].attention.projection.out.expand.grad.abs().max() > 0
    assert 0 < found.slots_read(ids) <= 1


def test_what_cannot_be_is_refused():
    config = Config(11, width=16, layers="softmax*2", heads=2)
    with pytest.raises(ValueError, match=r"memories: got \[2\], want some of 0 to 1"):
        Midus(config, [2])
    with pytest.raises(ValueError, match=r"after: got \[\], want some of 0 to 1"):
        upscaled(LM(config, seed=0), [])
    with pytest.raises(ValueError, match="top: got 10, want 1 to the 9 slots"):
        HeadMemory(12, 3, keys=3, top=10)
    with pytest.raises(ValueError, match="width: got 10, want a multiple of the 3 heads"):
        HeadMemory(10, 3)
    with pytest.raises(ValueError, match="size: got 3, want an even number"):
        HeadMemory(9, 3)
    with pytest.raises(ValueError, match="block 1, whose projection is Latent"):
        Midus(replace(config, projection="latent(rank=8, plain=4, rotary=2, value=6)"), [1])


def test_memories_are_asked_by_the_heads_outputs_and_added_to_what_came_in():
    """M(x) = x + memory(z): with all of the text's maps at hand, z is A v, and no network follows."""
    torch.manual_seed(1)
    model, ids = Midus(Config(11, width=16, layers="softmax", heads=2), [0], 4, 3, 5, seed=2), torch.arange(7)[None]
    block = model.layers[0]
    x = model.embed(ids)
    q, k, v, _ = block.attention.inputs(block.norms[0](x), Layout(causal=True))
    z = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    want = model.read(x + block.attention.projection.out(z))
    torch.testing.assert_close(model(ids), want)


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Gemma2"])
def test_transformers_models_are_made_deeper(name, tmp_path):
    model, ids = causal(name), tokens(2, 9)
    found = deepened(model, [0, 1], keys=3, top=2, latent=5)
    assert type(found) is type(model)
    assert found.config.num_hidden_layers == 4
    with torch.no_grad():
        torch.testing.assert_close(found(input_ids=ids).logits, model(input_ids=ids).logits)
    before, attention = model.model.layers[0].self_attn, found.model.layers[1].self_attn
    assert [block.self_attn.layer_idx for block in found.model.layers] == [0, 1, 2, 3]
    assert torch.equal(attention.q_proj.weight, before.q_proj.weight)
    loss = found(input_ids=ids, labels=ids).loss
    loss.backward()
    assert attention.o_proj.expand.grad.abs().max() > 0
    with torch.no_grad():
        for place in (1, 3):
            found.model.layers[place].self_attn.o_proj.expand.normal_()
    more = found.generate(input_ids=ids[:1], max_new_tokens=3, do_sample=False)
    with torch.no_grad():
        assert (found(input_ids=ids).logits - model(input_ids=ids).logits).abs().max() > 1e-3
        for at in range(9, more.shape[1]):
            assert found(input_ids=more[:, :at], use_cache=False).logits[0, -1].argmax() == more[0, at]
    found.save_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path)(input_ids=ids).logits, found(input_ids=ids).logits)
    assert model.config.num_hidden_layers == 2


def test_a_memory_block_of_a_transformers_model_by_hand():
    """What its heads give asks the memory, and what it says is added to what came in."""
    model, ids = causal("Llama"), tokens(1, 7)
    found = deepened(model, [0], keys=3, top=2, latent=5)
    block, heard = found.model.layers[1], {}
    with torch.no_grad():
        block.self_attn.o_proj.expand.normal_()
        block.self_attn.o_proj.register_forward_pre_hook(lambda _, given: heard.update(z=given[0]))
        states = found(input_ids=ids, output_hidden_states=True).hidden_states
        torch.testing.assert_close(states[2], states[1] + block.self_attn.o_proj(heard["z"]))


def test_transformers_models_without_such_blocks_are_refused(tmp_path):
    for name in ("GPT2", "GptOss"):
        with pytest.raises(ValueError, match="blocks with a plain mlp, and attention with an o_proj"):
            deepened(causal(name), [0])
    with pytest.raises(ValueError, match=r"after: got \[0, 0\], want some of 0 to 1, each once"):
        deepened(causal("Llama"), [0, 0])
    causal("Llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="regard_memories"):
        load(tmp_path)
