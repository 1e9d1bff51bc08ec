"""Softmax attention whose rows are scaled, shifted or gated by what the query's token says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.layout import Layout
from regard.core.mechanism import Example, Signal, Traits, accumulate_dtype, repeat_heads
from regard.kernels import dense
from regard.kernels import packing as alone
from regard.mechanisms.scored.softmax import Softmax


@published(
    "gated",
    family="scored",
    row=279,
    title="Gated Attention for Large Language Models: Non-linearity, Sparsity, and Attention-Sink-Free",
    arxiv="2505.06708",
    year=2025,
    aliases=("gated_attention", "headwise_gate"),
    fidelity="hand values",
    missing="gates of every element and at other places, which are the projection `gates`",
    claim=Claim(
        "a sigmoid gate after attention: at one it is softmax attention, at zero a head is silent",
        cells="scored.of_gated",
        holds="scored.is_softmax_and_silent",
    ),
)
class GatedSoftmax(Softmax):
    """Softmax attention whose heads are each opened and closed by the query's token.

        A_ij = γ_i softmax_j(q_i · k_j / √d)

    γ in (0, 1) is the signal ``gate (b, h, n)``, projected from the hidden state: the paper's gate after attention, one
    for each head. Its gate for each element is what a host does with ``LayerSpec(gate="sigmoid")``.

    Paper: Qiu et al., arXiv 2505.06708.
    """

    traits = replace(Softmax.traits, rows="at most one")
    signals: ClassVar = {"gate": Signal("how far the head is open", side="query", low=0, high=1)}

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        plain = super().weights(q, k, layout, **signals)
        return plain * signals["gate"][..., None].to(plain.dtype)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        return super().forward(q, k, v, layout, **signals) * signals["gate"][..., None].to(v.dtype)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [Example("plain", cls(), heads=3, kv_heads=3), Example("grouped", cls(), heads=4, kv_heads=2)]


@published(
    "affine_scaled",
    family="scored",
    row=139,
    title="Affine-Scaled Attention: Towards Flexible and Stable Transformer Attention",
    arxiv="2602.23057",
    year=2026,
    aliases=("asa",),
    fidelity="abstract only",
    claim=(
        Claim(
            "α = 1, β = 0 is softmax attention; rows sum to α + β times the visible keys",
            cells="scored.of_affine",
            holds="scored.is_softmax_and_sums",
        ),
        Claim(
            "trained, a small language model's loss is no higher than softmax's",
            cells="small_lm.beside(layers='affine_scaled*2')",
            holds="small_lm.loss_at_most(ratio=1.0)",
        ),
    ),
)
class AffineScaled(Softmax):
    """Softmax attention whose weights each row scales and shifts.

        A_ij = α_i softmax_j(q_i · k_j / √d) + β_i   for the keys j that i sees

    α and β are the signals ``alpha (b, h, n)`` and ``beta (b, h, n)``, projected from the query's hidden state, 1 and 0
    at the start: β counts once for each key, so that a β of random tokens would drown the rest.

    Paper: Bae et al., arXiv 2602.23057; from its abstract.
    """

    traits = Traits(masked=True, equivariant=True)
    signals: ClassVar = {
        "alpha": Signal("what the softmax is multiplied with", side="query", start=1.0, steady=True),
        "beta": Signal("what is added to every weight", side="query", start=0.0, steady=True),
    }

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        plain = super().weights(q, k, layout, **signals)
        alpha, beta = (signals[name][..., None].to(plain.dtype) for name in ("alpha", "beta"))
        return (alpha * plain + beta).masked_fill(~layout.allowed(q.shape[2], k.shape[2], q.device), 0)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)
        return self.mixed(dense.attend(q, k, v, layout, self.scale), q, k, v, layout, **signals)

    @classmethod
    def mixed(cls, out: Tensor, q: Tensor, k: Tensor, v: Tensor, layout: Layout, **signals: Tensor) -> Tensor:
        """``α_i o_i + β_i Σ_j v_j`` over the keys j that i sees."""
        alpha, beta = (signals[name][..., None].to(v.dtype) for name in ("alpha", "beta"))
        return alpha * out + beta * cls.sums(q, k, v, layout)

    @staticmethod
    def sums(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Σ of the values that each query sees, ``(b, h, n, e)``, in one pass over them; under a mask from means."""
        if layout.mask is not None:
            means = dense.attend(torch.zeros_like(q), k, v, layout)
            return means * layout.counts(q.shape[2], k.shape[2], q.device)[..., None].to(v.dtype)

        def run(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None = None) -> Tensor:
            n, m, wide = q.shape[2], k.shape[2], repeat_heads(v, q.shape[1]).to(accumulate_dtype(v.dtype))
            wide = wide if keys is None else wide.masked_fill(~keys[:, None, :, None], 0)
            if not layout.causal:
                return wide.sum(2, keepdim=True).expand(-1, -1, n, -1).to(v.dtype)
            running = wide.cumsum(2)[:, :, max(m - n, 0) :]
            return torch.nn.functional.pad(running, (0, 0, max(n - m, 0), 0)).to(v.dtype)

        return run(q, k, v, layout.key_mask) if layout.segments is None else alone.per_sequence(run, q, k, v, layout)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [Example("plain", cls(), heads=3, kv_heads=3), Example("grouped", cls(), heads=4, kv_heads=2)]
