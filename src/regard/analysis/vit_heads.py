"""Heads of vision transformers: what each is worth by several measures, and how far over the image it looks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from regard.analysis.base import Analysis, Head, Result
from regard.analysis.sweep import by_layer, heads_of
from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.tile import Tile
from regard.edits.ablation import HeadAblation
from regard.hosts.attach import attach
from regard.hosts.watch import watch

MEASURES = ("probability", "loss", "divergence")


@dataclass(frozen=True)
class Images:
    """Some images and what they show.

    Args:
        pixels: ``(b, c, h, w)``. labels: ``(b,)`` int64.
    """

    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Knockouts(Result):
    """What each head's removal changes, for each image.

    Args:
        heads: in their order. probability, loss, divergence, right: ``(heads, images)`` float64: fall of the label's
            probability, rise of its loss, Kullback–Leibler divergence of the predictions from those of the whole model,
            and whether the label is still the likeliest. whole: ``(images,)``, whether it is in the whole model.
    """

    heads: tuple[Head, ...]
    probability: Tensor
    loss: Tensor
    divergence: Tensor
    right: Tensor
    whole: Tensor
    name = "vit_heads"

    def merge(self, other: Knockouts) -> Knockouts:
        """The images of both.

        Raises:
            ValueError: other heads.
        """
        if self.heads != other.heads:
            raise wrong("other", f"{len(other.heads)} heads", f"the same {len(self.heads)}")
        parts = [torch.cat([getattr(self, of), getattr(other, of)], 1) for of in (*MEASURES, "right")]
        return Knockouts(self.heads, *parts, torch.cat([self.whole, other.whole]))  # pyright: ignore[reportCallIssue]

    def ranked(self, measure: str) -> list[Head]:
        """Heads by one of `MEASURES`, the most important first.

        Raises:
            ValueError: another measure.
        """
        if measure not in MEASURES:
            raise wrong("measure", repr(measure), f"one of {', '.join(MEASURES)}")
        order = getattr(self, measure).mean(1).argsort(descending=True, stable=True).tolist()
        return [self.heads[i] for i in order]

    def agreement(self, one: str, other: str) -> float:
        """The rank correlation of two measures over the heads."""
        places = [{head: i for i, head in enumerate(self.ranked(measure))} for measure in (one, other)]
        ranks = torch.tensor([[of[head] for head in self.heads] for of in places], dtype=torch.float64)
        return float(torch.corrcoef(ranks)[0, 1])

    def table(self) -> list[dict[str, Any]]:
        return [
            {"layer": layer, "head": head, **{of: float(getattr(self, of)[i].mean()) for of in MEASURES}}
            | {"accuracy": float(self.right[i].mean() - self.whole.mean())}
            for i, (layer, head) in enumerate(self.heads)
        ]


@published(
    "vit_heads",
    family="observe",
    kind="analysis",
    row=342,
    title="How Does Attention Work in Vision Transformers? A Visual Analytics Attempt",
    arxiv="2303.13731",
    year=2023,
    aliases=("vit_head_analytics",),
    fidelity="abstract only",
    claim=(
        Claim(
            "measures of a head's importance agree, rank correlations from 0.5 on",
            cells="digit_heads.of_digits",
            holds="digit_heads.measures_agree",
        ),
        Claim(
            "without the head that comes first accuracy falls most",
            cells="digit_heads.of_digits",
            holds="digit_heads.the_first_costs_most",
        ),
        Claim(
            "in the plane of an autoencoder maps of a head lie beside others of it, five times as often as by chance",
            cells="digit_heads.plane",
            holds="digit_heads.heads_lie_together",
        ),
    ),
)
class HeadKnockouts(Analysis[Images, Knockouts]):
    """Importance of each head of an image classifier, by leaving it out.

        probability: P(y) − P⁻ʰ(y),   loss: log P(y) − log P⁻ʰ(y),   divergence: KL(P ‖ P⁻ʰ)

    `hop_profile` says how far over the image heads look; `image_maps` gives their maps, and
    `head_divergence.divergences` with `Divergences.clusters` groups them by what they look like; `pattern_plane` lays
    them out in a plane by an autoencoder. The paper's linked views are those of a page, not of a measure.

    Paper: Li et al., arXiv 2303.13731, from whose abstract the measures are.

    Args:
        size: images in a batch.
    """

    name = "vit_heads"

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("profiles by hand", cls(), {"known": by_hand})]

    def __init__(self, size: int = 64) -> None:
        if size < 1:
            raise wrong("size", str(size), "at least one image")
        self.size = size

    @torch.no_grad()
    def run(self, subject: Any, data: Iterable[Images]) -> Knockouts:
        found: Knockouts | None = None
        for images in data:
            for pixels, labels in zip(images.pixels.split(self.size), images.labels.split(self.size), strict=True):
                one = knocked_out(subject, pixels, labels)
                found = one if found is None else found.merge(one)
        if found is None:
            raise wrong("data", "no images", "at least one")
        return found


def knocked_out(model: Any, pixels: Tensor, labels: Tensor) -> Knockouts:
    """One batch."""

    def told(*edits: Any) -> Tensor:
        with attach(model, edits=edits):
            return model(pixel_values=pixels.to(model.device)).logits.double().log_softmax(1).cpu()

    whole, heads, rows = told(), heads_of(model), []
    at = torch.arange(len(labels))
    for head in heads:
        logs = told(HeadAblation(by_layer([head])))
        fall = whole[at, labels].exp() - logs[at, labels].exp()
        rise = cross_entropy(logs, labels, reduction="none") - cross_entropy(whole, labels, reduction="none")
        apart = (whole.exp() * (whole - logs)).sum(1)
        rows.append(torch.stack([fall, rise, apart, (logs.argmax(1) == labels).double()]))
    return Knockouts(tuple(heads), *torch.stack(rows, 1).unbind(), (whole.argmax(1) == labels).double())  # pyright: ignore[reportCallIssue]


class WholeRows:
    """Keeps all rows of A of one pass in which every token sees every other."""

    name = "whole_rows"

    def __init__(self) -> None:
        self.layers: dict[int, list[Tensor]] = {}

    def update(self, tile: Tile) -> None:
        self.layers.setdefault(tile.layer, []).append(tile.weights)

    def merge(self, other: Self) -> None:
        """Rows of others come after the own ones."""
        for layer, rows in other.layers.items():
            self.layers.setdefault(layer, []).extend(rows)

    def result(self) -> dict[int, Tensor]:
        """By layer ``(b, heads, n, n)``."""
        return {layer: torch.cat(rows, 2) for layer, rows in sorted(self.layers.items())}


@torch.no_grad()
def image_maps(model: Any, pixels: Tensor) -> list[Tensor]:
    """A of each layer ``(b, heads, n, n)`` of a Transformers model that reads ``pixels (b, c, h, w)``."""
    probe = WholeRows()
    with watch(model, [probe]):
        model(pixel_values=pixels.to(model.device))
    return list(probe.result().values())


def hop_profile(maps: Tensor, grid: tuple[int, int], special: int = 1) -> Tensor:
    """``(heads, hops)``: the share of weight between patches that are 0, 1, 2, … rows or columns apart; sums to one.

    A patch has up to 8 neighbours of one hop, the further of its rows and columns; every row of A counts alike.

    Args:
        maps: ``(heads, n, n)``. grid: rows and columns of patches. special: tokens before them, which are left out.

    Raises:
        ValueError: not so many patches.
    """
    rows, columns = grid
    if maps.shape[-1] != special + rows * columns:
        raise wrong("grid", f"{grid} and {special} more for {maps.shape[-1]} tokens", "rows times columns patches")
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    far = (places[:, None] - places).abs().amax(2)
    inside = maps[:, special:, special:].double()
    inside = inside / inside.sum(2, keepdim=True).clamp(min=1e-300)
    found = torch.stack([(inside * (far == hop)).sum(2).mean(1) for hop in range(max(grid))], 1)
    return found / found.sum(1, keepdim=True)


def by_hand() -> tuple[Tensor, Tensor]:
    """A row of three patches: heads on themselves, on the left end, and everywhere alike."""
    left = torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 0, 0]])
    maps = torch.stack([torch.eye(3), left, torch.full((3, 3), 1 / 3)])
    want = torch.tensor([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [3 / 9, 4 / 9, 2 / 9]], dtype=torch.float64)
    return hop_profile(maps, (1, 3), 0), want
