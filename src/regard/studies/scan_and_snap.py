"""How one layer learns which tokens to attend to: it scans for those that tell, then snaps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from regard.core.atlas import Claim, published


@published(
    "scan_and_snap",
    family="theory",
    kind="study",
    row=332,
    title="Scan and Snap: Understanding Training Dynamics and Token Composition in 1-layer Transformer",
    arxiv="2305.16380",
    year=2023,
    aliases=("scan_snap",),
    fidelity="hand values",
    claim=(
        Claim(
            "attention to tokens that come with every answer falls to a tenth of what it was",
            cells="snapping.trained",
            holds="snapping.forgets_the_common",
        ),
        Claim(
            "tokens that come with one answer are ranked by how often they do",
            cells="snapping.trained",
            holds="snapping.ranks_the_distinct",
        ),
        Claim(
            "attention stops before it rests on one token, and sooner where the decoder learns faster",
            cells="snapping.ratios",
            holds="snapping.stops",
        ),
        Claim(
            "queries that share tokens and a decoder each leave those that are common to their own answers, and keep "
            "to those that tell, though these are common to the other query's",
            cells="snapping.shared",
            holds="snapping.each_query_by_itself",
        ),
    ),
)
@dataclass(frozen=True)
class Snap:
    """A layer of one-hot tokens without positions, and what a query attends to while it is trained by plain descent.

        b_l = c_l exp(z_l) / Σ c exp(z),   f = b / |b|,   logits = Yᵀ f

    c counts the tokens of a sequence, z are the attention logits of the query over tokens, Y the decoder; both begin as
    zeros.

    Args:
        chances: ``(answers, tokens)``, how often each token comes with each answer; rows sum to one. length, batch: of
            sequences. rate: of z. ratio: of Y's rate over it.

    Paper: Tian et al., arXiv 2305.16380.
    """

    chances: Tensor
    length: int = 128
    batch: int = 128
    rate: float = 10.0
    ratio: float = 1.0

    def logits(self, z: Tensor, y: Tensor, counts: Tensor) -> Tensor:
        """Of the answers, ``(b, answers)``."""
        return F.normalize(counts * torch.exp(z - z.max()), dim=-1) @ y

    def shares(self, z: Tensor) -> Tensor:
        """What attention each token gets over all answers, by its chance."""
        return torch.softmax(z + self.chances.mean(0).clamp(min=1e-12).log(), 0)

    def train(self, steps: int, seed: int) -> tuple[Tensor, Tensor]:
        """z, and the entropy of the shares after each step, in nats."""
        generator = Generator().manual_seed(seed)
        answers, tokens = self.chances.shape
        z, y = torch.zeros(tokens, requires_grad=True), torch.zeros(tokens, answers, requires_grad=True)
        entropies = []
        for _ in range(steps):
            answer = torch.randint(answers, (self.batch,), generator=generator)
            drawn = torch.multinomial(self.chances[answer], self.length, replacement=True, generator=generator)
            counts = torch.zeros(self.batch, tokens).scatter_add_(1, drawn, torch.ones(drawn.shape))
            slopes = torch.autograd.grad(F.cross_entropy(self.logits(z, y, counts), answer), (z, y))
            with torch.no_grad():
                z -= self.rate * slopes[0]
                y -= self.rate * self.ratio * slopes[1]
            shares = self.shares(z.detach())
            entropies.append(-torch.special.xlogy(shares, shares).sum())
        return z.detach(), torch.stack(entropies)


@dataclass(frozen=True)
class SharedSnap:
    """Several queries over the same tokens, each with attention of its own, before one decoder of all their answers.

        b_ql = c_l exp(z_ql) / Σ c exp(z_q),   f = b / |b|,   logits = Yᵀ f

    A text has one query, its last token, and one of that query's answers.

    Args:
        chances: ``(queries, answers, tokens)``, of the answers of each query. The others as in `Snap`.
    """

    chances: Tensor
    length: int = 128
    batch: int = 128
    rate: float = 10.0
    ratio: float = 1.0

    def train(self, steps: int, seed: int) -> Tensor:
        """z of each query, ``(queries, tokens)``, after plain descent from zeros."""
        generator, (queries, answers, tokens) = Generator().manual_seed(seed), self.chances.shape
        z = torch.zeros(queries, tokens, requires_grad=True)
        y, flat = torch.zeros(tokens, queries * answers, requires_grad=True), self.chances.flatten(0, 1)
        for _ in range(steps):
            answer = torch.randint(len(flat), (self.batch,), generator=generator)
            drawn = torch.multinomial(flat[answer], self.length, replacement=True, generator=generator)
            counts = torch.zeros(self.batch, tokens).scatter_add_(1, drawn, torch.ones(drawn.shape))
            own = z - z.amax(1, keepdim=True)
            logits = F.normalize(counts * torch.exp(own[answer // answers]), dim=-1) @ y
            slopes = torch.autograd.grad(F.cross_entropy(logits, answer), (z, y))
            with torch.no_grad():
                z -= self.rate * slopes[0]
                y -= self.rate * self.ratio * slopes[1]
        return z.detach()

    def shares(self, z: Tensor) -> Tensor:
        """What attention each token gets over all answers of each query, by its chance; ``(queries, tokens)``."""
        return torch.softmax(z + self.chances.mean(1).clamp(min=1e-12).log(), 1)


def crossed(size: int, told: float, blurred: bool = False) -> Tensor:
    """Two queries of two answers over three blocks of tokens: the first block tells the answers of the first query and
    is common to those of the second, the second block the other way round; the third is common to all. Over its answers
    each query has all tokens as often as the other, so that no token tells the query.

    Args:
        size: tokens of a block, even. told: how often a token is of one of the first two blocks, each, at most a half.
            blurred: no token tells.
    """
    even, rest = torch.full((size,), told / size), torch.full((size,), (1 - 2 * told) / size)
    half = torch.arange(size) < size // 2
    halves = (even, even) if blurred else (2 * even * half, 2 * even * ~half)
    one = [torch.cat([own, even, rest]) for own in halves]
    other = [torch.cat([even, own, rest]) for own in halves]
    return torch.stack([torch.stack(one), torch.stack(other)])


def world(distinct: int, common: int, told: float, blurred: bool = False) -> Tensor:
    """Two answers, each with ``distinct`` tokens of its own of falling chances, and ``common`` tokens of equal ones.

    Args:
        told: how often a token is distinct. blurred: every token comes with both answers alike.
    """
    own = told * F.normalize(0.7 ** torch.arange(distinct), p=1.0, dim=0)
    both = torch.full((common,), (1 - told) / common)
    none = torch.zeros(distinct)
    found = torch.stack([torch.cat([own, none, both]), torch.cat([none, own, both])])
    return found.mean(0).expand(2, -1) if blurred else found
