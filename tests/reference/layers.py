"""Writes layers.json: weights, hidden states and outputs of whole layers of published code.

python tests/reference/layers.py        (flash-linear-attention and fla-core 0.6.0, Transformers 5.24, PyTorch 2.13)

The layers of flash-linear-attention run on its own reference functions, and on plain PyTorch where it has none. So does
that of zhixuan-lin/forgetting-transformer 883f260, whose src is on the path.
"""

import inspect
import json
import sys
from pathlib import Path

import fla
import torch
import torch.nn.functional as F
from torch import nn

if len(sys.argv) > 1:  # where flash-linear-attention is unpacked, when fla-core alone is installed
    fla.__path__.append(sys.argv[1])
from fla.layers import delta_net, gla, linear_attn, multiscale_retention, rwkv6, rwkv7
from fla.modules.norm.layernorm import GroupNormRef
from fla.modules.rotary.ops import rotary_embedding_ref
from fla.modules.token_shift import token_shift_ref
from fla.ops.delta_rule.naive import delta_rule_recurrence
from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence
from fla.ops.gla.naive import naive_recurrent_gla
from fla.ops.linear_attn.naive import naive_recurrent_linear_attn
from fla.ops.retention.naive import naive_retention
from fla.ops.rwkv6.recurrent_naive import naive_recurrent_rwkv6
from fla.ops.rwkv7.fused_addcmul import torch_addcmul_rwkv7
from fla.ops.rwkv7.fused_k_update import k_update_ref
from fla.ops.rwkv7.gate_output_correction import gate_output_correction_ref
from forgetting_transformer.model.forgetting_transformer import layernorm
from forgetting_transformer.model.forgetting_transformer import modeling_forgetting_transformer as fox
from transformers import DogeConfig, JambaConfig
from transformers.models.doge.modeling_doge import DogeAttention
from transformers.models.jamba.modeling_jamba import JambaMambaMixer
from transformers.models.kimi_linear import modeling_kimi_linear as kimi
from transformers.models.mamba import modeling_mamba as mamba
from transformers.models.mamba2 import modeling_mamba2 as mamba2
from transformers.models.minimax import modeling_minimax as minimax
from transformers.models.qwen3_next import modeling_qwen3_next as qwen

WIDTH, HEADS, TOKENS = 6, 2, 7
HIDDEN = {"hidden_size": WIDTH, "num_hidden_layers": 1}


class Gated(nn.Module):
    """RMS norm of each head, then the gate."""

    def __init__(self, hidden_size, elementwise_affine=True, eps=1e-5, activation="swish"):
        super().__init__()
        self.weight, self.eps, self.activation = nn.Parameter(torch.ones(hidden_size)), eps, activation

    def forward(self, x, g):
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps) * (F.silu(g) if self.activation == "swish" else g)


class Normed(nn.Module):
    def __init__(self, hidden_size, elementwise_affine=True, eps=1e-5, dtype=None):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(hidden_size)), eps

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Convolved(nn.Conv1d):
    def __init__(self, hidden_size, kernel_size, bias, activation):
        super().__init__(hidden_size, hidden_size, kernel_size, padding=kernel_size - 1, groups=hidden_size, bias=bias)

    def forward(self, x, **_):
        return F.silu(super().forward(x.mT)[..., : x.shape[1]].mT), None


class Turned(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, q, k, **_):
        steps = torch.arange(0, self.dim, 2) / self.dim
        angles = torch.arange(q.shape[1])[:, None] * 10_000.0**-steps
        return [rotary_embedding_ref(x, angles.cos(), angles.sin()) for x in (q, k)]


def heads_first(*tensors):
    return [x.transpose(1, 2) for x in tensors]


def on_reference_functions():
    """fla's layers without its kernels."""

    def recurrence(function):
        def run(*_, initial_state=None, output_final_state=None, cu_seqlens=None, state_v_first=None, **given):
            return function(**given), None

        return run

    def delta(q, k, v, beta, use_qk_l2norm_in_kernel):
        q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (q, k))
        return delta_rule_recurrence(*heads_first(q, k, v, beta))[0].transpose(1, 2)

    def removal(r, w, k, v, kk, a, scale):
        out = dplr_recurrence(*heads_first(r * r.shape[-1] ** 0.5, k, v, -kk, kk * a, w))[0]
        return out.transpose(1, 2)

    def bonus(r, k, v, w, u, scale):
        return naive_recurrent_rwkv6(*heads_first(r, k, v, w), u, scale=scale)[0].transpose(1, 2)

    delta_net.fused_recurrent_delta_rule = recurrence(delta)
    gla.fused_recurrent_gla = recurrence(lambda q, k, v, gk: naive_recurrent_gla(q, k, v, gk)[0])
    multiscale_retention.fused_recurrent_retention = recurrence(retained)
    rwkv6.fused_recurrent_rwkv6 = recurrence(bonus)
    rwkv7.fused_mul_recurrent_rwkv7 = recurrence(removal)
    linear_attn.fused_recurrent_linear_attn = recurrence(lambda **given: naive_recurrent_linear_attn(**given)[0])
    for module in (delta_net, gla, multiscale_retention):
        module.FusedRMSNormGated, module.RMSNorm, module.ShortConvolution = Gated, Normed, Convolved
    linear_attn.RMSNorm, multiscale_retention.RotaryEmbedding = Normed, Turned
    rwkv6.GroupNorm, rwkv6.ACT2FN = grouped, {"swish": F.silu}
    rwkv6.token_shift = token_shift_ref
    rwkv7.token_shift = lambda x, *_, **__: (token_shift_ref(x), None)
    rwkv7.fused_addcmul_rwkv7, rwkv7.fused_k_rwkv7 = torch_addcmul_rwkv7, k_update_ref
    rwkv7.gate_output_correction = gate_output_correction_ref


def retained(q, k, v):
    return naive_retention(*heads_first(q, k, v)).transpose(1, 2)


def grouped(num_groups, hidden_size, elementwise_affine, bias, eps):
    return GroupNormRef(num_groups=num_groups, hidden_size=hidden_size, elementwise_affine=True, bias=bias, eps=eps)


def layers():
    """Modules by the names of mechanisms, and how each is called."""
    plain = {"hidden_size": WIDTH, "num_heads": HEADS}
    recurrent = {"linear_conv_kernel_dim": 4}
    small = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 3}
    lightning = minimax.MiniMaxConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=4, num_hidden_layers=3,
        layer_types=["linear_attention"] * 3, hidden_act="silu",
    )  # fmt: skip
    kimi_linear = kimi.KimiLinearConfig(
        **HIDDEN, linear_num_heads=HEADS, linear_head_dim=3, **recurrent, layer_types=["linear_attention"]
    )
    return {
        "linear": linear_attn.LinearAttention(
            **plain, feature_map="elu", do_feature_map_norm=True, output_norm="identity", mode="fused_recurrent"
        ),
        "retnet": multiscale_retention.MultiScaleRetention(hidden_size=8, num_heads=2, mode="fused_recurrent"),
        "gla": gla.GatedLinearAttention(**plain, expand_k=1.0, gate_low_rank_dim=6),
        "deltanet": delta_net.DeltaNet(**plain, mode="fused_recurrent"),
        "rwkv6": rwkv6.RWKV6Attention(
            **plain, expand_k=1.0, proj_low_rank_dim=32, gate_low_rank_dim=6, norm_eps=64e-5
        ),
        "rwkv7": rwkv7.RWKV7Attention(
            hidden_size=WIDTH, head_dim=3, decay_low_rank_dim=6, gate_low_rank_dim=6, a_low_rank_dim=6,
            norm_eps=64e-5 / 3, layer_idx=0, num_hidden_layers=2,
        ),
        "gated_deltanet": qwen.Qwen3NextGatedDeltaNet(
            qwen.Qwen3NextConfig(**HIDDEN, **small, **recurrent, linear_value_head_dim=5), 0
        ),
        "kimi_delta": kimi.KimiLinearDeltaAttention(kimi_linear, 0),
        "mamba": mamba.MambaMixer(mamba.MambaConfig(**HIDDEN, state_size=3, time_step_rank=1, expand=1), 0),
        "mamba2": mamba2.Mamba2Mixer(
            mamba2.Mamba2Config(**HIDDEN, num_heads=4, head_dim=3, state_size=5, n_groups=2, expand=2, chunk_size=4), 0
        ),
        "lightning": minimax.MiniMaxLightningAttention(lightning, 1),
    }  # fmt: skip


def later():
    """A layer that mixes its values with those of a layer before it."""
    return rwkv7.RWKV7Attention(
        hidden_size=WIDTH, head_dim=3, decay_low_rank_dim=6, gate_low_rank_dim=6, a_low_rank_dim=6,
        v_low_rank_dim=6, norm_eps=64e-5 / 3, layer_idx=1, num_hidden_layers=2,
    )  # fmt: skip


def jamba():
    """Mamba with norms of the step, B and C."""
    return JambaMambaMixer(
        JambaConfig(hidden_size=18, mamba_d_state=3, mamba_dt_rank=2, mamba_expand=1, num_attention_heads=1), 0
    )


def doge():
    """Dynamic mask attention, four of seven keys kept."""
    config = DogeConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, num_key_value_heads=1, head_dim=4, keep_window_size=4,
        attn_implementation="eager",
    )  # fmt: skip
    return DogeAttention(config, 0)


def pro():
    """The "Pro" layer of the Forgetting Transformer."""
    fox.token_shift = lambda x, past, new: fox.weight_sum(F.pad(x, (0, 0, 0, 0, 1, -1)), x, past[..., None])
    fox.GroupNorm, fox.FusedGroupNormGated, fox.forgetting_attention = layernorm.GroupNormRef, NormGated, forgot
    return fox.ForgettingAttentionLayer(
        WIDTH, HEADS, use_output_gate=True, use_output_norm=True, qk_norm=True, use_k_shift=True, use_v_shift=True
    )


class NormGated(layernorm.GroupNormRef):
    """The norm, then the gate."""

    def __init__(self, activation, **named):
        super().__init__(**named)

    def forward(self, x, g):
        return super().forward(x) * torch.sigmoid(g)


def forgot(q, k, v, log_fgate, head_first, sm_scale, adaptive_threshold):
    """Softmax attention with what has been forgotten between a key and a query."""
    total = log_fgate.cumsum(-1)
    bias = (total[..., None] - total[..., None, :]).masked_fill(torch.ones(TOKENS, TOKENS).triu(1) > 0, -torch.inf)
    return F.scaled_dot_product_attention(q, k, v, bias, scale=sm_scale)


def outputs(name, module, x):
    if name == "lightning":
        return module(x, None, None)[0]
    if name == "dynamic_mask":
        angles = torch.arange(TOKENS)[:, None] * 10_000.0 ** -(torch.arange(2) / 2)
        angles = torch.cat([angles, angles], 1)[None]
        causal = torch.ones(TOKENS, TOKENS).tril()[None, None] > 0
        return module(x, (angles.cos(), angles.sin()), causal)[0]
    found = module(x, v_first=x.flip(2)) if name == "rwkv7_later" else module(x)
    return found[0] if isinstance(found, tuple) else found


def written(name, module):
    """Every parameter drawn anew and rounded, then what the layer makes of hidden states."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
        parameter.copy_(rounded(parameter))
    x = rounded(torch.randn(2, TOKENS, module.hidden_size if hasattr(module, "hidden_size") else WIDTH))
    weights = {name: parameter.tolist() for name, parameter in module.named_parameters()}
    weights = {name: nested(value) for name, value in weights.items()}
    return {"weights": weights, "x": nested(x.tolist()), "out": nested(rounded(outputs(name, module.eval(), x), 6))}


def rounded(x, digits=3):
    return torch.round(x.detach().double(), decimals=digits).to(x.dtype)


def nested(value):
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    return [nested(part) for part in value] if isinstance(value, list) else round(value, 6)


if __name__ == "__main__":
    for module in (qwen, kimi):
        for function in [name for name in vars(module) if hasattr(getattr(module, name), "__wrapped__")]:
            setattr(module, function, inspect.unwrap(getattr(module, function)))  # not their kernels for GPUs
    on_reference_functions()
    torch.manual_seed(0)
    with torch.no_grad():
        found = {name: written(name, module) for name, module in layers().items()}
        for name, made in (
            ("rwkv7_later", later),
            ("dynamic_mask", doge),
            ("forgetting_pro", pro),
            ("mamba_normed", jamba),
        ):
            found[name] = written(name, made())
    text = ",\n".join(f'"{name}": {json.dumps(x)}' for name, x in found.items())
    Path(__file__).with_name("layers.json").write_text("{\n" + text + "\n}\n")
