"""Linear attention with the feature map elu + 1."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import elu

from regard.core.atlas import Claim, published
from regard.core.mechanism import Example, LayerSpec
from regard.mechanisms.linear.base import Averaged


@published(
    "linear",
    family="linear",
    title="Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
    arxiv="2006.16236",
    year=2020,
    aliases=("linear_attention", "elu"),
    fidelity="third-party code",
    claim=(
        Claim(
            "chunked, recurrent and quadratic forms are equal",
            cells="recurrent.forms_of(kind=linear)",
            holds="common.within(most=1e-9)",
        ),
        Claim(
            "one decoding step costs the same after any number of tokens",
            cells="recurrent.step_of(kind=linear)",
            holds="recurrent.costs_the_same",
        ),
    ),
)
class Linear(Averaged):
    """Each query takes the mean of earlier values, weighted by products of positive features.

        A_ij = φ(q_i) · φ(k_j) / Σ_{j' ≤ i} φ(q_i) · φ(k_j'),   φ(x) = elu(x) + 1

    A is ``weights``; bidirectional, the sum runs over all keys. See `Recurrent` for shapes and state, which has one
    column more for the sums.

    Paper: Katharopoulos et al., arXiv 2006.16236.
    """

    layer = LayerSpec(rotary=False)

    def features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return elu(q) + 1, elu(k) + 1

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [Example("plain", cls(), heads=3, kv_heads=3), Example("grouped", cls(), heads=4, kv_heads=2)]
