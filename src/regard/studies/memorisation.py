"""How many examples one layer of many heads can know by heart."""

from __future__ import annotations

import math
from itertools import combinations

import torch
from torch import Generator, Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong


@published(
    "memorisation",
    family="theory",
    kind="study",
    row=318,
    title="Memorization Capacity of Multi-Head Attention in Transformers",
    arxiv="2306.02010",
    year=2024,
    aliases=("memorization_capacity",),
    fidelity="hand values",
    claim=(
        Claim(
            "H heads know H (r − 1) + 1 examples at least, r the lesser of tokens and head size",
            cells="memorisation.separate",
            holds="memorisation.reaches_the_bound",
        ),
        Claim(
            "where all examples share their context, they know so many and not one more, linear in H",
            cells="memorisation.shared",
            holds="memorisation.is_the_bound",
        ),
        Claim(
            "heads that gradient descent trains know no fewer than the bound, and as many more as there are more heads",
            cells="memorisation.trained",
            holds="memorisation.descends_to_the_bound",
        ),
    ),
)
def read_by_heads(context: Tensor, query: Tensor, maps: Tensor) -> Tensor:
    """What every head reads for each example, ``(T, H d)``: outputs are linear in it, so its rank is what can be known.

        z_th = Σ_i p_thi x_ti,   p_th = softmax_i(x_ti · W_h e_t)

    Args:
        context: x ``(T or 1, n, d)``. query: e ``(T, d)``. maps: W ``(H, d, d)``.

    Paper: Mahdavi, Liao and Thrampoulidis, arXiv 2306.02010.
    """
    scores = torch.einsum("tid,hde,te->thi", context.expand(query.shape[0], -1, -1), maps, query)
    return torch.einsum("thi,tid->thd", scores.softmax(-1), context.expand(query.shape[0], -1, -1)).flatten(1)


class Memory(nn.Module):
    """The layer itself, all of it trained: ``y_t = Σ_h v_h · z_th``, z_th as in `read_by_heads`.

    Args:
        count: H. d: of tokens. head_dim: rank of each W_h = Q_h K_hᵀ. generator: of the initial weights.
    """

    def __init__(self, count: int, d: int, head_dim: int, generator: Generator) -> None:
        super().__init__()
        q, k = torch.randn(2, count, d, head_dim, generator=generator) * d**-0.5
        self.q, self.k = nn.Parameter(q), nn.Parameter(k)
        self.v = nn.Parameter(torch.randn(count * d, generator=generator) * (count * d) ** -0.5)

    def forward(self, context: Tensor, query: Tensor) -> Tensor:
        return read_by_heads(context, query, self.k @ self.q.mT) @ self.v


def kruskal_rank(x: Tensor, tolerance: float = 1e-9) -> int:
    """The largest k for which any k of the rows of x ``(n, d)`` are linearly independent.

    The theorem asks of the queries of all examples, e, that it is d, and of each context that its tokens are
    independent (`is_general`). Every choice of rows is looked at: for few rows.

    Raises:
        ValueError: over a million choices.
    """
    n, d = x.shape
    for k in range(1, min(n, d) + 1):
        if math.comb(n, k) > 10**6:
            raise wrong("x", f"{math.comb(n, k)} choices of {k} rows", "at most a million")
        chosen = x[torch.tensor(list(combinations(range(n), k)))]
        if (torch.linalg.svdvals(chosen)[:, -1] <= tolerance * x.norm(dim=1).max()).any():
            return k - 1
    return min(n, d)


def is_general(context: Tensor, query: Tensor, tolerance: float = 1e-9) -> bool:
    """Whether the theorem's assumptions hold: any n queries and each context are linearly independent.

    Args:
        context: ``(T or 1, n, d)``. query: ``(T, d)``; n is at most d.
    """
    n, d = context.shape[1:]
    if n > d:
        raise wrong("context", f"{n} tokens of {d} numbers", "no more tokens than numbers")
    independent = torch.linalg.matrix_rank(context, rtol=tolerance) == n
    return bool(independent.all()) and kruskal_rank(query, tolerance) >= min(n, len(query))


def capacity(read: Tensor, labels: Tensor, tolerance: float = 1e-6) -> int:
    """The largest T for which the first T labels are linear in what was read, ``(T, features)``, to a relative error.

    Raises:
        ValueError: all of them are: there are too few examples to tell.
    """
    low, high = 0, read.shape[0]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(read[:middle], labels[:middle], tolerance) else (low, middle)
    if high == read.shape[0] and fits(read, labels, tolerance):
        raise wrong("read", f"{read.shape[0]} examples, all known", "more examples than can be known")
    return low


def fits(read: Tensor, labels: Tensor, tolerance: float) -> bool:
    """Whether least squares gives the labels."""
    found = torch.linalg.lstsq(read, labels[:, None], driver="gelsd").solution
    return bool((read @ found - labels[:, None]).norm() <= tolerance * labels.norm())


def heads(count: int, d: int, head_dim: int, generator: Generator, scale: float = 4.0) -> Tensor:
    """Random products of query and key maps of rank ``head_dim``, ``(count, d, d)``, large enough to be selective."""
    q, k = torch.randn(2, count, d, head_dim, generator=generator, dtype=torch.float64)
    return scale * q @ k.mT * (d * head_dim) ** -0.5
