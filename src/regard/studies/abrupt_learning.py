"""In-context classification that is learned abruptly: two layers of attention, data that come in bursts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong

NEW = 4096
"""Classes that are never trained on, of the test of learning in context."""


@cache
def drawn(count: int, dim: int, seed: int) -> Tensor:
    """Points of a length about one, ``(count, dim)``, the same for a seed."""
    return torch.randn(count, dim, generator=Generator().manual_seed(seed)) / dim**0.5


@dataclass(frozen=True)
class Bursts:
    """Pairs of an item and its label, then an item whose label is asked for.

    Classes are points μ_k of length about one, each with one of the labels; an item is ``(μ + ε η) / √(1 + ε²)``. Of
    the pairs, ``burst`` are of the class that is asked for, and other classes come as often; with ``burst`` 0 all are
    drawn alike. Classes are drawn with chances ``∝ k^−zipf``, one by one.

    Args:
        classes: K. labels: L. pairs: N, which burst divides. burst: B. noise: ε. dim: D of the items. places: P of the
            one-hot positions, which begin anywhere. zipf: α. seed: of the classes.
    """

    classes: int = 1024
    burst: int = 1
    labels: int = 32
    pairs: int = 8
    noise: float = 0.1
    dim: int = 63
    places: int = 65
    zipf: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.burst < 0 or (self.burst and self.pairs % self.burst):
            raise wrong("burst", str(self.burst), f"0, or a divisor of {self.pairs} pairs")

    @property
    def width(self) -> int:
        """Channels of a token: position and content."""
        return self.places + self.dim

    @property
    def length(self) -> int:
        """Tokens: pairs, and the item that is asked about."""
        return 2 * self.pairs + 1

    def world(self, extra: int = 0) -> tuple[Tensor, Tensor]:
        """The classes' points ``(K, D)``, or others that are never trained on, and the labels' ``(L, D)``."""
        points = drawn(extra, self.dim, 10_000 + self.seed) if extra else drawn(self.classes, self.dim, 2 * self.seed)
        return points, drawn(self.labels, self.dim, 2 * self.seed + 1)

    def batch(self, count: int, generator: Generator, test: str = "") -> tuple[Tensor, Tensor]:
        """Tokens ``(b, 2 N + 1, P + D)`` and the label ``(b,)``.

        Args:
            test: "context" takes classes that were never seen, so that the context alone tells the label; "weights"
                asks for a class that is not in the context.
        """
        points, names = self.world(NEW if test == "context" else 0)
        known = torch.arange(len(points)) % self.labels
        chances = (1.0 + torch.arange(len(points))) ** -self.zipf
        burst = max(self.burst, 1)
        size = self.pairs // burst + 1
        picked = torch.multinomial(chances, count * size, replacement=True, generator=generator).view(count, size)
        inside, apart = picked[:, :-1], picked[:, -1]
        shown = inside.repeat_interleave(burst, 1)
        order = torch.rand(count, self.pairs, generator=generator).argsort(1)
        shown = shown.gather(1, order)
        asked = apart if test == "weights" or (self.burst == 0 and test != "context") else inside[:, 0]
        label = known[shown]
        wanted = known[asked]
        if test == "context":
            label = torch.randint(self.labels, (count, len(points)), generator=generator).gather(1, shown)
            wanted = label.gather(1, (shown == asked[:, None]).int().argmax(1, keepdim=True))[:, 0]
        items = torch.cat([shown, asked[:, None]], 1)
        noise = torch.randn(*items.shape, self.dim, generator=generator) / self.dim**0.5
        content = (points[items] + self.noise * noise) / (1 + self.noise**2) ** 0.5
        tokens = torch.stack([content[:, :-1], names[label]], 2).flatten(1, 2)
        content = torch.cat([tokens, content[:, -1:]], 1)
        start = torch.randint(self.places - self.length + 1, (count, 1), generator=generator)
        place = F.one_hot(start + torch.arange(self.length), self.places).float()
        return torch.cat([place, content], -1), wanted


@dataclass(frozen=True)
class NestedLogits:
    """The induction head as three numbers, each of which is worth nothing before the one inside of it is large.

        a = e^β / (e^β + 2 N),   s = e^(α a) / (e^(α a) + 2 N)
        p = softmax(ξ s,  N − 1 times ξ (1 − s) / 2 N,  L − N times 0)₁,   loss = −log p

    a is what a label gives to the item before it, s what the last item gives to the label of its like, p the chance of
    that label: β, α and ξ are the logits of the first layer, the second and the readout. What is not learned stands at
    ``given``. All begin at zero and go down the loss.

    Args:
        learned: β, α and ξ, those of the last that are learned: 1 for ξ alone, 3 for all. pairs: N. labels: L.
        given: what the others are.

    Paper: Reddy, arXiv 2312.03002; of its phenomenological model the equations are written down here anew.
    """

    learned: int = 3
    pairs: int = 8
    labels: int = 32
    given: float = 20.0

    def chance(self, logits: Tensor) -> Tensor:
        """p of ``(β, α, ξ)``."""
        before, match, read = logits
        others = 2 * self.pairs
        look = torch.sigmoid(before - math.log(others))
        share = torch.sigmoid(match * look - math.log(others))
        rest = read * (1 - share) / others + math.log(self.pairs - 1)
        none = torch.zeros_like(read) + math.log(self.labels - self.pairs)
        return torch.stack([read * share, rest, none]).softmax(0)[0]

    def train(self, rate: float, steps: int, enough: float = 0.9) -> Tensor:
        """p before each step, until it is enough or the steps are over."""
        logits, chances = torch.full((3,), self.given, dtype=torch.float64), []
        logits[3 - self.learned :] = 0
        for _ in range(steps):
            chance = self.chance(logits.requires_grad_())
            chances.append(chance.item())
            if chances[-1] >= enough:
                break
            (slope,) = torch.autograd.grad(-chance.log(), logits)
            slope[: 3 - self.learned] = 0
            logits = logits.detach() - rate * slope
        return torch.tensor(chances, dtype=torch.float64)


@published(
    "abrupt_learning",
    family="theory",
    kind="study",
    row=281,
    title="The mechanistic basis of data dependence and abrupt learning in an in-context classification task",
    arxiv="2312.03002",
    year=2024,
    aliases=("icl_abrupt", "induction_emergence"),
    fidelity="hand values",
    claim=(
        Claim(
            "learning in context comes abruptly, within 1,600 steps of a training of 16,000",
            cells="abrupt.emerges",
            holds="abrupt.is_abrupt",
        ),
        Claim(
            "before it comes, the first layer looks at the token before",
            cells="abrupt.emerges",
            holds="abrupt.is_preceded",
        ),
        Claim(
            "more classes and more bursts give more learning in context and less in weights",
            cells="abrupt.traded",
            holds="abrupt.depends_on_the_data",
        ),
        Claim(
            "an induction head of two parameters follows the same trends",
            cells="abrupt.reduced",
            holds="abrupt.depends_on_the_data",
        ),
        Claim(
            "three nested logits in the network's place are learned abruptly, and the later the more of them there are",
            cells="abrupt.nested",
            holds="abrupt.waits_and_jumps",
        ),
    ),
)
class InductionNet(nn.Module):
    """Two layers of causal attention with one head each, no norm, and a network of three layers at the last token.

        u ← u + V softmax(uᵀ Qᵀ K u) u,   twice;   logits = MLP(u_last)

    With ``reduced`` the first layer looks at the token before with strength β and hands its content on, and the second
    matches it with the last token's content with strength w: two parameters in the place of both layers,

        A¹_ij = softmax_j(β [j = i − 1]),   A²_j = softmax_j(w x_last · Σ_k A¹_jk x_k)
        logits = MLP([x_last; Σ_j A²_j x_j])

    Shapes: ``tokens (b, n, P + D)`` -> ``(b, labels)``.

    Args:
        bursts: the data, for their sizes. reduced: whether the head has two parameters. seed: of the initial weights.

    Paper: Reddy, arXiv 2312.03002.
    """

    def __init__(self, bursts: Bursts, reduced: bool = False, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.places, self.reduced, width = bursts.places, reduced, bursts.width
        if reduced:
            self.before, self.match = nn.Parameter(torch.tensor(0.1)), nn.Parameter(torch.tensor(0.1))
        else:
            maps = [nn.Linear(width, 3 * width, bias=False) for _ in range(2)]
            for each in maps:
                nn.init.normal_(each.weight, std=width**-0.5)
            self.layers = nn.ModuleList(maps)
        wide = 2 * bursts.dim if reduced else width
        sizes = [(wide, 128), (128, 128), (128, 128)]
        parts = [part for a, b in sizes for part in (nn.Linear(a, b), nn.ReLU())]
        self.classify = nn.Sequential(*parts, nn.Linear(128, bursts.labels))

    def attend(self, u: Tensor, layer: nn.Linear) -> tuple[Tensor, Tensor]:
        """A, and what it gives."""
        q, k, v = layer(u).chunk(3, -1)
        scores = q @ k.mT / u.shape[2] ** 0.5
        future = torch.ones(u.shape[1], u.shape[1], dtype=torch.bool).triu(1)
        a = scores.masked_fill(future, -torch.inf).softmax(-1)
        return a, a @ v

    def maps(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A of both layers, the second for the last token alone ``(b, n)``, and what is classified."""
        if not self.reduced:
            first, seen = self.attend(tokens, self.layers[0])  # pyright: ignore[reportArgumentType]
            u = tokens + seen
            second, seen = self.attend(u, self.layers[1])  # pyright: ignore[reportArgumentType]
            return first, second[:, -1], (u + seen)[:, -1]
        x, n = tokens[..., self.places :], tokens.shape[1]
        near = torch.diag(torch.ones(n - 1), -1)
        scores = (self.before * near).masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf)
        first = scores.softmax(-1)
        second = (self.match * torch.einsum("bd,bjd->bj", x[:, -1], first @ x)).softmax(-1)
        read = torch.einsum("bj,bjd->bd", second, x)
        return first.expand(len(x), -1, -1), second, torch.cat([x[:, -1], read], -1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.classify(self.maps(tokens)[2])
