"""Writes native.json: what published code computes for each branch of native sparse attention with learned blocks.

PYTHONPATH=AUTHORS python tests/reference/native.py

AUTHORS holds `compressed_attention.py` and `topk_sparse_attention.py` of XunhaoLai/native-sparse-attention-triton
9bea856, native_sparse_attention/ops/torch. With native-sparse-attention-pytorch 0.2.3, Transformers 5.24, PyTorch 2.13.
"""

import json
from pathlib import Path

import torch
from compressed_attention import compressed_attention_torch
from native_sparse_attention_pytorch import SparseAttention
from topk_sparse_attention import topk_sparse_attention_torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, rotate_half

N, HEADS, GROUPS, D = 37, 4, 2, 6
LENGTH, STRIDE, BLOCK, BUDGET, WINDOW = 4, 2, 8, 4, 7


def turned(x, positions):
    """``x (n, h, d)`` with rotary positions."""
    config = LlamaConfig(hidden_size=HEADS * D, num_attention_heads=HEADS, head_dim=D)
    cos, sin = (part[0][:, None] for part in LlamaRotaryEmbedding(config)(x, positions[None]))
    return x * cos + rotate_half(x) * sin


def compressed(layer, of, x):
    """The blocks of ``x (n, h, d)`` that are whole, by the layer's own networks."""
    windows = layer.split_compress_window(x.transpose(0, 1)[None])[:, :, LENGTH // STRIDE - 1 :]
    positions = getattr(layer, f"{of}_intrablock_positions")
    return getattr(layer, f"{of}_compress")(windows + positions[:, None])[0].transpose(0, 1)


def main():
    """The branches of one sequence, their weights, and the blocks that are chosen."""
    torch.manual_seed(0)
    layer = SparseAttention(
        dim=8, dim_head=D, heads=HEADS, sliding_window_size=WINDOW, compress_block_size=LENGTH,
        compress_block_sliding_stride=STRIDE, selection_block_size=BLOCK, num_selected_blocks=BUDGET,
        kv_heads=GROUPS, causal=True,
    )  # fmt: skip
    for of in ("k", "v"):
        torch.nn.init.normal_(getattr(layer, f"{of}_intrablock_positions")[0])
        getattr(layer, f"{of}_intrablock_positions").data[:] = getattr(layer, f"{of}_intrablock_positions").data[:1]
    names = ("k", "v", "compressed_key", "compressed_value", "near_key", "near_value")
    given = {"q": 2 * torch.randn(N, HEADS, D)} | {name: torch.randn(N, GROUPS, D) for name in names}
    places, ends = torch.arange(N), torch.tensor([0, N])
    q, k, near = (turned(given[name], places) for name in ("q", "k", "near_key"))
    short = compressed(layer, "k", 2 * given["compressed_key"]), compressed(layer, "v", given["compressed_value"])
    count = torch.tensor([0, len(short[0])])
    keys = turned(short[0], torch.arange(len(short[0])) * STRIDE)
    first, index = compressed_attention_torch(
        q, keys, short[1], LENGTH, STRIDE, BLOCK, BUDGET, ends, count, N, len(keys)
    )
    second = topk_sparse_attention_torch(q, k, given["v"], index, BLOCK, ends)
    distance = places[:, None] - places
    third = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(0, 1)[None] for x in (q, near, given["near_value"])),
        attn_mask=(distance >= 0) & (distance < WINDOW), enable_gqa=True,
    )[0].transpose(0, 1)  # fmt: skip
    given["compressed_key"] = 2 * given["compressed_key"]
    outs = {"compressed": first, "selected": second, "near": third}
    named = {name: x.transpose(0, 1)[None] for name, x in (given | {f"{of} out": x for of, x in outs.items()}).items()}
    named["index"] = index[None]
    for of in ("k", "v"):
        up, down = (module for module in getattr(layer, f"{of}_compress") if isinstance(module, torch.nn.Linear))
        weights = {"positions": getattr(layer, f"{of}_intrablock_positions")[0], "up.weight": up.weight}
        weights |= {"up.bias": up.bias, "down.weight": down.weight, "down.bias": down.bias}
        named |= {f"{'keys' if of == 'k' else 'values'}.{name}": x for name, x in weights.items()}
    found = {name: x.tolist() for name, x in named.items()}
    rounded = json.loads(json.dumps(found), parse_float=lambda text: float(f"{float(text):.8g}"))
    (Path(__file__).parent / "native.json").write_text(json.dumps(rounded, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()
