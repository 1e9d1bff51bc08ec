"""What softmax cannot do: how much it can change, and how far what it selects stands out from the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.errors import wrong


@published(
    "softmax_limits",
    family="theory",
    kind="study",
    row=4,
    title="Limitations of Normalization in Attention Mechanism",
    arxiv="2508.17821",
    year=2025,
    aliases=("limits_of_normalisation", "separability"),
    fidelity="hand values",
    claim=(
        Claim(
            "the Jacobian of softmax has a spectral norm of 1/(2T) at most, which it nears where two logits tie",
            cells="limits.jacobians",
            holds="limits.are_bounded",
        ),
        Claim(
            "the share of selected tokens that stand apart from the rest falls from 1 to 64 selected",
            cells="limits.selected",
            holds="limits.falls",
        ),
    ),
)
def separable_share(weights: Tensor, x: Tensor, count: int, chosen: Tensor | None = None) -> Tensor:
    """The share of the selected tokens that lie nearer to what is read than every token that is not selected.

        s = Σ_{i in I} α_i x_i / Σ_{i in I} α_i,   share = |{i in I: |s − x_i| < min_{j not in I} |s − x_j|}| / N

    I are the N tokens of the largest weights; the ball around s is as large as the nearest other token allows.

    Args:
        weights: α, rows ``(rows, m)`` of A. x: ``(m, e)``, what is read. count: N, below m. chosen: I, ``(rows, N)``;
            None for the largest.

    Raises:
        ValueError: as many tokens as there are, or none.

    Paper: Mudarisov et al., arXiv 2508.17821, whose centre is not divided by the sum.
    """
    if not 0 < count < x.shape[0]:
        raise wrong("count", str(count), f"1 to {x.shape[0] - 1}")
    chosen = weights.topk(count, -1).indices if chosen is None else chosen
    picked = torch.zeros_like(weights, dtype=torch.bool).scatter(-1, chosen, True)
    own, x = (weights * picked).double(), x.double()
    center = (own / own.sum(-1, keepdim=True).clamp(min=1e-30)) @ x
    apart = torch.cdist(center, x, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = apart.masked_fill(picked, torch.inf).amin(-1, keepdim=True)
    return ((apart < nearest) & picked).sum(-1) / count


def distance_to_rest(weights: Tensor, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """How far what the selected tokens give is from what all others give, and the most that it can be, ``(rows,)``.

        d = |Σ_{i in I} α_i x_i − Σ_{j not in I} α_j x_j| ≤ min(p, 1 − p) D + |1 − 2p| R,   p = Σ_{i in I} α_i

    D is the largest distance of a selected token from another one, R the largest norm: each sum is its mass times a
    mean of its tokens, so that d is at most the lesser mass times the distance of the means, and what is left of the
    larger mass times a norm. As rows get even, p falls to N / m, and only R is left of it: nothing tells what was
    selected.

    Args:
        weights, x, count: as in `separable_share`; rows of sum one.

    Raises:
        ValueError: as many tokens as there are, or none.

    Paper: Mudarisov et al., arXiv 2508.17821, of which d is; the bound is proven here.
    """
    if not 0 < count < x.shape[0]:
        raise wrong("count", str(count), f"1 to {x.shape[0] - 1}")
    picked = torch.zeros_like(weights, dtype=torch.bool).scatter(-1, weights.topk(count, -1).indices, True)
    a, x = weights.double(), x.double()
    mass = (a * picked).sum(-1)
    apart = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    widest = torch.stack([apart[own][:, ~own].max() for own in picked])
    most = torch.minimum(mass, 1 - mass) * widest + (1 - 2 * mass).abs() * x.norm(dim=-1).max()
    return ((a * torch.where(picked, 1.0, -1.0)) @ x).norm(dim=-1), most


def weight_range(scores: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The least and the most that a weight of softmax can be, ``(rows,)`` each: ``e^{∓2Δ/T} / m``, Δ the largest score.

    Both fall as 1/m for scores that do not grow, which is why attention vanishes over long texts.

    Args:
        scores: ``(rows, m)``. temperature: T.
    """
    reach = 2 * scores.abs().amax(-1) / temperature
    return torch.exp(-reach) / scores.shape[-1], torch.exp(reach) / scores.shape[-1]


def jacobian_norm(logits: Tensor, temperature: float) -> Tensor:
    """The spectral norm of the Jacobian of ``p = softmax(z / T)``: that of ``(diag p − p pᵀ) / T``.

    At most 1/(2T): a row's absolute sum is 2 p_i (1 − p_i) / T. At two tied logits above all others it is that.

    Args:
        logits: z ``(…, n)``. temperature: T.
    """
    p = torch.softmax(logits / temperature, -1)
    matrix = torch.diag_embed(p) - p[..., :, None] * p[..., None, :]
    return torch.linalg.eigvalsh(matrix)[..., -1] / temperature
