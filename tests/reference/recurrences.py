"""Writes recurrences.json: what published code for recurrent attention computes, token by token.

python tests/reference/recurrences.py        (flash-linear-attention 0.6.0, Transformers 5.24, PyTorch 2.13)
"""

import inspect
import json
from pathlib import Path

import torch
from fla.ops.based.naive import naive_parallel_based
from fla.ops.delta_rule.naive import delta_rule_recurrence
from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence
from fla.ops.gla.naive import naive_recurrent_gla
from fla.ops.kda.naive import naive_recurrent_kda
from fla.ops.linear_attn.naive import naive_recurrent_linear_attn
from fla.ops.retention.naive import naive_retention
from fla.ops.rwkv6.recurrent_naive import naive_recurrent_rwkv6
from torch import nn
from transformers.models.qwen3_next import modeling_qwen3_next as qwen

HEADS, TOKENS, DIM, VALUES = 3, 7, 5, 2
for name in ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"):  # not their kernels for GPUs
    setattr(qwen, name, inspect.unwrap(getattr(qwen, name)))


def drawn():
    q, k = torch.randn(2, 1, HEADS, TOKENS, DIM)
    beta, rate = torch.rand(1, HEADS, TOKENS), torch.rand(1, HEADS, TOKENS, DIM)
    channels, heads = -0.6 * torch.rand(1, HEADS, TOKENS, DIM), -torch.rand(1, HEADS, TOKENS)
    return {
        **{"q": q, "k": nn.functional.normalize(k, dim=-1), "v": torch.randn(1, HEADS, TOKENS, VALUES)},
        **{"channels": channels, "heads": heads, "beta": beta, "rate": rate, "parameter": torch.rand(HEADS, DIM)},
    }


def tokens_first(*tensors):
    return [x.transpose(1, 2) for x in tensors]


def recurrences(q, k, v, channels, heads, beta, rate, parameter):
    """Outputs by the names of mechanisms; RWKV-7's removed keys are its keys."""
    positive = [nn.functional.elu(x) + 1 for x in (q, k)]
    written = k * (1 + (rate - 1) * parameter[:, None])
    by_token = {
        "linear": naive_recurrent_linear_attn(*tokens_first(*positive, v), normalize=True)[0],
        "gla": naive_recurrent_gla(*tokens_first(q, k, v, channels))[0],
        "gated_deltanet": qwen.torch_recurrent_gated_delta_rule(*tokens_first(q, k, v, heads, beta))[0],
        "kimi_delta": naive_recurrent_kda(*tokens_first(q, k, v, channels, beta))[0],
    }
    return {
        **{name: out.transpose(1, 2) for name, out in by_token.items()},
        "based": naive_parallel_based(q, k, v),
        "retnet": naive_retention(q, k, v),
        "deltanet": delta_rule_recurrence(q, k, v, beta)[0],
        "rwkv6": naive_recurrent_rwkv6(q, k, v, channels, parameter, scale=1.0)[0],
        "rwkv7": dplr_recurrence(q * DIM**0.5, written, v, -k, k * rate, channels)[0],
    }


def plain(x):
    if isinstance(x, dict):
        return {name: plain(part) for name, part in x.items()}
    return torch.round(x.detach().double(), decimals=6).tolist()


if __name__ == "__main__":
    torch.manual_seed(0)
    with torch.no_grad():
        inputs = drawn()
        found = {"inputs": inputs, "outputs": recurrences(**inputs)}
    path = Path(__file__).with_name("recurrences.json")
    path.write_text("{\n" + ",\n".join(f'"{name}": {json.dumps(plain(x))}' for name, x in found.items()) + "\n}\n")
