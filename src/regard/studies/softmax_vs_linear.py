"""Where softmax attention is better than linear attention: one planted key among many decides the label."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong


@published(
    "superiority_of_softmax",
    family="theory",
    kind="study",
    row=349,
    title="Superiority of Softmax: Unveiling the Performance Edge Over Linear Attention",
    arxiv="2310.11685",
    year=2023,
    aliases=("planted_key",),
    claim=Claim(
        text="one planted key in n, its mark a quarter above all others': softmax classifies at least 95% and linear "
        "attention of as many parameters at most 60%, by construction and trained; a stronger key closes the gap",
        status="partly",
        figure="(n, d) = (160, 8), (176, 6), (192, 5), five seeds: trained softmax at least 99.9%, linear at most "
        "58.2%; constructed softmax 100%, "
        "linear at most 60.4%, on average under 60%; gap 43.6% at a mark of 1.25, 0.0% at 16",
        command="pytest tests/claims/test_planted.py",
    ),
)
class PlantedClassifier(nn.Module):
    """A binary classifier of one query over the tokens, whose weighting is softmax or linear.

        s_j = u · x_j,   A_j = exp(s_j) / Σ_j exp(s_j)  or  s_j / Σ_j |s_j|,   logit = g Σ_j A_j (w · x_j) + c

    u is ``score``, w ``value``, g ``gain`` and c ``bias``: 2 d + 2 parameters whatever the weighting. Linear scores are
    divided by the sum of their absolute values, which is their sum where they are positive and never vanishes.

    Shapes: ``x (b, n, d)`` -> ``(b,)``.

    Args:
        dim: d. weighting: "softmax" or "linear".

    Raises:
        ValueError: another weighting.

    Paper: Deng, Song and Zhou, arXiv 2310.11685, whose data and classifiers are others: of constants that grow with n.
    """

    def __init__(self, dim: int, weighting: Literal["softmax", "linear"]) -> None:
        super().__init__()
        if weighting not in ("softmax", "linear"):
            raise wrong("weighting", repr(weighting), "softmax or linear")
        self.weighting = weighting
        self.score, self.value = (nn.Parameter(torch.randn(dim) * size) for size in (0.03, 0.3))
        self.gain, self.bias = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))

    def weights(self, x: Tensor) -> Tensor:
        """A, ``(b, n)``."""
        scores = x @ self.score
        if self.weighting == "softmax":
            return torch.softmax(scores, dim=-1)
        return scores / scores.abs().sum(-1, keepdim=True).clamp(min=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * (self.weights(x) * (x @ self.value)).sum(-1) + self.bias

    @torch.no_grad()
    def construct(self, turn: Tensor, strength: float, sharpness: float = 20.0) -> PlantedClassifier:
        """Sets the exact solution for data turned by ``turn (d, d)``: scores that grow with the mark of a token.

        Softmax takes ``sharpness`` times the mark; linear weighting the mark less the offset that is best for n → ∞.
        """
        sharp = self.weighting == "softmax"
        self.score.copy_(turn[0] * sharpness if sharp else turn[0] - best_offset(strength) * turn[2])
        self.value.copy_(turn[1])
        self.gain.fill_(1)
        self.bias.fill_(0)
        return self


def planted_keys(
    count: int, n: int, dim: int, strength: float, turn: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    """``(x (count, n, dim), label (count,) of 0 and 1)``: tokens with a mark, a sign, a one and noise, turned.

        x_j = Rᵀ [a_j, v_j, 1, ε_j],   a_j ~ U(0, 1) and a = strength for one token,   v_j = ±1,   label = (v + 1) / 2

    The mark a of the planted token is the largest; its sign v is the label, all others' signs are coin tosses.

    Args:
        turn: R, orthogonal, ``(dim, dim)``; rows 0, 1 and 2 are where mark, sign and one are found.

    Raises:
        ValueError: fewer than four channels, or a mark not above the others'.
    """
    if dim < 4:
        raise wrong("dim", str(dim), "at least 4: mark, sign, one and noise")
    if not strength > 1:
        raise wrong("strength", str(strength), "above 1, the largest mark of other tokens")
    x = torch.randn(count, n, dim, generator=generator)
    x[..., 0] = torch.rand(count, n, generator=generator)
    x[..., 1] = torch.randint(2, (count, n), generator=generator) * 2.0 - 1
    x[..., 2] = 1
    place = torch.randint(n, (count,), generator=generator)
    x[torch.arange(count), place, 0] = strength
    return x @ turn, (x[torch.arange(count), place, 1] > 0).to(x.dtype)


def best_offset(strength: float) -> float:
    """The offset o for which scores a − o tell the planted sign from n coin tosses best.

    argmax_o (strength − o)² / E (a − o)²,   a ~ U(0, 1)
    """
    mean, variance = 1 / 2, 1 / 12
    return mean - variance / (strength - mean)


def linear_limit(n: int, strength: float) -> float:
    """The accuracy of the best linear scores among n tokens, by the central limit theorem.

    Φ(√(((strength − 1/2)² + 1/12) · 12 / (n − 1)))
    """
    odds = ((strength - 0.5) ** 2 + 1 / 12) * 12 / (n - 1)
    return 0.5 * (1 + math.erf(math.sqrt(odds / 2)))
