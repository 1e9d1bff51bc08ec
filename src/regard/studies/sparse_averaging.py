"""Averages of a few values that positions point to: easy for a head, hard for what has no pairs."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from regard.core.atlas import Claim, published
from regard.mechanisms.scored.softmax import Softmax


@published(
    "sparse_averaging",
    family="theory",
    kind="study",
    row=352,
    title="Representational Strengths and Limitations of Transformers",
    arxiv="2306.02896",
    year=2023,
    aliases=("q_sparse_averaging",),
    missing="recurrent baselines, and pairs and triples that match (Match2, Match3)",
    fidelity="hand values",
    claim=(
        Claim(
            "one head by construction averages 3 of 64 values that each position names, to 0.05",
            cells="averages.constructed",
            holds="averages.is_near",
        ),
        Claim(
            "a network without attention and as many parameters, trained at its best rate, stays above 0.2",
            cells="averages.fitted",
            holds="averages.stays_apart",
        ),
        Claim(
            "the size that a head needs grows as the logarithm of the number of positions",
            cells="averages.sizes",
            holds="averages.grows_as_log",
        ),
    ),
)
def constructed(chosen: Tensor, values: Tensor, codes: Tensor, sharpness: float = 60.0) -> Tensor:
    """Averages of the values that each position names, by one head of softmax attention, in closed form.

        k_j = u_j,   q_i = β U_y (U_yᵀ U_y)⁻¹ 1,   so that q_i · k_j = β for j in y_i, and less for others

    Codes u are random signs over √d, nearly orthogonal once d is a few times q log N; U_y are those that y_i names.

    Args:
        chosen: y ``(b, N, q)``, positions. values: z ``(b, N, e)``. codes: u ``(N, d)``. sharpness: β.

    Returns:
        ``(b, N, e)``.

    Paper: Sanford, Hsu and Telgarsky, arXiv 2306.02896, theorem 2.
    """
    named = codes[chosen]
    weights = torch.linalg.lstsq(named @ named.mT, torch.ones_like(named[..., :1]), driver="gelsd").solution
    q = sharpness * (named * weights).sum(-2)
    keys = codes.expand(values.shape[0], -1, -1)
    return Softmax(scale=1.0)(q[:, None], keys[:, None], values[:, None])[:, 0]


def signs(count: int, d: int, generator: Generator) -> Tensor:
    """Random codes ``(count, d)`` of length one."""
    return (2.0 * torch.randint(2, (count, d), generator=generator) - 1) * d**-0.5


def draw(batch: int, count: int, q: int, e: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Names y ``(b, N, q)``, values in the unit ball ``(b, N, e)``, and the averages that are asked for."""
    chosen = torch.rand(batch, count, count, generator=generator).topk(q).indices
    values = nn.functional.normalize(torch.randn(batch, count, e, generator=generator), dim=-1)
    wanted = values[torch.arange(batch)[:, None, None], chosen].mean(2)
    return chosen, values, wanted
