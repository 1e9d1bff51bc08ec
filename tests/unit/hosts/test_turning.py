"""Keys turned further, as models turn them; models whose turns cannot be added are refused by name."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicCache

import regard
from regard.hosts.turning import Turning
from unit.hosts.models import causal


def scaled(**rope):
    sizes = {"hidden_size": 24, "intermediate_size": 31, "num_hidden_layers": 1, "num_attention_heads": 3}
    config = LlamaConfig(
        **sizes, vocab_size=29, max_position_embeddings=64, rope_parameters={"rope_theta": 1e4, **rope}
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", ["plain", "yarn"])
def test_a_turn_is_by_hand_what_it_says(kind, dtype):
    more = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16} if kind == "yarn" else {}
    turning = Turning(scaled(rope_type="default") if not more else scaled(**more))
    rates = turning.module.inv_freq.double()
    keys, steps = torch.randn(5, 8).to(dtype), torch.tensor([0, 3, 70, 1, 9])
    angle = steps[:, None] * rates
    a, b = keys.double().chunk(2, -1)
    want = torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)
    got = turning(keys, steps)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, atol=1e-4 if dtype == torch.float32 else 1e-2, rtol=0)


def test_models_without_such_positions_are_refused():
    with pytest.raises(ValueError, match=r"model: got GPT2LMHeadModel, with 0 modules of rotary positions, want"):
        regard.compress(causal("GPT2"), "streaming(positions=cache)", budget=8)
    with pytest.raises(ValueError, match="model: got Gemma3ForCausalLM"):
        regard.compress(causal("Gemma3Text"), "streaming(positions=cache)", budget=8)


def test_a_text_longer_than_the_cache_never_sees_a_longer_distance():
    """Far beyond the budget the next token's logits, of one layer, are those behind the kept tokens from zero on."""
    model, ids = scaled(rope_type="default"), torch.randint(3, 29, (1, 90))
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), regard.compress(model, "streaming(positions=cache)", budget=13):
        for part in ids[:, :89].split(7, 1):
            model(input_ids=part, past_key_values=cache)
        got = model(input_ids=ids[:, 89:], past_key_values=cache).logits[:, -1]
    held = [0, 1, 2, 3, *range(80, 90)]
    with torch.no_grad():
        torch.testing.assert_close(got, model(input_ids=ids[:, held]).logits[:, -1], atol=1e-5, rtol=0)
