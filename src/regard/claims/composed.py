"""Dense attention from parts: layers of Transformers' T5 and Swin are compositions of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import regard
from regard.claims.cells import measured
from regard.core.layout import Layout
from regard.mechanisms.scored.parts.biases import bucket

HEADS, DIM = 2, 5


def heads_of(x: Tensor) -> Tensor:
    return x.unflatten(2, (HEADS, -1)).transpose(1, 2)


@measured(model=("t5", "t5 decoder", "swin"))
def beside_transformers(model: str) -> dict[str, float]:
    """How far a layer with copied weights is from the composition, T5's buckets of 1,200 distances included."""
    torch.manual_seed(0)
    return {"apart": swin() if model == "swin" else t5(model == "t5 decoder")}


def t5(causal: bool) -> float:
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    sizes: Any = {"relative_attention_num_buckets": 16, "relative_attention_max_distance": 40}
    config: Any = T5Config(d_model=10, d_kv=DIM, num_heads=HEADS, is_decoder=causal, dropout_rate=0.0, **sizes)
    config._attn_implementation = "eager"
    theirs: Any = T5Attention(config, has_relative_attention_bias=True, layer_idx=0).double().eval()
    back = torch.arange(-1200, 1201)
    same = torch.equal(bucket(back, 32, 128, causal), theirs._relative_position_bucket(-back, not causal, 32, 128))
    text = "t5(buckets=16, max_distance=40)"
    mechanism = regard.build("composed", score="dot(scale=1.0)", bias=text, heads=HEADS, head_dim=DIM).double()
    mechanism.load_state_dict({"bias.table": theirs.relative_attention_bias.weight.T})
    x = torch.randn(2, 150, 10, dtype=torch.float64)
    q, k, v = (heads_of(matrix(x)) for matrix in (theirs.q, theirs.k, theirs.v))
    hidden = torch.full((150, 150), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    with torch.no_grad():
        want = theirs(x, mask=hidden if causal else None)[0]
        got = theirs.o(mechanism(q, k, v, Layout(causal=causal)).transpose(1, 2).flatten(2))
    return (got - want).abs().max().item() if same else torch.inf


def swin() -> float:
    from transformers import SwinConfig
    from transformers.models.swin.modeling_swin import SwinAttention

    config: Any = SwinConfig()
    config._attn_implementation = "eager"
    theirs: Any = SwinAttention(config, HEADS * DIM, HEADS, 4).double().eval()
    table = theirs.relative_position_bias.relative_position_bias_table
    torch.nn.init.normal_(table)
    mechanism = regard.build("composed", bias="table(grid=(4, 4))", heads=HEADS, head_dim=DIM).double()
    mechanism.load_state_dict({"bias.table": table.T})
    x = torch.randn(2, 16, HEADS * DIM, dtype=torch.float64)
    with torch.no_grad():
        q, k, v = (heads_of(matrix(x)) for matrix in (theirs.q_proj, theirs.k_proj, theirs.v_proj))
        got = theirs.o_proj(mechanism(q, k, v, Layout(grid=(4, 4))).transpose(1, 2).flatten(2))
        return (got - theirs(x)[0]).abs().max().item()  # their softmax is in float32
