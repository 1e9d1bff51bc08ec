"""Linear attention by the Taylor series of the exponential, to the second order."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.mechanism import Example, LayerSpec, Traits
from regard.mechanisms.linear.base import Recurrent
from regard.mechanisms.linear.taylor_features import series, series_dim


@published(
    "based",
    family="linear",
    row=272,
    title="Simple linear attention language models balance the recall-throughput tradeoff",
    arxiv="2402.18668",
    year=2024,
    aliases=("taylor", "taylor_linear_attention"),
    fidelity="third-party code",
    claim=(
        Claim(
            "recurrent = parallel; φ(q)·φ(k) = 1 + s + s²/2",
            cells="taylor.causal(name=based)",
            holds="common.within(most=1e-9)",
        ),
        Claim(
            "recall rises with the feature dimension, above linear attention of equal state",
            cells="recall.based_and_linear",
            holds="recall.rises_with_features",
        ),
        Claim("recall rises with the window", cells="recall.windows", holds="recall.rises_with_the_window"),
    ),
)
class Based(Recurrent):
    """Linear attention whose products are the exponential's Taylor series up to the square.

        A_ij = f(s_ij) / Σ_{j' ≤ i} f(s_ij'),   f(s) = 1 + s + s²/2 = φ(q) · φ(k),   s_ij = q_i · k_j / √d,
        φ(x) = [1, x d^{-1/4}, x ⊗ x / √(2 d)]

    A is ``weights``; f is positive, so rows are means. The paper takes d = 16 and puts layers of it beside windows and
    short convolutions: ``layers="based, window(size=64)"``. State: (1 + d + d²)(e + 1) numbers a head.

    Paper: Arora et al., arXiv 2402.18668.
    """

    traits = Traits(bidirectional=False, time="linear", state="constant", rows="one", sign="nonnegative")
    layer = LayerSpec(rotary=False)
    normalised = True

    def features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        root = q.shape[-1] ** -0.25
        return series(q * root, 2), series(k * root, 2)

    def feature_dim(self, head_dim: int) -> int:
        return series_dim(head_dim, 2)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [Example("plain", cls(), heads=3, kv_heads=3), Example("grouped", cls(), heads=4, kv_heads=2)]
