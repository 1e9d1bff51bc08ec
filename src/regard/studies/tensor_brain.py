"""The tensor brain: what is perceived or remembered is told as subject, object and predicate by one index layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.core.atlas import Claim, published


@published(
    "tensor_brain",
    family="theory",
    kind="study",
    row=355,
    title="The Tensor Brain: Semantic Decoding for Perception and Memory",
    arxiv="2001.11027",
    year=2020,
    aliases=("semantic_decoder",),
    fidelity="abstract only",
    claim=(
        Claim("it tells 90% of the triples of drawn scenes", cells="triples.perceived", holds="triples.are_told"),
        Claim(
            "without senses it tells triples as often as they were",
            cells="triples.remembered",
            holds="triples.come_as_often",
        ),
        Claim("a scene's own index recalls its triple", cells="triples.recalled", holds="triples.are_recalled"),
    ),
)
class TensorBrain(nn.Module):
    """Concepts are indices with embeddings; a blackboard q is read by them and written to by the one that is told.

        q ← q_senses, a_t, or q_0,   P(k | q) = softmax_k(a_k · q + b_k)
        q ← q + a_k,   q ← q + tanh(W q);   between scenes q ← q_senses + tanh(W q_before)

    Subject, object and predicate are told one after the other; each is written back, and working memory W works on the
    blackboard, before the next. q_senses is what an encoder sees in an image; a_t the embedding of a scene's own index,
    the instant that it was seen at, episodic memory; q_0 is what there is without senses, semantic memory. Concepts are
    told among all, or among those of a class. They may be sampled, with gradients straight through.

    Args:
        concepts: indices. width: of q. scenes: indices of scenes. side: of images, a multiple of four. seed: of the
            weights.

    Paper: Tresp et al., arXiv 2001.11027, of which the abstract is followed.
    """

    def __init__(self, concepts: int, width: int = 64, scenes: int = 0, side: int = 16, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.index, self.bias = nn.Parameter(torch.randn(concepts, width) * 0.3), nn.Parameter(torch.zeros(concepts))
        self.work, self.rest = nn.Linear(width, width), nn.Parameter(torch.zeros(width))
        self.episodes = nn.Embedding(scenes, width) if scenes else None
        self.senses = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(32 * (side // 4) ** 2, 128), nn.ReLU(), nn.Linear(128, width)),
        )

    def begin(
        self,
        images: Tensor | None = None,
        scenes: Tensor | None = None,
        count: int = 1,
        before: Tensor | None = None,
    ) -> Tensor:
        """q before anything is told, ``(b, width)``: of images, of scenes by their index, or of neither.

        Args:
            count: how many, of neither. before: q of the scene before these images, which working memory keeps.
        """
        if images is not None:
            q = self.senses(images)
            return q if before is None else q + torch.tanh(self.work(before))
        if scenes is not None and self.episodes is not None:
            return self.episodes(scenes)
        return self.rest.expand(count, -1)

    def logits(self, q: Tensor) -> Tensor:
        """Of all concepts."""
        return q @ self.index.T + self.bias

    def write(self, q: Tensor, concept: Tensor) -> Tensor:
        """q after a concept was told."""
        q = q + self.index[concept]
        return q + torch.tanh(self.work(q))

    def score(self, q: Tensor, triples: Tensor) -> Tensor:
        """log P of triples ``(b, 3)``."""
        total = q.new_zeros(len(triples))
        for concept in triples.unbind(1):
            total = total + self.logits(q).log_softmax(-1).gather(1, concept[:, None])[:, 0]
            q = self.write(q, concept)
        return total

    @torch.no_grad()
    def tell(self, q: Tensor, steps: int = 3, classes: Sequence[Tensor] | None = None) -> Tensor:
        """The likeliest concept at each step, ``(b, steps)``; of a class each, ``(concepts,)`` bool, where given."""
        told = []
        for step in range(steps):
            logits = self.logits(q)
            if classes is not None:
                logits = logits.masked_fill(~classes[step], -torch.inf)
            told.append(logits.argmax(-1))
            q = self.write(q, told[-1])
        return torch.stack(told, 1)

    def sample(self, q: Tensor, generator: Generator, steps: int = 3) -> tuple[Tensor, Tensor]:
        """Concepts that are drawn, ``(b, steps)``, and q behind them.

        What is written is the embedding of what was drawn; its gradient is that of the mean embedding under P.
        """
        told = []
        for _ in range(steps):
            chances = self.logits(q).softmax(-1)
            told.append(torch.multinomial(chances.detach(), 1, generator=generator)[:, 0])
            mean = chances @ self.index
            q = q + self.index[told[-1]].detach() + mean - mean.detach()
            q = q + torch.tanh(self.work(q))
        return torch.stack(told, 1), q


@dataclass(frozen=True)
class Shown:
    """Drawn scenes of two shapes: which stands left, which right, and whether the left one is above the right one.

    Triples are (left shape, right shape, above or below), concepts 0 to 3 for shapes, 4 and 5 for predicates. Some
    triples come more often than others.

    Args:
        side: of the images.
    """

    side: int = 16
    shapes: int = 4

    @property
    def concepts(self) -> int:
        """Shapes and two predicates."""
        return self.shapes + 2

    @property
    def chances(self) -> Tensor:
        """``(left, right, predicate)``: how often each triple comes, the same for all."""
        drawn = torch.rand(self.shapes, self.shapes, 2, generator=Generator().manual_seed(0)).square()
        return drawn / drawn.sum()

    def stencils(self) -> Tensor:
        """Shapes of five by five."""
        y, x = torch.meshgrid(torch.arange(5) - 2, torch.arange(5) - 2, indexing="ij")
        parts = (torch.ones(5, 5), (y.abs() + x.abs() <= 2), (y == 0) | (x == 0), (y.abs() == x.abs()))
        return torch.stack([part.float() for part in parts])

    def draw(self, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Images ``(b, 1, side, side)`` and triples ``(b, 3)``."""
        flat = torch.multinomial(self.chances.flatten(), count, replacement=True, generator=generator)
        left, right, under = flat // (2 * self.shapes), flat // 2 % self.shapes, flat % 2
        images = 0.2 * torch.randn(count, 1, self.side, self.side, generator=generator)
        shapes, half = self.stencils(), self.side // 2
        for row in range(count):
            high = int(torch.randint(half - 5 + 1, (1,), generator=generator))
            low = half + int(torch.randint(half - 5 + 1, (1,), generator=generator))
            tops = (low, high) if under[row] else (high, low)
            for place, (top, shape) in enumerate(zip(tops, (left[row], right[row]), strict=True)):
                start = place * half + int(torch.randint(half - 5 + 1, (1,), generator=generator))
                images[row, 0, top : top + 5, start : start + 5] += shapes[shape]
        return images, torch.stack([left, right, self.shapes + under], 1)


def divergence(model: TensorBrain, world: Shown) -> float:
    """KL of how often triples come from what the model tells without senses, in nats, over all triples."""
    every = torch.cartesian_prod(*[torch.arange(world.shapes)] * 2, torch.arange(2) + world.shapes)
    with torch.no_grad():
        told = model.score(model.begin(count=len(every)), every)
    chances = world.chances.flatten()
    return F.kl_div(told, chances, reduction="sum").item()
