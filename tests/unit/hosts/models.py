"""Tiny models with random weights, one of every kind of attention that Transformers' interface has."""

from __future__ import annotations

import torch
import transformers

VOCABULARY = 29
ROPE = {
    "hidden_size": 24,
    "intermediate_size": 31,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CAUSAL = {
    "Llama": {},
    "Qwen3": {},
    "Mistral": {"sliding_window": 7},
    "Gemma3Text": {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]},
    "Gemma2": {
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention"],
        "attn_logit_softcapping": 1.3,
        "query_pre_attn_scalar": 4,
    },
    "GptOss": {
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention"],
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
    },
}


def causal(name: str) -> transformers.PreTrainedModel:
    """A causal language model by the name of its configuration."""
    torch.manual_seed(3)
    if name == "GPT2":
        config = transformers.GPT2Config(
            n_embd=24, n_layer=2, n_head=3, vocab_size=VOCABULARY, n_positions=128, bos_token_id=1, eos_token_id=2
        )
        return spread(transformers.GPT2LMHeadModel(config))
    config = getattr(transformers, f"{name}Config")(**ROPE | CAUSAL[name])
    if name == "Gemma2":  # the default of some releases leaves its softcap out
        config._attn_implementation = "eager"
    head = name.removesuffix("Text") + "ForCausalLM"
    return spread(getattr(transformers, head)(config))


def bert() -> transformers.PreTrainedModel:
    torch.manual_seed(3)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 31}
    return spread(transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=VOCABULARY)))


def vit() -> transformers.PreTrainedModel:
    torch.manual_seed(3)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 31}
    return spread(transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=12, patch_size=4)))


def t5() -> transformers.PreTrainedModel:
    torch.manual_seed(3)
    config = transformers.T5Config(
        d_model=24, d_kv=4, d_ff=31, num_layers=2, num_heads=3, vocab_size=VOCABULARY, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config).eval()


def rwkv() -> transformers.PreTrainedModel:
    """A model whose layers are no attention and are not read either."""
    config = transformers.RwkvConfig(hidden_size=16, num_hidden_layers=2, vocab_size=VOCABULARY)
    return transformers.RwkvModel(config).eval()


def spread(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """The model with weights large enough that its attention is far from even."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
            elif "sinks" in name:
                parameter.normal_()
    return model.eval()


def cache_of(out: transformers.utils.ModelOutput) -> transformers.Cache:
    """What a pass has kept; releases of Transformers differ in its name."""
    return out["cache"] if "cache" in out else out["past_key_values"]


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    """Token ids that are no special ones."""
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def eager(model: transformers.PreTrainedModel, **inputs) -> transformers.utils.ModelOutput:
    """The output of the model's own eager attention, with dense weights."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return model(**inputs, output_attentions=True)
    finally:
        model.set_attn_implementation(before)
