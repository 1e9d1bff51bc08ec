"""Averages of a few values that positions point to: easy for a head, hard for what has no pairs."""

from __future__ import annotations

import math

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
        Claim(
            "a recurrent network of as many parameters, both ways and at its best rate, stays above 0.2",
            cells="averages.recurrent",
            holds="averages.stays_apart",
        ),
        Claim(
            "one layer learns which numbers have another that adds up with them to zero, and not which have two others",
            cells="averages.matched",
            holds="averages.pairs_not_triples",
        ),
        Claim(
            "one head by construction tells pairs that match without a fault",
            cells="averages.constructed_pairs",
            holds="averages.tells_pairs",
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


def matches(numbers: Tensor, modulus: int, triples: bool = False) -> Tensor:
    """Which of the numbers ``(b, N)`` add up to zero with another, or with two others; any may be the number itself.

    Match2: x_i + x_j ≡ 0,   Match3: x_i + x_j + x_k ≡ 0 mod M, for some j (and k)
    """
    others = (numbers[:, :, None] + numbers[:, None]).flatten(1) if triples else numbers
    there = torch.zeros(numbers.shape[0], modulus, dtype=torch.bool, device=numbers.device)
    there.scatter_(1, others % modulus, True)
    return there.gather(1, -numbers % modulus)


def balanced(modulus: int, triples: bool) -> int:
    """How many numbers, drawn alike below M, match one time in two."""
    return round((2 * modulus * math.log(2)) ** 0.5) if triples else round(modulus * math.log(2))


def told_pairs(numbers: Tensor, modulus: int, sharpness: float = 40.0) -> Tensor:
    """Match2 by one head of size three and a key for nothing: whether nothing has less than half of the weight.

        q_i = β (cos θ_i, −sin θ_i),   k_j = (cos θ_j, sin θ_j),   θ = 2 π x / M,   q·k = β cos(θ_i + θ_j)

    which is β where the numbers match and at most ``β cos(2 π / M)`` elsewhere, ``sharpness`` less; nothing scores
    halfway between.

    Paper: Sanford, Hsu and Telgarsky, arXiv 2306.02896, theorem 6.
    """
    turn = 2 * math.pi * numbers.double() / modulus
    keys = torch.stack([turn.cos(), turn.sin()], -1)
    beta = sharpness / (1 - math.cos(2 * math.pi / modulus))
    q = beta * torch.stack([turn.cos(), -turn.sin(), torch.ones_like(turn)], -1)
    halfway = (1 + math.cos(2 * math.pi / modulus)) / 2
    nothing = keys.new_tensor([0.0, 0.0, halfway]).expand(numbers.shape[0], 1, 3)
    keys = torch.cat([nn.functional.pad(keys, (0, 1)), nothing], 1)
    values = torch.ones_like(keys[..., :1])
    values[:, -1] = 0
    return Softmax(scale=1.0)(q[:, None], keys[:, None], values[:, None])[:, 0, :, 0] > 0.5


class OneLayer(nn.Module):
    """One head over embedded numbers and a learned key for nothing, and a network of one hidden layer behind it.

    Shapes: ``numbers (b, N)`` -> logits ``(b, N)`` of a match.

    Args:
        modulus: M. width: of embeddings, of the head and of the hidden layer.
    """

    def __init__(self, modulus: int, width: int = 64) -> None:
        super().__init__()
        self.embed, self.nothing = nn.Embedding(modulus, width), nn.Parameter(torch.randn(1, 1, width))
        self.maps, self.attention = nn.Linear(width, 3 * width), Softmax()
        self.out = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, numbers: Tensor) -> Tensor:
        x = self.embed(numbers)
        q = self.maps(x).chunk(3, -1)[0]
        _, k, v = self.maps(torch.cat([x, self.nothing.expand(len(x), -1, -1)], 1)).chunk(3, -1)
        seen = self.attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return self.out(torch.cat([x, seen], -1))[..., 0]
