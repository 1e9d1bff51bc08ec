"""Joint dynamics of attention and a network behind it: attention follows from the network's weights alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from regard.core.atlas import Claim, published


@published(
    "joma",
    family="theory",
    kind="study",
    row=210,
    title="JoMA: Demystifying Multilayer Transformers via JOint Dynamics of MLP and Attention",
    arxiv="2310.00535",
    year=2024,
    aliases=("joint_dynamics",),
    missing="the hierarchical generator of tokens",
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
        chances: ``(answers, tokens)``, how often each token comes with each answer. hidden: k. kink: whether φ is relu.
        kind: "exp" or "softmax". temperature: T. rate: of z, W and V. length, batch: of texts.

    Paper: Tian et al., arXiv 2310.00535, theorem 1, with the second term as the authors' code has it.
    """

    chances: Tensor
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
            answer = torch.randint(answers, (self.batch,), generator=generator)
            drawn = torch.multinomial(self.chances[answer], self.length, replacement=True, generator=generator)
            shares = torch.zeros(self.batch, tokens).scatter_add_(1, drawn, torch.ones(drawn.shape)).double()
            b = self.attended(z, shares / self.length)
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
