"""A conscious state: a few elements, picked by attention, that condition what is said of the future."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.core.atlas import Claim, published


@published(
    "conscious_prior",
    family="theory",
    kind="study",
    row=276,
    title="The Consciousness Prior",
    arxiv="1709.08568",
    year=2017,
    aliases=("consciousness_prior",),
    fidelity="abstract only",
    claim=(
        Claim(
            "three elements, picked by attention, tell what comes as well as the whole state, to 2 points",
            cells="thoughts.told",
            holds="thoughts.cost_little",
        ),
        Claim("it picks the right elements in 80% of cases", cells="thoughts.told", holds="thoughts.are_right"),
        Claim(
            "so it does where the verifier is trained by what thoughts and futures have in common",
            cells="thoughts.by(verifier=information)",
            holds="thoughts.are_right",
        ),
    ),
)
class Thoughts(nn.Module):
    """A recurrent state whose future is told from a few of its elements, which attention picks.

        h_t = GRU([x_{t−1}; cue_t], h_{t−1}),   c_t = the ``few`` largest of K_i · W h_t + U c_{t−1} + g_i
        ŷ_{t+1} = V([x_t at c_t; c_t; tanh(W' h_t)])

    g is Gumbel's noise while it is trained, zero after; gradients go straight through the choice. c_t is broadcast to
    the verifier V, which hears nothing of the other elements. Neither does h_t know x_t: made by a state that does, the
    choice itself could tell what comes, whichever elements it picks. ``picks`` "all" gives V everything, "random" any
    few. V is trained by the likelihood of what comes, or as a critic of thoughts and futures (`information`).

    Shapes: ``x (b, t, elements)``, ``cue (b, t, factors)`` -> logits ``(b, t)``, and the choice ``(b, t, elements)``.

    Args:
        elements, factors: of the world. few: elements of a thought. width: of h. picks: "attention", "all", "random".
        seed: of the initial weights.

    Paper: Bengio, arXiv 1709.08568, which has no experiment; the world here is our own. Words for thoughts are a use of
    them that the paper hopes for, and no part.
    """

    def __init__(
        self, elements: int, factors: int, few: int = 3, width: int = 48, picks: str = "attention", seed: int = 0
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.few, self.picks, self.elements = few, picks, elements
        self.state, self.query = nn.GRU(elements + factors, width, batch_first=True), nn.Linear(width, width)
        self.keys, self.what = nn.Parameter(torch.randn(elements, width) * width**-0.5), nn.Linear(width, 16)
        self.again = nn.Linear(elements, elements, bias=False)
        nn.init.zeros_(self.again.weight)
        inner = 2 * elements + 16
        self.verify = nn.Sequential(nn.Linear(inner, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1))

    def choose(self, scores: Tensor) -> Tensor:
        """The choice: ones at the picked elements."""
        if self.picks == "all":
            return torch.ones_like(scores)
        if self.picks == "random":
            scores = torch.zeros_like(scores)
        if self.training or self.picks == "random":
            scores = scores - torch.log(-torch.log(torch.rand_like(scores).clamp(1e-6, 1 - 1e-6)))
        hard = torch.zeros_like(scores).scatter(-1, scores.topk(self.few, -1).indices, 1.0)
        soft = self.few * scores.softmax(-1)
        return hard + soft - soft.detach()

    def forward(self, x: Tensor, cue: Tensor) -> tuple[Tensor, Tensor]:
        hidden, _ = self.state(torch.cat([F.pad(x, (0, 0, 1, 0))[:, :-1], cue], -1))
        thoughts = [torch.zeros_like(x[:, 0])]
        for scores in (self.query(hidden) @ self.keys.T).unbind(1):
            thoughts.append(self.choose(scores + self.again(thoughts[-1])))
        chosen = torch.stack(thoughts[1:], 1)
        told = torch.cat([x * chosen, chosen, torch.tanh(self.what(hidden))], -1)
        return self.verify(told)[..., 0], chosen


def information(logits: Tensor, comes: Tensor) -> Tensor:
    """The loss of V as a critic: less the bound that it gives of how much thoughts tell of what comes after them.

        I(c_t; y_{t+1}) ≥ log b + mean_i log ( e^{V(y_i, c_i)} / Σ_j e^{V(y_j, c_i)} )

    V(y, c) is y times the logit, for y of ±1. The futures y_j of the batch's other sequences are what did not come.

    Args:
        logits: V of each thought, ``(b, t)``. comes: y as zeros and ones, ``(b, t)``.

    Source: van den Oord et al., arXiv 1807.03748.
    """
    signs = 2 * comes - 1
    scores = logits.T[:, :, None] * signs.T[:, None]
    own = (logits * signs).T
    return (scores.logsumexp(-1) - own).mean() - math.log(len(logits))


@dataclass(frozen=True)
class Factors:
    """A world of signs in which one sparse factor is at work, which the first step's cue names.

    A factor has three elements; what is told of the next step is the majority of the three. All else is noise.

    Args:
        elements: of the state. factors: how many. steps: of a sequence. seed: of which elements a factor has.
    """

    elements: int = 12
    factors: int = 4
    steps: int = 4
    seed: int = 0

    @property
    def members(self) -> Tensor:
        """``(factors, elements)``: ones where an element is part of a factor."""
        generator = Generator().manual_seed(self.seed)
        order = torch.rand(self.factors, self.elements, generator=generator).argsort(1)[:, :3]
        return torch.zeros(self.factors, self.elements).scatter(1, order, 1.0)

    def draw(self, count: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x, the cue, what comes ``(b, t)``, and which elements it follows from ``(b, elements)``."""
        x = 2.0 * torch.randint(2, (count, self.steps, self.elements), generator=generator) - 1
        which = torch.randint(self.factors, (count,), generator=generator)
        cue = torch.zeros(count, self.steps, self.factors)
        cue[:, 0] = F.one_hot(which, self.factors).float()
        members = self.members[which]
        return x, cue, ((x * members[:, None]).sum(-1) > 0).float(), members
