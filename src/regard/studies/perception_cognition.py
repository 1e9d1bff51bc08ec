"""Errors of answers about images, told apart: what was not seen, and what was not worked out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong

Seen = TypeVar("Seen")
Told = TypeVar("Told")
SIDE, OBJECTS, KINDS, PIECE = 24, 3, 4, 7
QUESTIONS = ("which", "alike", "most")
"""Which kind is at a place, are the objects of two places alike, and how often is a kind there."""
ANSWERS = KINDS + 2 + OBJECTS + 1


@published(
    "perception_cognition",
    family="theory",
    kind="study",
    row=117,
    title=(
        "From Perception to Cognition: A Survey of Vision-Language Interactive Reasoning in Multimodal Large Language "
        "Models"
    ),
    arxiv="2509.25373",
    year=2025,
    aliases=("oracle_perception",),
    fidelity="hand values",
    claim=(
        Claim(
            "errors of seeing and of working out add up, and an oracle takes away 90% of those to questions of seeing",
            cells="seeing.answered",
            holds="seeing.is_told_apart",
        ),
        Claim(
            "looking again where what was seen is not sure lowers the error",
            cells="seeing.answered",
            holds="seeing.looks_again",
        ),
    ),
)
class SceneReader(nn.Module):
    """One network that sees objects, in softmax attention of a question over them, and answers.

        o_i = see(image at i)  or, by the oracle,  E(kind of i);   answer = U relu(W [Σ_i A_i o_i; Σ_i A'_i o_i; …; q])

    Both ways to get o are trained together with the rest, so that the oracle is a switch in one network and not another
    module that is right by construction.

    Shapes: ``images (b, 1, y, x)`` or ``kinds (b, objects)``, ``question (b, 3)``: of `QUESTIONS`, and its two
    arguments -> logits ``(b, answers)``.

    Args:
        width: of objects. seed: of the initial weights.

    `until_verified` is the survey's loop around any model that answers, a vision–language model among them.

    Paper: Zhou et al., arXiv 2509.25373, a survey.
    """

    def __init__(self, width: int = 48, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.see = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
            *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * (SIDE // 4) * (SIDE // OBJECTS // 4), width)),
        )
        self.kinds, self.name = nn.Embedding(KINDS, width), nn.Linear(width, KINDS)
        self.places = nn.Parameter(torch.randn(OBJECTS, width) * 0.3)
        self.ask, self.first, self.second = (
            nn.Embedding(len(QUESTIONS), width),
            *(nn.Embedding(4, width) for _ in range(2)),
        )
        self.query = nn.Linear(3 * width, 2 * width)
        self.answer = nn.Sequential(nn.Linear(6 * width, 128), nn.ReLU(), nn.Linear(128, ANSWERS))

    def objects(self, images: Tensor | None, kinds: Tensor | None) -> Tensor:
        """o, ``(b, objects, width)``: of a third of the image each, or of what is there."""
        if kinds is not None:
            return self.kinds(kinds)
        assert images is not None
        return torch.stack([self.see(part) for part in images.chunk(OBJECTS, 3)], 1)

    def seen(self, images: Tensor) -> Tensor:
        """Logits of the kind of each object, ``(b, objects, kinds)``."""
        return self.name(self.objects(images, None))

    def forward(self, question: Tensor, images: Tensor | None = None, kinds: Tensor | None = None) -> Tensor:
        o = self.objects(images, kinds)
        asked = torch.cat(
            [e(x) for e, x in zip((self.ask, self.first, self.second), question.unbind(1), strict=True)], 1
        )
        queries = self.query(asked).chunk(2, -1)
        read = [F.scaled_dot_product_attention(q[:, None], o + self.places, o)[:, 0] for q in queries]
        return self.answer(torch.cat([asked, *read, o.sum(1)], 1))


def until_verified(
    observe: Callable[[int], Seen], think: Callable[[Sequence[Seen]], Told], verify: Callable[[Told], bool], most: int
) -> tuple[Told, int]:
    """Observe, think, verify: looks again until what was thought of all that was seen is verified.

    Args:
        observe: gives what is seen, by the number of the look. think: answers from all looks so far. verify: whether
            an answer stands. most: looks; the last answer stands unverified.

    Returns:
        the answer, and after how many looks.

    Raises:
        ValueError: no looks.
    """
    if most < 1:
        raise wrong("most", str(most), "at least one look")
    seen = [observe(0)]
    told = think(seen)
    while len(seen) < most and not verify(told):
        seen.append(observe(len(seen)))
        told = think(seen)
    return told, len(seen)


@dataclass(frozen=True)
class Looks:
    """Scenes of three objects side by side under noise, questions about them, and answers.

    Args:
        noise: of the images.
    """

    noise: float = 0.9

    def stencils(self) -> Tensor:
        """The four kinds, ``(4, 7, 7)``."""
        y, x = torch.meshgrid(torch.arange(PIECE) - 3, torch.arange(PIECE) - 3, indexing="ij")
        parts = (torch.ones(PIECE, PIECE), (y.abs() + x.abs() <= 3), (y == 0) | (x == 0), (y.abs() == x.abs()))
        return torch.stack([part.float() for part in parts])

    def clean(self, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Images without noise, and kinds."""
        kinds = torch.randint(KINDS, (count, OBJECTS), generator=generator)
        images, shapes, wide = torch.zeros(count, 1, SIDE, SIDE), self.stencils(), SIDE // OBJECTS
        tops = torch.randint(SIDE - PIECE + 1, (count, OBJECTS), generator=generator).tolist()
        for row in range(count):
            for place, top in enumerate(tops[row]):
                images[row, 0, top : top + PIECE, place * wide : place * wide + PIECE] = shapes[kinds[row, place]]
        return images, kinds

    def look(self, images: Tensor, generator: Generator) -> Tensor:
        """The images under noise of this look."""
        return images + self.noise * torch.randn(images.shape, generator=generator)

    def ask(self, kinds: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Questions ``(b, 3)`` and answers ``(b,)``."""
        count = len(kinds)
        which = torch.randint(len(QUESTIONS), (count,), generator=generator)
        order = torch.rand(count, OBJECTS, generator=generator).argsort(1)
        kind = torch.randint(KINDS, (count,), generator=generator)
        first = torch.where(which == 2, kind, order[:, 0])
        second = torch.where(which == 1, order[:, 1], 3)
        a, b = (kinds.gather(1, order[:, place, None])[:, 0] for place in (0, 1))
        often = (kinds == kind[:, None]).sum(1)
        answers = torch.stack([a, KINDS + (a == b).long(), KINDS + 2 + often], 1).gather(1, which[:, None])[:, 0]
        return torch.stack([which, first, second], 1), answers
