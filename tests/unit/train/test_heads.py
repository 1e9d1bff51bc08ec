"""What is said of heads, on a small untrained model."""

import pytest
import torch
from transformers import LlamaForCausalLM

from regard.train.tiny.heads import attention_maps, induction_scores, random_repeats, sink_mass, without_head
from regard.train.tiny.make import config


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(config(vocabulary=31, layers=2, width=24, heads=3)).eval()


def test_maps_are_causal_rows_that_sum_to_one(model):
    maps = attention_maps(model, torch.randint(31, (5, 13)))
    assert maps.shape == (2, 5, 3, 13, 13)
    assert torch.allclose(maps.sum(-1), torch.ones(2, 5, 3, 13), atol=1e-6)
    assert maps.triu(1).abs().max() == 0
    assert model.config._attn_implementation == "sdpa"


def test_scores_read_the_right_entries(model):
    ids, _ = random_repeats(model, 7, 5, seed=3)
    maps = attention_maps(model, ids)
    by_hand = sum(maps[:, :, :, 1 + 7 + i, 1 + i + 1] for i in range(6)).mean(1) / 6
    assert ids[:, 1:8].equal(ids[:, 8:])
    assert torch.allclose(induction_scores(model, 7, 5, seed=3), by_hand, atol=1e-6)
    assert torch.allclose(sink_mass(model, ids), maps[:, :, :, 1:, 0].mean((1, 3)))


def test_a_head_is_gone_inside_and_back_afterwards(model):
    ids = torch.randint(31, (3, 11))
    whole = model(input_ids=ids).logits
    with without_head(model, 1, 2):
        assert not torch.allclose(model(input_ids=ids).logits, whole)
    assert torch.equal(model(input_ids=ids).logits, whole)


def test_a_head_is_back_after_an_error(model):
    with pytest.raises(KeyError), without_head(model, 1, 2):
        raise KeyError
    assert not model.model.layers[1].self_attn.o_proj._forward_pre_hooks


def test_no_head_left_means_no_attention(model):
    ids = torch.randint(31, (3, 11))
    other = ids.roll(1, dims=1)
    other[:, -1] = ids[:, -1]
    outputs = []
    for given in (ids, other):
        with without_head(model, 0, 0), without_head(model, 0, 1), without_head(model, 0, 2):
            outputs.append(model(input_ids=given, output_hidden_states=True).hidden_states[1][:, -1])
    assert torch.equal(*outputs)
