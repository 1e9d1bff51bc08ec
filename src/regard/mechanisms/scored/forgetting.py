"""Forgetting attention: softmax attention with a forget gate for each token and head."""

from __future__ import annotations

from collections.abc import Sequence

from regard.core.atlas import Claim, published
from regard.core.layer import Norm
from regard.core.mechanism import Example, LayerSpec, Traits
from regard.mechanisms.scored.parts.biases import Forget
from regard.mechanisms.scored.under_bias import UnderBias

PRO = LayerSpec(
    rotary=False, blend=True, scored=Norm(each=True, eps=1e-5), norm=Norm(each=True, eps=1e-6), gate="sigmoid"
)
"""Around the "Pro" layer's attention."""


@published(
    "forgetting",
    family="scored",
    title="Forgetting Transformer: Softmax Attention with a Forget Gate",
    arxiv="2503.02130",
    year=2025,
    aliases=("fox", "forgetting_attention", "forget_gate"),
    fidelity="authors' code",
    claim=(
        Claim(
            "gates at one are softmax attention, a gate at zero hides all that came before it",
            cells="scored.forgotten",
            holds="scored.is_softmax_and_hides",
        ),
        Claim(
            "language models of it do better",
            cells="small_lm.beside(layers='forgetting*2')",
            holds="small_lm.loss_at_most(ratio=1.0)",
        ),
        Claim(
            "they read longer texts than they were trained on",
            cells="small_lm.beside(layers='forgetting*2')",
            holds="scored.reads_longer_texts",
        ),
    ),
)
class Forgetting(UnderBias):
    """Softmax attention with a forget gate: each token says how much of the past later queries still see.

        A_ij = softmax_j(q_i · k_j / √d + Σ_{j < t ≤ i} log f_t)

    log f is the signal ``log_forget (b, h, m)``: an untrained block gives log ½, as the paper's. No rotary positions.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h; causal.
    Cost: 2 (d + e) FLOPs for each score of the tiles; memory O(n + m). State: all keys, values and gates.

    Args:
        pro: whether the layer around it is the paper's "Pro": keys and values are blended with those of the token
            before, queries and keys normed, and so is the output, behind which stands a sigmoid gate; else "LLaMA".

    Paper: Lin et al., arXiv 2503.02130. A gate below exp(−2048) counts as shut that far.
    """

    traits = Traits(bidirectional=False, cross=False, masked=True, biased=True, rows="one", sign="nonnegative")
    signals = Forget.signals

    def __init__(self, pro: bool = False) -> None:
        super().__init__(Forget())
        if pro:
            self.layer = PRO

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [Example("plain", cls(), heads=3, kv_heads=3), Example("grouped", cls(), heads=4, kv_heads=2)]
