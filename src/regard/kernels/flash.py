"""PyTorch's fused operator on the CPU, by the one way that hands it what it can read.

Called directly, which alone gives the log-sum-exp and a backward pass for some of the keys, the operator believes that
the last axis is contiguous and reads past the tensor where it is not.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula, sdpa_flop_count

from regard.core.mechanism import repeat_heads

FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

if FORWARD not in flop_registry:  # PyTorch counts its fused operators on every device but this one

    @register_flop_formula(FORWARD)
    def count_fused(q_shape, k_shape, v_shape, *args, out_shape=None, **kwargs) -> int:
        """FLOPs of the two full matrix products, as for PyTorch's other fused operators."""
        k_shape, v_shape = ((*shape[:1], q_shape[1], *shape[2:]) for shape in (k_shape, v_shape))
        return sdpa_flop_count(q_shape, k_shape, v_shape)


def attend(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, bias: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    """``(out (b, h, n, d), lse (b, h, n))`` of ``softmax(scale q kᵀ + bias) v``; causality is aligned at the start.

    Shapes: ``q (b, h, n, d)``, ``k, v (b, g, m, d)``, of any strides; h is a multiple of g, and keys that heads share
    are not copied, unless there are more of keys than of values or the other way around, which the operator would read
    past the tensor for. ``bias`` broadcastable to ``(b, h, n, m)``.
    """
    if k.shape[1] != v.shape[1]:
        k, v = (repeat_heads(x, q.shape[1]) for x in (k, v))
    return FORWARD(readable(q), readable(k), readable(v), 0.0, causal, attn_mask=bias, scale=scale)


def gradients(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    bias: Tensor | None,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of q, k and v by ``grad`` of the output, given ``out`` and a finite ``lse``, of these or of more keys."""
    grad, q, k, v, out = (readable(x) for x in (grad, q, k, v, out))
    return BACKWARD(grad, q, k, v, out, lse, 0.0, causal, attn_mask=bias, scale=scale)


def readable(x: Tensor) -> Tensor:
    """``x``, copied only if its last axis is not contiguous, or its tokens overlap."""
    if x.stride(3) == 1 and x.stride(2) >= x.shape[3]:
        return x
    return x.clone(memory_format=torch.contiguous_format)
