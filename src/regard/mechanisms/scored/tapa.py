"""Token-aware phase attention: distance turns a phase that the tokens themselves set."""

from __future__ import annotations

from collections.abc import Sequence

from regard.core.atlas import Claim, published
from regard.core.mechanism import Example
from regard.mechanisms.scored.parts.scores import TokenPhase


@published(
    "tapa",
    family="scored",
    row=167,
    title="Positional Encoding via Token-Aware Phase Attention",
    arxiv="2509.12635",
    year=2025,
    aliases=("token_aware_phase",),
    fidelity="hand values",
    claim=(
        Claim(
            (
                "for independent q and k the mean score shows no trend with distance, while that of rotary "
                "positions of like vectors does"
            ),
            cells="scored.trend",
            holds="scored.has_no_trend",
        ),
        Claim(
            "perplexity grows less beyond the training length",
            cells="small_lm.beside(layers='tapa*2')",
            holds="scored.reads_longer_texts",
        ),
    ),
)
class Tapa(TokenPhase):
    """Softmax attention whose scores oscillate with distance at a rate that q and k set; no rotary positions.

        A = softmax_j((q_A·k_A / √D_A) cos(2π |p_i − p_j|^α q_P·k_P / √D_P)),   q = [q_A, q_P], D_A = θ D

    Args:
        share: θ, the share of the dimensions that is the amplitude. power: α.

    Raises:
        ValueError: a share that leaves one of the parts empty, or a power that is not above zero.

    Paper: Wang et al., arXiv 2509.12635.
    """

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [Example("half", cls(), heads=3, kv_heads=3), Example("a quarter, grouped", cls(0.25, 0.3), 4, 2)]
