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


def falcon_mamba() -> transformers.PreTrainedModel:
    """A model whose layers are no attention and are not read either."""
    config = transformers.FalconMambaConfig(hidden_size=16, state_size=4, num_hidden_layers=1, vocab_size=VOCABULARY)
    return transformers.FalconMambaModel(config).eval()


RECURRENT = {
    "Mamba": {"hidden_size": 16, "state_size": 3, "num_hidden_layers": 2, "time_step_rank": 5, "intermediate_size": 14},
    "Mamba2": {
        "hidden_size": 21, "expand": 2, "state_size": 5, "num_hidden_layers": 2, "num_heads": 6, "head_dim": 7,
        "n_groups": 3, "chunk_size": 8,
    },
    "Qwen3Next": ROPE | {
        "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 5, "linear_value_head_dim": 7,
        "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
}  # fmt: skip


def recurrent(name: str) -> transformers.PreTrainedModel:
    """A causal language model with recurrent layers by the name of its configuration, with states that last."""
    torch.manual_seed(3)
    config = getattr(transformers, f"{name}Config")(**{"vocab_size": VOCABULARY} | RECURRENT[name])
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for label, parameter in model.named_parameters():
            if "A_log" in label:
                parameter.sub_(2)
            elif parameter.dim() > 1:
                parameter.mul_(2)
            elif "bias" in label or label.endswith(".D"):
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


def spread(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """The model with weights large enough that its attention is far from even."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
            elif "sinks" in name:
                parameter.normal_()
    return model.eval()


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
