"""Center and periphery: maps of a detector drawn to prototypes of what is sought and away from what surrounds it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.errors import wrong
from regard.networks.vision.cells import middles
from regard.networks.vision.detector import Detector
from regard.networks.vision.matching import within

ROUNDS = 10
"""Of the means that prototypes of the background settle to."""


class CenterPeriphery(nn.Module):
    """A map whose cells gain what they share with prototypes of classes and lose what they share with the background's.

        a = softmax(cos(x, [p; n]) / τ) over all prototypes,   y = x + α Σ_k a_k p_k − β Σ_m a_m n_m

    p_k is the mean of the cells of class k in the support images, n_m the means that the cells outside of all boxes
    settle to. α and β are learned and begin as zero, with which y = x.

    Args:
        width: of the map. classes: k. backgrounds: m. texts: size of the texts' embeddings. temperature: τ.

    Raises:
        ValueError: a size below one, a temperature of zero.

    Paper: "Remedying Target-Domain Astigmatism for Cross-Domain Few-Shot Object Detection" (2026), from its abstract:
    the equations are this package's.
    """

    def __init__(
        self, width: int, classes: int, backgrounds: int = 4, texts: int = 64, temperature: float = 0.1
    ) -> None:
        super().__init__()
        if min(width, classes, backgrounds, texts) < 1 or temperature <= 0:
            came = f"{width}, {classes}, {backgrounds}, {texts}, {temperature}"
            raise wrong("width, classes, backgrounds, texts, temperature", came, "one or more of each, above 0")
        self.temperature, self.counts = temperature, (classes, backgrounds)
        self.register_buffer("prototypes", torch.zeros(classes + backgrounds, width))
        self.center, self.periphery = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.texts = nn.Linear(texts, width, bias=False)

    def shares(self, x: Tensor) -> Tensor:
        """a ``(b, k + m, y, x)``, the classes' first."""
        return self.likeness(x, self.get_buffer("prototypes")).softmax(1)

    def likeness(self, x: Tensor, those: Tensor) -> Tensor:
        """Cosines of the cells with rows ``(n, width)``, over τ: ``(b, n, y, x)``."""
        return torch.einsum("bcyx,nc->bnyx", F.normalize(x, dim=1), F.normalize(those, dim=1)) / self.temperature

    def forward(self, x: Tensor) -> Tensor:
        signs = torch.cat([each.expand(n) for each, n in zip((self.center, -self.periphery), self.counts, strict=True)])
        return x + torch.einsum("bnyx,nc->bcyx", self.shares(x) * signs[:, None, None], self.get_buffer("prototypes"))

    @torch.no_grad()
    def learn(self, x: Tensor, kinds: Tensor, boxes: Tensor, step: float) -> None:
        """Takes the prototypes from support images: their map, and what they show, −1 for no box, boxes in pixels.

        Raises:
            ValueError: a class without a cell, or fewer cells of the background than prototypes of it.
        """
        place, cells = owners(x, kinds, boxes, step), x.flatten(2).mT.flatten(0, 1)
        outside = cells[place.flatten() < 0]
        counts = [int((place == kind).sum()) for kind in range(self.counts[0])]
        if min(counts) == 0 or len(outside) < self.counts[1]:
            raise wrong("boxes", f"{counts} cells of the classes, {len(outside)} outside", "some of each")
        own = torch.stack([cells[place.flatten() == kind].mean(0) for kind in range(self.counts[0])])
        self.get_buffer("prototypes").copy_(torch.cat([own, settled_means(outside, self.counts[1])]))

    def contrast(self, x: Tensor, kinds: Tensor, boxes: Tensor, step: float, texts: Tensor) -> Tensor:
        """What parts center and periphery by texts: each cell of a class is to be likest its text ``(k, texts)`` of all
        texts and prototypes of the background, each other cell likest one of the latter."""
        place = owners(x, kinds, boxes, step)
        those = torch.cat([self.texts(texts), self.get_buffer("prototypes")[self.counts[0] :]])
        told = self.likeness(x, those).log_softmax(1).flatten(2).mT
        near = told.gather(2, place.clamp(min=0)[..., None])[..., 0]
        return -torch.where(place < 0, told[..., self.counts[0] :].logsumexp(2), near).mean()


def owners(x: Tensor, kinds: Tensor, boxes: Tensor, step: float) -> Tensor:
    """The class of the smallest box that each cell's middle lies in, or whose middle lies in the cell, ``(b, n)``; −1
    for none."""
    places, center = step * middles(x), (boxes[..., None, :2] + boxes[..., None, 2:]) / 2
    inside = within(places, boxes) | ((places - center).abs().amax(-1) <= step / 2)
    inside = inside & (kinds >= 0)[..., None]
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)[..., None].expand(inside.shape)
    if not kinds.shape[1]:
        return torch.full((len(x), x.shape[2] * x.shape[3]), -1, device=x.device)
    least = area.masked_fill(~inside, float("inf")).argmin(1)
    return kinds.gather(1, least).masked_fill(~inside.any(1), -1)


def settled_means(cells: Tensor, count: int) -> Tensor:
    """Means ``(count, c)`` of the cells nearest to each: from the first cell and those farthest from all before."""
    means = cells[:1]
    while len(means) < count:
        means = torch.cat([means, cells[torch.cdist(cells, means).amin(1).argmax()][None]])
    for _ in range(ROUNDS):
        nearest = torch.cdist(cells, means).argmin(1)
        means = torch.stack([cells[nearest == n].mean(0) if (nearest == n).any() else means[n] for n in range(count)])
    return means


class Refined(nn.Module):
    """A neck with a `CenterPeriphery` behind each of its levels."""

    def __init__(self, neck: nn.Module, levels: Sequence[CenterPeriphery]) -> None:
        super().__init__()
        self.neck, self.levels = neck, nn.ModuleList(levels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [level(each) for level, each in zip(self.levels, self.neck(maps), strict=True)]


def refine(detector: Detector, images: Tensor, kinds: Tensor, boxes: Tensor, classes: int, texts: int = 64) -> Refined:
    """Puts a `CenterPeriphery` behind each level of a detector's neck, prototypes taken from support images.

    Args:
        detector: whose neck is replaced. images, kinds, boxes: of the supports, see `Criterion`. classes: how many.
        texts: size of the texts' embeddings.
    """
    with torch.no_grad():
        maps = list(detector.neck(detector.features(images)))
    made = [CenterPeriphery(each.shape[1], classes, texts=texts) for each in maps]
    for level, each, step in zip(made, maps, detector.steps, strict=True):
        level.to(each).learn(each, kinds, boxes, step)
    detector.neck = Refined(detector.neck, made)
    return detector.neck
