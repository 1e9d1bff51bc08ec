"""Writes thoughts.json: logits of a language model in three parts by its authors' code, which decides who thinks.

python tests/reference/thoughts.py FOLDER        (PyTorch 2.13, Transformers 5.24)

FOLDER holds modeling_mtpqwen3.py of luoxuan-cs/Direct-Multitoken-Decoding. The named classes and functions alone are
run, without the norms of queries and keys that Qwen3 has; weights are those of a name and a shape.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Optional

import torch
from structure import filled, parts_of
from torch import nn
from transformers.activations import ACT2FN

NAMES = ("MTPQwen3RMSNorm", "MTPQwen3MLP", "rotate_half", "apply_rotary_pos_emb", "repeat_kv")
NAMES += ("eager_attention_forward", "MTPQwen3Attention", "MTPQwen3DecoderLayer", "MTPQwen3RotaryEmbedding")
NAMES += ("MTPQwen3Model",)
WIDTH, HEADS, KV_HEADS, VOCABULARY, TOKENS = 24, 6, 2, 29, 11


def plainly(*names):
    """What decorators that are not at hand do: nothing."""
    return names[0] if len(names) == 1 and callable(names[0]) else lambda thing: thing


class Model(nn.Module):
    """What the authors' classes need of their base."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    def post_init(self):
        pass


class Layer(nn.Module):
    """A block: called, it hands on what it is given."""


def causal(input_embeds, **about):
    """The mask that Transformers would make."""
    n = input_embeds.shape[1]
    return torch.full((n, n), -torch.inf).triu(1)[None, None].to(input_embeds)


def rates(config, device):
    """Of the rotary positions."""
    size = WIDTH // HEADS
    return config.rope_theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size), 1.0


class Anything:
    """Stands for types in annotations, and for decorators that take a name."""

    def __getitem__(self, key):
        return self


def made(file, layers, encode, think, horizon):
    """The authors' model."""
    known = {"torch": torch, "nn": nn, "ACT2FN": ACT2FN, "Callable": Callable, "Optional": Optional}
    known |= {"use_kernel_forward_from_hub": plainly, "check_model_inputs": plainly, "dynamic_rope_update": plainly}
    known |= {"GradientCheckpointingLayer": Layer, "MTPQwen3PreTrainedModel": Model, "create_causal_mask": causal}
    known |= {"ROPE_INIT_FUNCTIONS": {"default": rates}, "BaseModelOutputWithPast": SimpleNamespace}
    known |= dict.fromkeys(
        ("Unpack", "Cache", "TransformersKwargs", "FlashAttentionKwargs", "MTPQwen3Config"), Anything()
    )
    known["Union"] = Anything()
    code = parts_of(file, NAMES, known)
    sizes = {
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": WIDTH // HEADS,
    }
    sizes |= {"intermediate_size": 17, "num_hidden_layers": layers, "vocab_size": VOCABULARY, "pad_token_id": None}
    sizes |= {"num_encoding_layers": encode, "num_thinking_layers": think, "mtp_horizon": horizon, "rms_norm_eps": 1e-6}
    sizes |= {"num_decoding_layers": layers - encode - think, "layer_types": ["full_attention"] * layers}
    more = {"hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0, "sliding_window": None}
    more |= {"rope_theta": 1e4, "max_position_embeddings": 64, "_attn_implementation": "eager"}
    model = code.MTPQwen3Model(SimpleNamespace(**sizes, **more)).double().eval()
    for name, parameter in model.named_parameters():
        parameter.data = filled(name, parameter.shape)
    for layer in model.layers:
        layer.self_attn.q_norm = layer.self_attn.k_norm = nn.Identity()
    return model


if __name__ == "__main__":
    file, found = Path(sys.argv[1]) / "modeling_mtpqwen3.py", []
    ids = torch.arange(2 * TOKENS).view(2, TOKENS) * 7 % VOCABULARY
    for layers, encode, think, horizon in ((4, 1, 2, 3), (3, 1, 1, 1)):
        model = made(file, layers, encode, think, horizon)
        with torch.no_grad():
            x = model(input_ids=ids).last_hidden_state
        about = {"layers": layers, "encode": encode, "think": think, "horizon": horizon}
        found.append(about | {"logits": (x @ model.embed_tokens.weight.T)[:, :, ::3].flatten().tolist()})
    rounded = json.loads(json.dumps(found), parse_float=lambda text: float(f"{float(text):.9g}"))
    text = ",\n".join(json.dumps(part) for part in rounded)
    (Path(__file__).parent / "thoughts.json").write_text(f"[{text}]\n")
