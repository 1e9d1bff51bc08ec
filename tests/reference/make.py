"""Writes values.json: what published code computes, so that an equation that is wrong in definition and fast path alike
is seen.

    python tests/reference/make.py        (Transformers 5.24, PyTorch 2.13)
"""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers.models.bloom.modeling_bloom import _get_alibi_slopes
from transformers.models.deepseek_v2.configuration_deepseek_v2 import DeepseekV2Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention, DeepseekV2RotaryEmbedding
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as capped
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as with_sinks
from transformers.models.speech_to_text.modeling_speech_to_text import Speech2TextSinusoidalPositionalEmbedding
from transformers.models.swin.modeling_swin import SwinConfig, SwinLayer

HEADS, TOKENS, DIM = 4, 7, 5
SCALE = DIM**-0.5


def drawn(*shapes):
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def slopes():
    """ALiBi's, as Bloom has them, for numbers of heads that are and are no powers of two."""
    return {str(heads): _get_alibi_slopes(heads, "cpu").tolist() for heads in (1, 2, 5, 6, 8, 12, 20, 71)}


def softcap():
    """Gemma 2's capped scores under a bias by distance, over one key head for two query heads."""
    q, k, v = drawn((1, HEADS, TOKENS, DIM), (1, HEADS // 2, TOKENS, DIM), (1, HEADS // 2, TOKENS, DIM))
    apart = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)
    bias = (-_get_alibi_slopes(HEADS, "cpu").double()[:, None, None] * apart).masked_fill(apart < 0, -torch.inf)
    module = SimpleNamespace(num_key_value_groups=2, training=False)
    out = capped(module, 3 * q, k, v, bias[None], scaling=SCALE, softcap=2.0)[0].transpose(1, 2)
    return {"q": 3 * q, "k": k, "v": v, "softcap": 2.0, "out": out}


def sinks():
    """GPT-OSS's sink logits."""
    q, k, v = drawn((1, HEADS, TOKENS, DIM), (1, HEADS // 2, TOKENS, DIM), (1, HEADS // 2, TOKENS, DIM))
    (sink,) = drawn((HEADS,))
    module = SimpleNamespace(num_key_value_groups=2, training=False, sinks=sink)
    causal = torch.full((TOKENS, TOKENS), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    out = with_sinks(module, q, k, v, causal, SCALE)[0].transpose(1, 2)
    return {"q": q, "k": k, "v": v, "sink": sink, "out": out}


def latent():
    """DeepSeek-V2's attention with latents of queries and of keys, each normed."""
    config = DeepseekV2Config(
        hidden_size=6, num_attention_heads=2, num_key_value_heads=2, q_lora_rank=5, kv_lora_rank=4,
        qk_nope_head_dim=3, qk_rope_head_dim=2, v_head_dim=3, num_hidden_layers=1, attn_implementation="eager",
    )  # fmt: skip
    module = DeepseekV2Attention(config, 0).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    (x,) = drawn((1, TOKENS, 6))
    places = DeepseekV2RotaryEmbedding(config)(x, torch.arange(TOKENS)[None])
    causal = torch.full((1, 1, TOKENS, TOKENS), -torch.inf, dtype=torch.float64).triu(1)
    with torch.no_grad():
        out = module(x, causal, position_embeddings=places)[0]
    return {"x": x, "out": out, "weights": {name: value.detach() for name, value in module.named_parameters()}}


def sinusoids():
    """Encodings of positions, sines before cosines."""
    return Speech2TextSinusoidalPositionalEmbedding.get_embedding(TOKENS, 6)


def shifted_groups():
    """LongLoRA: the later half of the heads rolled back by half a group; the group of each token, by head."""
    tokens, size, found = 24, 8, []
    for head in range(HEADS):
        places = torch.arange(tokens).roll(-size // 2 if head >= HEADS // 2 else 0)
        found.append(torch.empty(tokens, dtype=torch.int64).scatter_(0, places, torch.arange(tokens) // size))
    return torch.stack(found)


def swin():
    """Attention of a Swin layer whose windows of 3 are shifted by 1, over 6 rows of 9 cells."""
    config = SwinConfig(embed_dim=6, depths=[1], num_heads=[2], window_size=3, hidden_dropout_prob=0.0)
    config._attn_implementation = "eager"
    layer = SwinLayer(config, 6, (6, 9), 2, shift_size=1).double().eval()
    layer.layernorm_before, kept = torch.nn.Identity(), []
    torch.nn.init.normal_(layer.attention.relative_position_bias.relative_position_bias_table)
    layer.layernorm_after.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    (x,) = drawn((1, 54, 6))
    with torch.no_grad():
        layer(x, (6, 9))
    weights = {name: value.detach() for name, value in layer.attention.named_parameters()}
    return {"x": x, "out": kept[0] - x, "weights": weights}


def plain(x):
    """Tensors as lists."""
    if isinstance(x, dict):
        return {name: plain(value) for name, value in x.items()}
    return x.tolist() if isinstance(x, torch.Tensor) else x


if __name__ == "__main__":
    torch.manual_seed(0)
    made = (slopes, softcap, sinks, latent, sinusoids, shifted_groups, swin)
    text = json.dumps({each.__name__: plain(each()) for each in made}, indent=None)
    (Path(__file__).parent / "values.json").write_text(text.replace('}, "', '},\n"') + "\n")
