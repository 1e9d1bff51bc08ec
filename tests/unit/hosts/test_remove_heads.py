"""A model without heads is the model with them silenced, however its keys are shared, in a pass and in decoding."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from regard.analysis.head_importance import only_one, text_loss
from regard.edits.ablation import HeadAblation
from regard.hosts.attach import attach
from regard.hosts.remove_heads import remove_heads

IDS = torch.randint(3, 29, (2, 11), generator=torch.Generator().manual_seed(0))
CASES = {"even": {0: [1, 3, 5], 1: [0, 1]}, "uneven": {0: [0], 1: [2, 3, 4]}, "a whole group": {1: [4, 5]}}


def model(kind=LlamaForCausalLM, config=LlamaConfig):
    torch.manual_seed(3)
    sizes = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3}
    made = kind(config(vocab_size=29, intermediate_size=7, initializer_range=0.5, **sizes)).double().eval()
    for parameter in made.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1.0)
    return made


@torch.no_grad()
@pytest.mark.parametrize("heads", CASES.values(), ids=CASES)
@pytest.mark.parametrize("kinds", [(LlamaForCausalLM, LlamaConfig), (Qwen2ForCausalLM, Qwen2Config)])
def test_removed_is_silenced(heads, kinds):
    whole = model(*kinds)
    less = copy.deepcopy(whole)
    gone = remove_heads(less, heads)
    assert gone == sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in less.parameters())
    with attach(whole, edits=[HeadAblation(heads)]):
        want = whole(IDS).logits
        said = whole.generate(IDS, max_new_tokens=5, do_sample=False, pad_token_id=0)
    torch.testing.assert_close(less(IDS).logits, want, atol=1e-9, rtol=1e-9)
    assert less.generate(IDS, max_new_tokens=5, do_sample=False, pad_token_id=0).equal(said)


def test_what_is_gone_is_counted():
    """Three of six heads of a layer, one of each pair: their rows of q and columns of o, and no keys."""
    assert remove_heads(model(), {0: [1, 3, 5]}) == 3 * 6 * 36 * 2
    assert remove_heads(model(), {1: [4, 5]}) == 2 * 6 * 36 * 2 + 6 * 36 * 2


def test_heads_can_go_twice():
    less = model()
    remove_heads(less, {0: [1, 3, 5]})
    remove_heads(less, {0: [0]})
    once = model()
    remove_heads(once, {0: [0, 1, 3, 5]})
    with torch.no_grad():
        torch.testing.assert_close(less(IDS).logits, once(IDS).logits)


def test_the_loss_with_one_head_left_is_that_of_a_model_that_has_no_other():
    texts, whole = [IDS[0], IDS[1, :7]], model()
    found = only_one(whole, texts, 1)
    less = model()
    remove_heads(less, {1: [0, 1, 3, 4, 5]})
    assert list(found) == [0, 1, 2, 3, 4, 5]
    torch.testing.assert_close(found[2], text_loss(less, texts) - text_loss(whole, texts))


def test_what_cannot_go_is_named():
    with pytest.raises(
        ValueError, match=r"^heads: got \[0, 1, 2, 3, 4, 5\] of layer 1, want some of 0 to 5, and not all"
    ):
        remove_heads(model(), {1: range(6)})
    with pytest.raises(ValueError, match=r"^heads: got layer 2, want layers of "):
        remove_heads(model(), {2: [0]})
