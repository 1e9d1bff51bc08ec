"""Heads of softmax attention that learn linear regression from its prompt."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from regard.core.atlas import Claim, published


@published(
    "in_context_regression",
    family="theory",
    kind="study",
    row=133,
    title=(
        "In-Context Linear Regression Demystified: Training Dynamics and Mechanistic Interpretability of Multi-Head "
        "Softmax Attention"
    ),
    arxiv="2503.12734",
    year=2025,
    aliases=("icl_regression", "debiased_gradient_descent"),
    fidelity="hand values",
    claim=(
        Claim(
            "trained query–key matrices are diagonal on x and zero elsewhere, and what heads give sums to zero",
            cells="regression.trained",
            holds="regression.is_diagonal_and_sums_to_zero",
        ),
        Claim(
            "four heads are better than one, and within 1.2 times the risk of the best debiased step of gradient "
            "descent",
            cells="regression.trained",
            holds="regression.four_are_better",
        ),
        Claim(
            "where covariates vary more along some axes, the matrices weigh these less: a step of descent that is "
            "preconditioned, better than a plain one of the best size",
            cells="regression.preconditioned",
            holds="regression.weighs_by_variance",
        ),
    ),
)
class RegressionHeads(nn.Module):
    """One layer of softmax attention over a prompt of pairs, read at the query.

        ŷ = Σ_h O_h Σ_i z_i softmax_i(z_iᵀ K_h z_q),   z_i = [x_i; y_i],   z_q = [x_q; 0]

    K_h is `product`, of a query's and a key's map together, and O_h `read`, the row of the output's and the value's map
    that writes ŷ. Trained, K_h is ω_h I on x and zero elsewhere, O_h reads y alone, and Σ_h O_h is near zero: two heads
    of opposite ω are one step of gradient descent with the mean of y taken off.

    Shapes: ``x (b, L, d)``, ``y (b, L)``, ``query (b, d)`` -> ``(b,)``.

    Args:
        d: of x. heads: H. generator: of the initial weights.

    Paper: He et al., arXiv 2503.12734.
    """

    def __init__(self, d: int, heads: int, generator: Generator, spread: float = 0.05) -> None:
        super().__init__()
        self.product = nn.Parameter(spread * torch.randn(heads, d + 1, d + 1, generator=generator))
        self.read = nn.Parameter(spread * torch.randn(heads, d + 1, generator=generator))

    def forward(self, x: Tensor, y: Tensor, query: Tensor) -> Tensor:
        z, asked = torch.cat([x, y[..., None]], -1), torch.cat([query, torch.zeros_like(query[:, :1])], -1)
        weights = torch.einsum("bie,hef,bf->bhi", z, self.product, asked).softmax(-1)
        return torch.einsum("bhi,bie,he->b", weights, z, self.read)


def prompts(batch: int, length: int, d: int, noise: float, generator: Generator) -> tuple[Tensor, ...]:
    """x ``(b, L, d)`` normal, y = β·x + noise with β normal over √d, a query, and its answer without noise."""
    x, query = torch.randn(batch, length, d, generator=generator), torch.randn(batch, d, generator=generator)
    beta = torch.randn(batch, d, generator=generator) * d**-0.5
    y = torch.einsum("bid,bd->bi", x, beta) + noise * torch.randn(batch, length, generator=generator)
    return x, y, query, (query * beta).sum(-1)


def bayes(x: Tensor, y: Tensor, query: Tensor, noise: float) -> Tensor:
    """The best prediction there is: ridge regression with ``λ = d noise²``."""
    d = x.shape[-1]
    gram = x.mT @ x + d * noise**2 * torch.eye(d, dtype=x.dtype)
    return (torch.linalg.solve(gram, (x.mT @ y[..., None]))[..., 0] * query).sum(-1)


def debiased_step(x: Tensor, y: Tensor, query: Tensor, answer: Tensor) -> Tensor:
    """What one step of gradient descent from nothing predicts, of pairs with their means taken off.

    ŷ = η Σ_i (y_i − ȳ) (x_i − x̄) · x_q,   η the best for these answers
    """
    told = torch.einsum("bi,bid,bd->b", y - y.mean(1, keepdim=True), x - x.mean(1, keepdim=True), query)
    return told * (told @ answer) / (told @ told)


class SeveralRegressions(nn.Module):
    """`RegressionHeads` of several tasks on the same covariates, which heads may share.

        ŷ_t = Σ_h O_ht Σ_i z_i softmax_i(z_iᵀ K_h z_q),   z_i = [x_i; y_i1; …; y_iT],   z_q = [x_q; 0]

    Shapes: ``x (b, L, d)``, ``y (b, L, T)``, ``query (b, d)`` -> ``(b, T)``.

    Args:
        d: of x. tasks: T. heads, generator, spread: as in `RegressionHeads`.
    """

    def __init__(self, d: int, tasks: int, heads: int, generator: Generator, spread: float = 0.05) -> None:
        super().__init__()
        self.product = nn.Parameter(spread * torch.randn(heads, d + tasks, d + tasks, generator=generator))
        self.read = nn.Parameter(spread * torch.randn(heads, tasks, d + tasks, generator=generator))

    def forward(self, x: Tensor, y: Tensor, query: Tensor) -> Tensor:
        z, asked = torch.cat([x, y], -1), nn.functional.pad(query, (0, y.shape[2]))
        weights = torch.einsum("bie,hef,bf->bhi", z, self.product, asked).softmax(-1)
        return torch.einsum("bhi,bie,hte->bt", weights, z, self.read)


def several_prompts(
    batch: int, length: int, scales: Tensor, noise: float, tasks: int, generator: Generator
) -> tuple[Tensor, ...]:
    """x ``(b, L, d)`` normal of these deviations ``(d,)`` along the axes, y ``(b, L, T)``, a query, and its answers
    without noise ``(b, T)``; each task has a β of its own."""
    d = len(scales)
    x = scales * torch.randn(batch, length, d, generator=generator)
    query = scales * torch.randn(batch, d, generator=generator)
    beta = torch.randn(batch, d, tasks, generator=generator) * d**-0.5
    y = x @ beta + noise * torch.randn(batch, length, tasks, generator=generator)
    return x, y, query, (query[:, None] @ beta)[:, 0]


def step_of_descent(x: Tensor, y: Tensor, query: Tensor, sizes: Tensor) -> Tensor:
    """What β says after one step from zero, ``x_qᵀ diag(sizes) Σ_i x_i y_i / L``, ``(b, T)``."""
    return (query * sizes)[:, None].matmul(x.mT @ y)[:, 0] / x.shape[1]
