"""Softmax attention whose rows are scaled, shifted or gated by what the query's token says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.layer import LayerSpec
from regard.core.layout import Layout
from regard.core.mechanism import Example, Signal, Traits
from regard.kernels import dense
from regard.mechanisms.scored.parts.normalisers import Affine, affine
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
    for each head. Gates of ``each`` element, ``o_i ⊙ σ(x_i W)``, are its host's, as they make no A of their own. At the
    paper's other places, of queries, keys, values and the layer's output, they are the projection `gates`.

    Args:
        scale, softcap, sink_heads: as of `Softmax`. each: whether every element of a head's output has a gate instead.

    Paper: Qiu et al., arXiv 2505.06708.
    """

    traits = replace(Softmax.traits, rows="at most one")
    signals: Mapping[str, Signal] = MappingProxyType(
        {"gate": Signal("how far the head is open", side="query", low=0, high=1)}
    )

    def __init__(
        self,
        scale: float | None = None,
        softcap: float | None = None,
        sink_heads: int | None = None,
        each: bool = False,
    ) -> None:
        super().__init__(scale, softcap, sink_heads)
        self.each = each
        if each:
            rows = "one" if sink_heads is None else "at most one"
            self.signals, self.traits, self.layer = {}, replace(self.traits, rows=rows), LayerSpec(gate="sigmoid")

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        plain = super().weights(q, k, layout, **signals)
        return plain if self.each else plain * signals["gate"][..., None].to(plain.dtype)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        out = super().forward(q, k, v, layout, **signals)
        return out if self.each else out * signals["gate"][..., None].to(v.dtype)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("plain", cls(), heads=3, kv_heads=3),
            Example("grouped", cls(), heads=4, kv_heads=2),
            Example("each element, by the host", cls(each=True)),
        ]


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
            cells="small_lm.tuned(layers='affine_scaled*2')",
            holds="small_lm.tuned_loss_at_most(ratio=1.0)",
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

    traits = Traits(masked=True, biased=True, equivariant=True)
    signals = Affine.signals

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        plain = super().weights(q, k, layout, **signals)
        alpha, beta = (signals[name][..., None].to(plain.dtype) for name in ("alpha", "beta"))
        return (alpha * plain + beta).masked_fill(~layout.allowed(q.shape[2], k.shape[2], q.device), 0)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)
        return affine(dense.attend(q, k, v, layout, self.scale), q, k, v, layout, **signals)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [Example("plain", cls(), heads=3, kv_heads=3), Example("grouped", cls(), heads=4, kv_heads=2)]
