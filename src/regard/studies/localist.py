"""A locality dial: a group penalty on attention's blocks, and blocks that are recruited where they pay."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from regard.core.atlas import Claim, published


@published(
    "localist",
    family="theory",
    kind="study",
    row=132,
    title="Localist LLMs with Recruitment Learning",
    arxiv="2510.17358",
    year=2025,
    aliases=("locality_dial", "recruitment_learning"),
    fidelity="abstract only",
    claim=(
        Claim(
            "the more locality is asked for, the more attention stays in the block of its query",
            cells="locality.dialled",
            holds="locality.is_monotone",
        ),
        Claim(
            "where no weights between blocks are left, the entropy of attention is below a bound of the margin",
            cells="locality.dialled",
            holds="locality.is_bounded",
        ),
        Claim(
            "recruitment finds the number of blocks, to one", cells="locality.recruited", holds="locality.finds_blocks"
        ),
    ),
)
@dataclass(frozen=True)
class Localist:
    """One bilinear attention over tokens of several blocks, trained with a penalty on the norm of each block of W.

        A_ij = softmax_j(x_i · W x_j),   y_i = Σ_j A_ij v_j,   loss + λ Σ_{g ≠ h} ‖W_gh‖_F

    The penalty, of the parts of W between blocks, is taken by its proximal step, ``W_gh ← (1 − η λ / ‖W_gh‖)₊ W_gh``:
    plain descent never gives zeros. λ, the dial, may change at any step. A token of block g has its own ``size``
    features in block g, noise elsewhere. What is wanted is the mean value of the query's own block; blocks come in
    pairs that hold the same values, so that it may as well be read from the other one: a code that is distributed.

    Args:
        blocks: g, an even number. size: features of a block. tokens: of a text, a multiple of the blocks.
        texts: that are trained on. rate: η.

    Paper: Diederich, arXiv 2510.17358, of which only the abstract is followed. It also speaks of rules that are
    injected and of whole language models that are recruited, and says nothing of how.
    """

    blocks: int = 4
    size: int = 3
    tokens: int = 16
    texts: int = 64
    rate: float = 0.3

    @property
    def block(self) -> Tensor:
        """The block of each token, ``(tokens,)``."""
        return torch.arange(self.tokens) % self.blocks

    def draw(self, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """x ``(b, n, d)``, v ``(b, n)`` and what is wanted ``(b, n)``."""
        d = self.blocks * self.size
        signs = torch.randn(self.blocks, self.size, generator=generator).sign()
        own = torch.zeros(self.blocks, self.blocks, self.size)
        own[torch.arange(self.blocks), torch.arange(self.blocks)] = signs
        x = own.flatten(1)[self.block] + 0.3 * torch.randn(self.texts, self.tokens, d, generator=generator)
        base = torch.randn(self.texts, self.tokens // self.blocks, self.blocks // 2, generator=generator)
        v = base.repeat_interleave(2, 2).flatten(1)
        same = (self.block[:, None] == self.block).float()
        return x, v, v @ (same / same.sum(1))

    def parts(self, w: Tensor) -> Tensor:
        """The norms of the blocks of W, ``(g, g)``."""
        return w.view(self.blocks, self.size, self.blocks, self.size).square().sum((1, 3)).sqrt()

    def train(self, dial: float, steps: int, seed: int) -> tuple[Tensor, Tensor]:
        """W ``(d, d)``, and A ``(b, n, n)`` of texts of its own."""
        generator = Generator().manual_seed(seed)
        x, v, wanted = self.draw(generator)
        d = self.blocks * self.size
        w = (0.01 * torch.randn(d, d, generator=generator)).requires_grad_()
        for _ in range(steps):
            a = torch.softmax(x @ w @ x.mT, -1)
            loss = ((a @ v[..., None])[..., 0] - wanted).square().mean()
            (slope,) = torch.autograd.grad(loss, w)
            with torch.no_grad():
                w -= self.rate * slope
                kept = (1 - self.rate * dial / self.parts(w).clamp(min=1e-12)).clamp(min=0).fill_diagonal_(1)
                w *= kept.repeat_interleave(self.size, 0).repeat_interleave(self.size, 1)
        w = w.detach()
        return w, torch.softmax(x @ w @ x.mT, -1)

    def inside(self, a: Tensor) -> Tensor:
        """The share of each row of A that stays in the query's block, ``(b, n)``."""
        return (a * (self.block[:, None] == self.block)).sum(-1)


def entropy_bound(margin: Tensor, within: int, outside: int) -> Tensor:
    """The most entropy that a row of attention can have whose scores inside of the block exceed all others by a margin.

        off ≤ r = outside e^{−margin} / (within + outside e^{−margin}),   H ≤ H₂(r) + (1 − r) log within + r log outside

    The mass outside is at most r, since every score inside exceeds every one outside; the rest is the chain rule, and
    grows with r up to ``outside / (within + outside)``, where the bound is log of all keys.
    """
    r = outside * torch.exp(-margin) / (within + outside * torch.exp(-margin))
    r = r.clamp(max=outside / (within + outside))
    both = -(torch.special.xlogy(r, r) + torch.special.xlogy(1 - r, 1 - r))
    return both + (1 - r) * math.log(within) + r * math.log(outside)


def recruit(x: Tensor, most: int = 12, sweeps: int = 30, seed: int = 0) -> int:
    """How many blocks pay for themselves: one more is recruited while the likelihood gains more than it costs to code.

        gain = log p(x | k + 1) − log p(x | k),   cost = ½ (d + 1) log n

    Blocks are round normal clouds of one width, fitted by expectation and maximisation; a new one begins where x is
    least likely.

    Args:
        x: ``(n, d)``. most: blocks. sweeps: of each fit.
    """
    centres, best, count = x.mean(0, keepdim=True), -torch.inf, 0
    while count < most:
        found, fitted, each = fit_clouds(x, centres, sweeps)
        if count and found - best <= 0.5 * (x.shape[1] + 1) * math.log(len(x)):
            return count
        best, count = found, count + 1
        centres = torch.cat([fitted, x[each.argmin()][None]])
    return count


def fit_clouds(x: Tensor, centres: Tensor, sweeps: int) -> tuple[float, Tensor, Tensor]:
    """The log-likelihood, the centres, and the log-likelihood of each point."""
    share, width = torch.full((len(centres),), 1 / len(centres), dtype=x.dtype), x.var(0).mean()
    each = x.new_zeros(len(x))
    for _ in range(sweeps):
        apart = torch.cdist(x, centres).square()
        logs = share.log() - apart / (2 * width) - x.shape[1] / 2 * torch.log(2 * math.pi * width)
        each = logs.logsumexp(1)
        mine = (logs - each[:, None]).exp()
        total = mine.sum(0).clamp(min=1e-9)
        centres, share = mine.T @ x / total[:, None], (total / len(x)).clamp(min=1e-12)
        width = ((mine * torch.cdist(x, centres).square()).sum() / (len(x) * x.shape[1])).clamp(min=1e-6)
    return each.sum().item(), centres, each
