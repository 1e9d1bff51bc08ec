"""Neural attention: a small network scores each pair."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from regard.core.atlas import Claim, published
from regard.core.mechanism import Example
from regard.mechanisms.scored.parts.scores import Network


@published(
    "neural",
    family="scored",
    row=182,
    title="Neural Attention: A Novel Mechanism for Enhanced Expressive Power in Transformer Models",
    arxiv="2502.17206",
    year=2025,
    aliases=("neural_attention",),
    missing="the second hidden layer of the authors' code, and its projections of q and k, which all heads share",
    fidelity="hand values",
    claim=(
        Claim(
            "the tiled, factored form equals a network on the concatenated pair",
            cells="scored.factored_pair",
            holds="common.within(most=1e-10)",
        ),
        Claim(
            "it selects keys by a relation of bits that a dot-product head cannot",
            cells="scored.pointer",
            holds="scored.selects_by_a_relation",
        ),
    ),
)
class NeuralAttention(Network):
    """Softmax attention whose scores come from a network of one hidden layer on each pair of query and key.

        A = softmax_j(w_h · relu(W_h [q_i; k_j] + b_h)),   computed as relu((Q_h q_i) + (K_h k_j + b_h))

    Memory is that of a tile times the hidden size, whatever the length.

    Args:
        heads, head_dim: of q. hidden: units of each head's network, D.

    Raises:
        ValueError: a size below one, or q of other sizes.

    Paper: DiGiugno and Mahmood, arXiv 2502.17206.
    """

    @classmethod
    def examples(cls) -> Sequence[Example]:
        torch.manual_seed(0)
        return [
            Example("3 units", cls(3, Example.head_dim, 3), heads=3, kv_heads=3),
            Example("4 units, grouped", cls(4, Example.head_dim, 4), heads=4, kv_heads=2),
        ]
