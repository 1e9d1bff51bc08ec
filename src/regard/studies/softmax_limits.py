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
    missing="its bound on the distance of the output from tokens that are not selected",
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


def jacobian_norm(logits: Tensor, temperature: float) -> Tensor:
    """The spectral norm of the Jacobian of ``p = softmax(z / T)``: that of ``(diag p − p pᵀ) / T``.

    At most 1/(2T): a row's absolute sum is 2 p_i (1 − p_i) / T. At two tied logits above all others it is that.

    Args:
        logits: z ``(…, n)``. temperature: T.
    """
    p = torch.softmax(logits / temperature, -1)
    matrix = torch.diag_embed(p) - p[..., :, None] * p[..., None, :]
    return torch.linalg.eigvalsh(matrix)[..., -1] / temperature
