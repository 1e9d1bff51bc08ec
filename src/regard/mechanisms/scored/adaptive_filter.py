"""Adaptive filter attention: keys are carried to their query by linear dynamics, and weighed by their precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, Traits, accumulate_dtype, repeat_heads
from regard.kernels import tiled
from regard.kernels.tiled import Span
from regard.mechanisms.scored.base import Scored

NAMES = ("decay", "process", "measurement", "anchor", "robust", "temperature")


@dataclass(frozen=True)
class Residual:
    """``s_ij = τ² (−log V_ij − log(1 + |q_i − e^{−μΔ} k_j|² / (ν d V_ij)))``, and −μΔ more where ``carried``.

    Args:
        logs: logarithms of μ, σ², η², γ², ν and τ, ``(6, h)``. queries, keys: positions, ``(b or 1, tokens)``.
    """

    logs: Tensor
    queries: Tensor
    keys: Tensor
    carried: bool = False

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return (self.logs,)

    def __call__(self, q: Tensor, k: Tensor, span: Span) -> Tensor:
        decay, process, measurement, anchor, robust, temperature = self.logs.to(q.dtype).exp()[..., None, None]
        apart = (self.queries[:, span.rows, None] - self.keys[:, None, span.cols]).clamp(min=0)[:, None].to(q.dtype)
        kept, v = torch.exp(-decay * apart), variance(apart, decay, process, measurement, anchor)
        squares = q.square().sum(-1)[..., None] + kept.square() * k.square().sum(-1)[..., None, :]
        residual = (squares - 2 * kept * (q @ k.mT)).clamp(min=0)
        scores = temperature.square() * (-v.log() - torch.log1p(residual / (robust * (q.shape[-1] / 2) * v)))
        return scores - decay * apart if self.carried else scores


def variance(apart: Tensor, decay: Tensor, process: Tensor, measurement: Tensor, anchor: Tensor) -> Tensor:
    """``V(Δ) = σ² (1 − e^{−2μΔ}) / 2μ + η² e^{−2μΔ} + γ²``: of a measurement, carried on by Δ, around a query.

    Without γ² it solves ``dP/dΔ = −2μ P + σ²``, P(0) = η². ``apart`` is Δ, at least 0; μ, σ², η², γ² in order.
    """
    shrunk = -2 * decay * apart
    return -process * torch.expm1(shrunk) / (2 * decay) + measurement * shrunk.exp() + anchor


@published(
    "adaptive_filter",
    family="scored",
    row=69,
    title="Attention as an Adaptive Filter",
    arxiv="2509.04154",
    year=2025,
    aliases=("afa", "adaptive_filter_attention"),
    fidelity="authors' code",
    claim=(
        Claim(
            "the variance solves its Lyapunov equation",
            cells="adaptive_filter.lyapunov",
            holds="common.within(most=1e-5)",
        ),
        Claim(
            "without dynamics unit vectors rank as dot products",
            cells="adaptive_filter.ranks",
            holds="adaptive_filter.rank_as_dot_products",
        ),
        Claim(
            "filters a noisy damped oscillator better than softmax attention",
            cells="adaptive_filter.filters",
            holds="adaptive_filter.beats_softmax",
        ),
        Claim(
            "and, without process noise, than with rotary positions",
            cells="adaptive_filter.filters",
            holds="adaptive_filter.beats_rotary_without_noise",
        ),
    ),
)
class AdaptiveFilter(Scored):
    """Each query weighs its past by how surely and how well it predicts the query under linear dynamics with noise.

        W = softmax_j(τ² (−log V(Δ_ij) − log(1 + |q_i − k̂_ij|² / (ν d V(Δ_ij))))),   k̂_ij = e^{−μΔ_ij} k_j
        o_i = Σ_j W_ij e^{−μΔ_ij} v_j,   Δ_ij = p_i − p_j

    A_ij = W_ij e^{−μΔ_ij} is ``weights``; V is `variance`. μ, σ², η², γ², ν and τ are ``decay``, ``process``,
    ``measurement``, ``anchor``, ``robust`` and ``temperature``, learned for each head by their logarithms
    ``logs (6, h)``; d counts complex dimensions, half of those of q. This is the paper's isotropic form in the frame
    that turns with the dynamics; a host's rotary positions turn q and k into it, `filtered` all of q, k, v and the
    output.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h; causal.
    Cost: 2 (2 d + e + 1) FLOPs for each score of the tiles, in two passes. State: all keys and values.

    Args:
        heads: of q. decay … temperature: where each starts.

    Raises:
        ValueError: fewer than one head, a number that is not above zero, or q of other heads.

    Paper: Racioppo, arXiv 2509.04154; the score is that of its code.
    """

    traits = Traits(bidirectional=False, cross=False, masked=True, rows="at most one", sign="nonnegative")

    def __init__(
        self,
        heads: int = 4,
        decay: float = 0.05,
        process: float = 0.1,
        measurement: float = 1.0,
        anchor: float = 1.0,
        robust: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if heads < 1:
            raise wrong("heads", str(heads), "at least 1")
        given = (decay, process, measurement, anchor, robust, temperature)
        for name, value in zip(NAMES, given, strict=True):
            if not value > 0:
                raise wrong(name, str(value), "above 0")
        self.logs = nn.Parameter(torch.tensor(given).log()[:, None].repeat(1, heads))

    def score(self, q: Tensor, m: int, layout: Layout, **signals: Tensor) -> Residual:
        return Residual(self.logs, *self.places(q, m, layout))

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        plain = super().rows(q, k, layout, rows, **signals)
        queries, keys = self.places(q, k.shape[2], layout)
        apart = (queries[:, rows, None] - keys[:, None]).clamp(min=0)[:, None].to(q.dtype)
        return plain * torch.exp(-self.logs[0].to(q.dtype).exp()[:, None, None] * apart)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)
        k, wide = repeat_heads(k, q.shape[1]), accumulate_dtype(q.dtype)
        score = self.score(q, k.shape[2], layout)
        plain = tiled.attend_lse(q, k, torch.ones_like(k[..., :1]), layout, score).lse
        found = tiled.attend_lse(q.to(wide), k.to(wide), v.to(wide), layout, replace(score, carried=True))
        share = torch.exp(found.lse - plain.masked_fill(plain == -torch.inf, 0))
        return (found.out * share[..., None]).to(q.dtype)

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        if q.shape[1] != self.logs.shape[1]:
            raise wrong("q", f"{q.shape[1]} heads", f"the {self.logs.shape[1]} heads of the dynamics")

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        base, cells = super().cost(shape, layout), tiled.cells(shape.n, shape.keys, layout.causal)
        again = 2 * shape.batch * shape.heads * cells * (shape.head_dim + 1)
        return Cost(base.flops + again, base.bytes, base.state_bytes)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("plain", cls(3), heads=3, kv_heads=3),
            Example("fast decay, grouped", cls(4, 0.5, 0.3, 0.2, 0.1, 2.0, 1.3), heads=4, kv_heads=2),
        ]


def filtered(mechanism: AdaptiveFilter, x: Tensor, rates: Tensor) -> Tensor:
    """Each token of ``x (b, h, n, 2 r)`` estimated from itself and its past, under dynamics that turn and decay.

    Dimensions c and r + c turn together by ``rates (r,)`` radians a token, as in `turned`; x is query, key and value.
    """
    times = torch.arange(x.shape[2], device=x.device, dtype=x.dtype)
    still = turned(x, -times, rates)
    return turned(mechanism(still, still, still, Layout(causal=True)), times, rates)


def turned(x: Tensor, times: Tensor, rates: Tensor) -> Tensor:
    """``e^{iωt} x`` of the complex numbers ``x[…, c] + i x[…, r + c]``; ω is ``rates (r,)``, t ``times (n,)``."""
    angles = times[:, None] * rates
    real, imaginary = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([real * cos - imaginary * sin, real * sin + imaginary * cos], -1)
