"""Writes scored.json: what published code computes for scored attention that recurrences and parts do not cover.

python tests/reference/scored.py        (flash-linear-attention 0.6.0, Transformers 5.24, PyTorch 2.13)
"""

import json
from pathlib import Path

import torch
from fla.ops.forgetting_attn.naive import naive_forgetting_attn
from transformers.models.diffllama.configuration_diffllama import DiffLlamaConfig
from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention, DiffLlamaRotaryEmbedding

TOKENS = 7


def forgetting():
    """Four heads over two of keys, each head with gates of its own, and the gradients of a weighted sum."""
    q, k, v = torch.randn(1, TOKENS, 4, 5), torch.randn(1, TOKENS, 2, 5), torch.randn(1, TOKENS, 2, 3)
    gates = torch.nn.functional.logsigmoid(2 * torch.randn(1, TOKENS, 4))
    leaves = [x.requires_grad_() for x in (q, k, v, gates)]
    out, weight = naive_forgetting_attn(*leaves), torch.randn(1, TOKENS, 4, 3)
    grads = torch.autograd.grad((out * weight).sum(), leaves)
    named = dict(zip(("q", "k", "v", "log_forget"), leaves, strict=True)) | {"out": out, "weight": weight}
    named |= dict(zip(("dq", "dk", "dv", "dlog_forget"), grads, strict=True))
    return {name: x.detach().transpose(1, 2).tolist() for name, x in named.items()}


def differential():
    """The attention of DiffLlama's fourth layer: eight heads that are four pairs, over two pairs of keys."""
    config = DiffLlamaConfig(
        hidden_size=24, num_attention_heads=8, num_key_value_heads=4, num_hidden_layers=4, head_dim=4,
        rms_norm_eps=1e-6, attn_implementation="eager",
    )  # fmt: skip
    layer, x = DiffLlamaAttention(config, 3), torch.randn(1, TOKENS, 24)
    places = DiffLlamaRotaryEmbedding(config)(x, torch.arange(TOKENS)[None])
    causal = torch.full((1, 1, TOKENS, TOKENS), -torch.inf).triu(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        out = layer(x, places, causal)[0]
    return {"x": x.tolist(), "out": out.tolist()} | {name: w.tolist() for name, w in layer.named_parameters()}


if __name__ == "__main__":
    torch.manual_seed(0)
    parts = {each.__name__: each() for each in (forgetting, differential)}
    rounded = json.loads(json.dumps(parts), parse_float=lambda text: float(f"{float(text):.8g}"))
    text = ",\n".join(f"{json.dumps(name)}: {json.dumps(part)}" for name, part in rounded.items())
    (Path(__file__).parent / "scored.json").write_text(f"{{{text}}}\n")
