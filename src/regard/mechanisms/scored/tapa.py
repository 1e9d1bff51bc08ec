"""Token-aware phase attention: distance turns a phase that the tokens themselves set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, LayerSpec, Traits
from regard.kernels.tiled import Span
from regard.mechanisms.scored.base import Scored


@dataclass(frozen=True)
class Phase:
    """``s_ij = (q_A·k_A / √D_A) cos(2π |p_i − p_j|^α q_P·k_P / √D_P)``.

    Args:
        split: D_A, the first dimensions, of the amplitude. power: α. queries, keys: positions ``(b or 1, tokens)``.
    """

    split: int
    power: float
    queries: Tensor
    keys: Tensor
    parameters: tuple[Tensor, ...] = ()

    def __call__(self, q: Tensor, k: Tensor, span: Span) -> Tensor:
        apart = (self.queries[:, span.rows, None] - self.keys[:, None, span.cols]).abs()[:, None].to(q.dtype)
        rest = q.shape[-1] - self.split
        amplitude = q[..., : self.split] @ k[..., : self.split].mT * self.split**-0.5
        phase = q[..., self.split :] @ k[..., self.split :].mT * rest**-0.5
        return amplitude * torch.cos(2 * math.pi * apart**self.power * phase)


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
class Tapa(Scored):
    """Softmax attention whose scores oscillate with distance at a rate that q and k set; no rotary positions.

        A = softmax_j((q_A·k_A / √D_A) cos(2π |p_i − p_j|^α q_P·k_P / √D_P)),   q = [q_A, q_P], D_A = θ D

    Args:
        share: θ, the share of the dimensions that is the amplitude. power: α.

    Raises:
        ValueError: a share that leaves one of the parts empty, or a power that is not above zero.

    Paper: Wang et al., arXiv 2509.12635.
    """

    traits = Traits(masked=True, rows="one", sign="nonnegative", cross=False)
    layer = LayerSpec(rotary=False)

    def __init__(self, share: float = 0.5, power: float = 0.1) -> None:
        super().__init__()
        if not 0 < share < 1:
            raise wrong("share", str(share), "above 0 and below 1")
        if not power > 0:
            raise wrong("power", str(power), "above zero")
        self.share, self.power = share, power

    def score(self, q: Tensor, m: int, layout: Layout, **signals: Tensor) -> Phase:
        d = q.shape[-1]
        if d < 2:
            raise wrong("q", f"head_dim {d}", "at least 2: an amplitude and a phase")
        split = min(max(round(self.share * d), 1), d - 1)
        return Phase(split, self.power, *self.places(q, m, layout))

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [Example("half", cls(), heads=3, kv_heads=3), Example("a quarter, grouped", cls(0.25, 0.3), 4, 2)]
