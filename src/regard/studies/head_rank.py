"""What the size of a head decides: which attention matrices it can make, and how near it finds its neighbour."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.blocks.attention import Attention
from regard.blocks.block import Block
from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.sizes import Sizes
from regard.mechanisms.scored.softmax import Softmax
from regard.projections.base import Grouped


@published(
    "fixed_head_size",
    family="scored",
    kind="study",
    row=269,
    title="Low-Rank Bottleneck in Multi-head Attention Models",
    arxiv="2002.07028",
    year=2020,
    aliases=("low_rank_bottleneck", "fixed_multi_head"),
    fidelity="hand values",
    claim=(
        Claim(
            "a head of size n or more can attend by any positive matrix, a small one cannot",
            cells="head_rank.any_matrix",
            holds="head_rank.needs_n",
        ),
        Claim(
            "more heads of a fixed size do not raise a small model's loss, more heads of size d / h do",
            cells="head_rank.language_model",
            holds="head_rank.never_hurts",
        ),
    ),
)
def head_for(target: Tensor, x: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """The query and key matrices of a head that attends, over given hidden states, by a given matrix.

        softmax((x W^Q)(x W^K)ᵀ / √d_p) = P,   W^Q = x⁺ L,   W^K = x⁺ R,   L Rᵀ ≈ √d_p (log P less its rows' means)

    L Rᵀ is the best approximation of rank d_p: exact where d_p ≥ n − 1 and the n rows of x are independent. As a layer:
    `Grouped` with ``head_dim`` d_p set to the length, whatever the number of heads, or ``Config(head_dim=d_p)``.

    Args:
        target: P ``(n, n)``, positive, its rows sum to one. x: ``(n, width)``. head_dim: d_p.

    Returns:
        W^Q and W^K, ``(width, d_p)`` each.

    Raises:
        ValueError: a target that is not positive or whose rows do not sum to one, or dependent rows of x.

    Paper: Bhojanapalli et al., arXiv 2002.07028, theorem 1; there d_p ≥ n.
    """
    check_target(target)
    n = target.shape[0]
    if x.shape[0] != n or torch.linalg.matrix_rank(x) < n:
        raise wrong("x", f"{x.shape[0]} rows of rank {torch.linalg.matrix_rank(x)}", f"{n} independent rows")
    logits = target.log()
    left, sizes, right = torch.linalg.svd((logits - logits.mean(1, keepdim=True)) * head_dim**0.5)
    root, extra = sizes[:head_dim].sqrt(), max(head_dim - n, 0)
    both = left[:, :head_dim] * root, right[:head_dim].mT * root
    inverse = torch.linalg.pinv(x)
    q, k = (inverse @ F.pad(part, (0, extra)) for part in both)
    return q, k


def fit_head(target: Tensor, head_dim: int, steps: int = 500, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Queries and keys ``(n, d_p)`` whose attention is nearest to a matrix, as gradient descent finds them.

    L-BFGS from a random start lowers the mean divergence Σ_j P_ij log(P_ij / A_ij) of the rows.

    Args:
        target: P ``(n, n)``, positive, its rows sum to one. head_dim: d_p. steps: at most. seed: of the start.

    Raises:
        ValueError: a target that is not positive or whose rows do not sum to one.
    """
    check_target(target)
    generator = torch.Generator().manual_seed(seed)
    shape = (2, target.shape[0], head_dim)
    found = torch.randn(shape, generator=generator, dtype=target.dtype).requires_grad_()
    optimiser = torch.optim.LBFGS(
        [found],
        max_iter=steps,
        history_size=50,
        tolerance_grad=1e-12,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def divergence() -> Tensor:
        optimiser.zero_grad()
        scores = found[0] @ found[1].mT * head_dim**-0.5
        value = F.kl_div(F.log_softmax(scores, -1), target, reduction="batchmean")
        value.backward()
        return value

    optimiser.step(divergence)
    q, k = found.detach()
    return q, k


def check_target(target: Tensor) -> None:
    """Raises an error if the matrix cannot be a softmax."""
    square = target.dim() == 2 and target.shape[0] == target.shape[1]
    if not square or not (target > 0).all() or not torch.allclose(target.sum(-1), target.new_ones(())):
        raise wrong("target", f"shape {tuple(target.shape)}", "a square matrix, positive, whose rows sum to one")


@published(
    "rank_tradeoff",
    family="theory",
    kind="study",
    row=11,
    title="On the Benefits of Rank in Attention Layers",
    arxiv="2407.16153",
    year=2024,
    aliases=("nearest_neighbour_head", "benefits_of_rank"),
    fidelity="hand values",
    claim=(
        Claim(
            "one head of full rank picks the nearest of N points on the sphere",
            cells="head_rank.full_rank",
            holds="head_rank.picks_the_nearest",
        ),
        Claim(
            "one layer of trained heads of rank d / 4 keeps at least 3 times its error with H r = 4 d",
            cells="head_rank.low_rank",
            holds="head_rank.misses_it",
        ),
        Claim("depth narrows the gap", cells="head_rank.depth", holds="head_rank.narrows"),
    ),
)
def nearest(points: Tensor, y: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """One head of full rank that finds the point nearest to y, in closed form.

        out = Σ_i w_i x_i,   w = softmax_i(β x_i · y),   W^Q W^Kᵀ = β I

    For points on the sphere the largest weight is the nearest point's, and out nears it as β grows.

    Args:
        points: x ``(b, N, d)``, of length one. y: ``(b, d)``. beta: β.

    Returns:
        ``(out (b, d), weights (b, N))``.

    Paper: Amsel, Yehudai and Bruna, arXiv 2407.16153.
    """
    head, q, k = Softmax(scale=beta), y[:, None, None], points[:, None]
    return head(q, k, k)[:, 0, 0], head.weights(q, k)[:, 0, 0]


class RankNetwork(nn.Module):
    """A transformer that is shown points and a target, to be trained to answer with the point nearest to it.

    Tokens are the points and y, told apart by a learned vector; the answer is read at y after ``depth`` blocks whose
    heads have queries and keys of size ``rank`` and values of size d.

    Shapes: ``points (b, N, d)``, ``y (b, d)`` -> ``(b, d)``.

    Args:
        d: of the points. rank: r. heads: H. depth: L. width, inner: of the blocks.
    """

    def __init__(self, d: int, rank: int, heads: int, depth: int = 1, width: int = 64, inner: int = 128) -> None:
        super().__init__()
        self.embed, self.read = nn.Linear(d, width), nn.Linear(width, d)
        self.mark = nn.Parameter(0.5 * torch.randn(width))
        layers = (Attention(Softmax(), Grouped(Sizes(width, heads, heads, rank, d))) for _ in range(depth))
        self.blocks = nn.ModuleList(Block(layer, width, inner) for layer in layers)

    def forward(self, points: Tensor, y: Tensor) -> Tensor:
        x = torch.cat([self.embed(points), self.embed(y)[:, None] + self.mark], 1)
        for block in self.blocks:
            x = block(x)
        return self.read(x[:, -1])


def sphere(batch: int, count: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Uniform points ``(b, N, d)`` and y ``(b, d)`` on the sphere, and the point nearest to y, ``(b, d)``."""
    drawn = F.normalize(torch.randn(batch, count + 1, d, generator=generator), dim=-1)
    points, y = drawn[:, :-1], drawn[:, -1]
    which = torch.cdist(points, y[:, None])[..., 0].argmin(1)
    return points, y, points[torch.arange(batch), which]
