"""Joint dynamics of attention and a network behind it: attention follows from the network's weights alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from regard.core.atlas import Claim, published


@dataclass(frozen=True)
class LatentTree:
    """Tokens that are the leaves of a binary tree of latents, each of which is its parent but for a chance to flip.

    The query is the first leaf; asked for is the latent above it. The tokens of a text are those of the other leaves
    that are one, so that a token comes with the query the more often the nearer their common ancestor is:
    ``P(both are one) − P(one) P(one) = (1 − 2 flip)^(2 height) / 4``.

    Args:
        depth: levels below the root; 2^depth leaves. flip: the chance. above: how far above the query the answer is.
    """

    depth: int = 4
    flip: float = 0.1
    above: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        """Answers and tokens."""
        return 2, 2**self.depth - 1

    @property
    def heights(self) -> Tensor:
        """Of the common ancestor of the query and each token, ``(tokens,)``."""
        return torch.tensor([leaf.bit_length() for leaf in range(1, 2**self.depth)])

    def levels(self, batch: int, generator: Generator) -> list[Tensor]:
        """The latents from the root to the leaves, ``(b, 1)``, ``(b, 2)``, …, of zeros and ones."""
        found = [torch.randint(2, (batch, 1), generator=generator)]
        for _ in range(self.depth):
            above = found[-1].repeat_interleave(2, 1)
            flips = torch.rand(above.shape, generator=generator) < self.flip
            found.append(above ^ flips.long())
        return found

    def draw(self, batch: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Answers ``(b,)``, and each text's shares of tokens ``(b, tokens)``; a text without any has all alike."""
        levels = self.levels(batch, generator)
        shown = levels[-1][:, 1:].double()
        shown = torch.where(shown.sum(1, keepdim=True) > 0, shown, torch.ones_like(shown))
        return levels[-1 - self.above][:, 0], shown / shown.sum(1, keepdim=True)


@published(
    "joma",
    family="theory",
    kind="study",
    row=210,
    title="JoMA: Demystifying Multilayer Transformers via JOint Dynamics of MLP and Attention",
    arxiv="2310.00535",
    year=2024,
    aliases=("joint_dynamics",),
    fidelity="hand values",
    claim=(
        Claim(
            "attention logits follow from the weights of the network behind attention to 5%",
            cells="joint.tied",
            holds="joint.are_tied",
        ),
        Claim(
            "the entropy of attention falls with a linear activation, and falls and rises again with another",
            cells="joint.flows",
            holds="joint.rebounds",
        ),
        Claim(
            "lower layers of a language model show the rebound",
            cells="joint.read",
            holds="joint.lower_layers_rebound",
        ),
        Claim(
            "of the leaves of a tree of latents, attention looks the more at each the nearer its common ancestor is",
            cells="joint.hierarchy",
            holds="joint.nearer_is_more",
        ),
    ),
)
@dataclass(frozen=True)
class JointDynamics:
    """One attention over a bag of tokens and a layer behind it, trained together by plain descent.

        b = softmax(z / T + log c),   h = φ(W b),   logits = V h
        exp:  b = c ⊙ exp(z),   z = ½ Σ_k w_k² + const
        softmax:  z = (Σ_k w_k² − ‖W‖² b̄) / 2 T + const

    c are the shares of tokens in a text, z one query's logits over tokens, w_k rows of W; the equalities are what
    integrating ``ż`` and ``Ẇ`` gives, exactly for exp, and for softmax with the mean b̄ in the place of b.

    Args:
        chances: ``(answers, tokens)``, how often each token comes with each answer; or a tree of latents, whose leaves
            are tokens. hidden: k. kink: whether φ is relu. kind: "exp" or "softmax". temperature: T. rate: of z, W and
            V. length, batch: of texts.

    Paper: Tian et al., arXiv 2310.00535, theorem 1, with the second term as the authors' code has it.
    """

    chances: Tensor | LatentTree
    hidden: int = 12
    kink: bool = True
    kind: str = "softmax"
    temperature: float = 0.5
    rate: float = 0.1
    length: int = 64
    batch: int = 128

    def attended(self, z: Tensor, shares: Tensor) -> Tensor:
        """b, ``(b, tokens)``."""
        if self.kind == "exp":
            return shares * torch.exp(z)
        return torch.softmax(z / self.temperature + shares.clamp(min=1e-30).log(), -1)

    def draw(self, generator: Generator) -> tuple[Tensor, Tensor]:
        """Answers ``(b,)``, and the shares of tokens in each text ``(b, tokens)``."""
        if isinstance(self.chances, LatentTree):
            return self.chances.draw(self.batch, generator)
        answers, tokens = self.chances.shape
        answer = torch.randint(answers, (self.batch,), generator=generator)
        drawn = torch.multinomial(self.chances[answer], self.length, replacement=True, generator=generator)
        counts = torch.zeros(self.batch, tokens).scatter_add_(1, drawn, torch.ones(drawn.shape))
        return answer, counts.double() / self.length

    def train(self, steps: int, seed: int) -> tuple[Tensor, Tensor]:
        """z at the end, and what the weights say of it, both without their mean."""
        generator = Generator().manual_seed(seed)
        answers, tokens = self.chances.shape
        z = torch.zeros(tokens, dtype=torch.float64, requires_grad=True)
        w, v = (
            (size * torch.randn(a, b, generator=generator).double()).requires_grad_()
            for a, b, size in ((self.hidden, tokens, 0.1), (answers, self.hidden, 0.5))
        )
        weight, before = torch.zeros(tokens, dtype=torch.float64), w.detach().square().sum(1)
        start = self.told(w.detach(), weight)
        for _ in range(steps):
            answer, shares = self.draw(generator)
            b = self.attended(z, shares)
            h = b @ w.T
            loss = F.cross_entropy((F.relu(h) if self.kink else h) @ v.T, answer)
            slopes = torch.autograd.grad(loss, (z, w, v))
            with torch.no_grad():
                for each, slope in zip((z, w, v), slopes, strict=True):
                    each -= self.rate * slope
                size = w.square().sum(1)
                weight += (size - before).sum() * b.mean(0)
                before = size
        told = self.told(w.detach(), weight) - start
        return z.detach() - z.detach().mean(), told - told.mean()

    def told(self, w: Tensor, weight: Tensor) -> Tensor:
        """z from W; ``weight`` is the sum of the steps' growth of ‖W‖² times b̄."""
        if self.kind == "exp":
            return w.square().sum(0) / 2
        return (w.square().sum(0) - weight) / (2 * self.temperature)


def flow(pull: Tensor, linear: bool, steps: int, pace: float = 0.01, most: float = 2.5) -> Tensor:
    """The entropy of attention ``∝ exp(v² / 2)`` before and after each step of the weights' own dynamics, in nats.

        linear: v̇ = μ ⊙ exp(v² / 2),   with a kink: v̇ = (μ − v) ⊙ exp(v² / 2)

    Args:
        pull: μ ``(tokens,)``. most: where |v| is held, since the linear dynamics have no end.
    """
    v, entropies = torch.zeros_like(pull), [torch.tensor(float(len(pull))).log().to(pull)]
    for _ in range(steps):
        v = v + pace * (pull if linear else pull - v) * torch.exp(v.square() / 2)
        v = v.clamp(-most, most) if linear else v
        logs = (v.square() / 2).log_softmax(-1)
        entropies.append(-(logs.exp() * logs).sum())
        if linear and v.abs().max() >= most:
            break
    return torch.stack(entropies)
