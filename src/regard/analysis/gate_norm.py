"""Which attention layers a model could do without, read from their weights alone."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from regard.analysis.weights import gain_of
from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample, shown_by
from regard.core.mechanism import repeat_heads
from regard.hosts.prune import attention_layers

Scale = Literal["plain", "gain", "relative"]


def by_hand() -> tuple[Tensor, Tensor]:
    """Two heads of one channel that share a key: ‖[1, 2]ᵀ [1, 1]‖ = √10 and ‖[3, 4]ᵀ [1, 1]‖ = √50."""
    queries, keys = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 1.0]])
    return couplings(queries, keys, 2, 1), torch.tensor([10.0, 50.0]).sqrt()


@published(
    "gate_norm",
    family="cache",
    kind="analysis",
    row=313,
    title="Data-Free Pruning of Self-Attention Layers in LLMs",
    arxiv="2512.20636",
    year=2025,
    fidelity="abstract only",
    claim=Claim(
        "without the attention of the quarter of layers of smallest norm the loss rises half as much, at most, as "
        "without a quarter at random",
        cells="pruning.losses",
        holds="pruning.half_of_chance",
    ),
)
@shown_by(lambda: [Sample("by hand", couplings, {"known": by_hand})])
def gate_norms(model: Any, scale: Scale = "gain") -> list[float]:
    """The norm of what couples queries to keys, for each layer: without data, in less than a second.

        g_l = mean_h ‖W_q,hᵀ W_k,h‖_F,   W of the normalised hidden states: columns times the norm's gain

    Layers of small norm attend by what they do not look at; `regard.prune` takes those out.

    Args:
        model: a decoder of Transformers. scale: ``"gain"``; ``"plain"`` without the weights of the norm before the
            matrices; ``"relative"`` without them and over ‖W_q‖ ‖W_k‖.

    Raises:
        ValueError: another scale, or a model without such matrices and such a norm in each layer.

    Paper: Saikumar and Varghese, arXiv 2512.20636.
    """
    if scale not in ("plain", "gain", "relative"):
        raise wrong("scale", repr(scale), "gain, plain or relative")
    config, found = model.config.get_text_config(decoder=True), []
    for block, _, attention in attention_layers(model):
        q, k = (attention.get_submodule(name).get_parameter("weight").detach().float() for name in ("q_proj", "k_proj"))
        if scale == "gain":
            norm_before = getattr(block, "input_layernorm", None)
            if norm_before is None:
                raise wrong("scale", f"'gain' for {type(block).__name__}", "plain: this block has no input_layernorm")
            gain = gain_of(norm_before, q.shape[1]).float()
            q, k = q * gain, k * gain
        norm = couplings(q, k, config.num_attention_heads, config.num_key_value_heads).mean()
        found.append((norm / (q.norm() * k.norm()) if scale == "relative" else norm).item())
    return found


def couplings(queries: Tensor, keys: Tensor, heads: int, kv_heads: int) -> Tensor:
    """``‖W_q,hᵀ W_k,h‖_F (heads,)`` of ``W_q (heads · d, width)`` and ``W_k (kv_heads · d, width)``.

    By the products of d × d entries alone: ‖QᵀK‖² = ⟨Q Qᵀ, K Kᵀ⟩.
    """
    q = queries.view(heads, -1, queries.shape[1])
    k = repeat_heads(keys.view(1, kv_heads, -1, keys.shape[1]), heads)[0]
    return ((q @ q.mT) * (k @ k.mT)).sum((1, 2)).clamp(min=0).sqrt()
