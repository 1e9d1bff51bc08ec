"""Relevance of pixels of drawn scenes for a small convolutional network, and the areas in which it stands out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.analysis.salient_relevance import salient_relevance
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.claims.testbeds.captioned import SIDE, SIZE, draw, stencils
from regard.train.fit import Recipe, fit

DELETED, DRAWS, ASKED = 0.1, range(5), 128


def scenes(count: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Images of one shape ``(b, 3, 32, 32)``, which of four it is ``(b,)``, and its pixels ``(b, 32, 32)``."""
    found = draw(count, generator, objects=1)
    shapes = found.words[:, 2] - 4
    pixels = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    for place, (top, left), stencil in zip(pixels, found.corners[:, 0].tolist(), stencils()[shapes], strict=True):
        place[top : top + SIZE, left : left + SIZE] = stencil > 0
    return found.images, shapes, pixels


def network(seed: int) -> nn.Sequential:
    """Three convolutions and two linear layers without biases, which would take relevance."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for a, b in ((3, 12), (12, 24), (24, 32)):
            layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Flatten(), nn.Linear(512, 32, bias=False), nn.ReLU(), nn.Linear(32, 4, bias=False)]
        return nn.Sequential(*layers)


def covered(maps: Tensor, pixels: Tensor) -> float:
    """Mean intersection over union of each object with as many pixels of the highest values of a map ``(b, y, x)``."""
    shares = []
    for one, wanted in zip(maps.flatten(1), pixels.flatten(1), strict=True):
        first = torch.zeros_like(wanted).scatter(0, one.topk(int(wanted.sum())).indices, True)
        shares.append(float((first & wanted).sum()) / float((first | wanted).sum()))
    return sum(shares) / len(shares)


@torch.no_grad()
def fall(model: nn.Module, images: Tensor, classes: Tensor, order: Tensor) -> float:
    """Mean fall of the logits of ``classes`` without the first tenth of the pixels of an order ``(b, pixels)``."""
    off = order[:, : round(DELETED * order.shape[1])]
    left = torch.ones(len(images), 1, order.shape[1]).scatter(2, off[:, None], 0).view(-1, 1, *images.shape[2:])
    before, after = (model(x).gather(1, classes[:, None]) for x in (images, images * left))
    return float((before - after).mean())


@measured(seed=range(3), steps=[400])
def of_scenes(seed: int, steps: int) -> dict[str, float]:
    """What the sum of relevance is off the logit at most, overlap of maps with the object, and falls of the logit.

    For 128 scenes that were not trained on and the class that each is given: by relevance, its SR map and random order.
    """
    generator = Generator().manual_seed(200 + seed)
    images, shapes, _ = scenes(2000, generator)
    asked, answers, pixels = scenes(ASKED, generator)
    model = network(seed)

    def loss(ready: nn.Module, drawn: Generator) -> Tensor:
        rows = torch.randint(len(images), (32,), generator=drawn)
        return F.cross_entropy(ready(images[rows]), shapes[rows])

    fit(model, loss, Recipe(steps, seed=seed))
    found = salient_relevance(model, asked)
    raw = found.pixels.abs().sum(1)
    with torch.no_grad():
        told = model(asked).argmax(1)
    off = (found.pixels.flatten(1).sum(1) - found.logits).abs() / found.logits.abs()
    figures = {"right": (told == answers).double().mean().item(), "off": off.max().item()}
    figures |= {"relevance": covered(raw, pixels), "salient": covered(found.salient, pixels)}
    figures["noise"] = covered(torch.rand(raw.shape, generator=generator), pixels)
    for name, maps in (("relevance", raw), ("salient", found.salient)):
        figures[f"without {name}"] = fall(model, asked, told, maps.flatten(1).argsort(1, descending=True))
    orders = [torch.rand(ASKED, SIDE**2, generator=generator).argsort(1) for _ in DRAWS]
    return figures | {"without random": max(fall(model, asked, told, order) for order in orders)}


def is_conserved(found: Figures) -> Finding:
    """To a hundredth in every image."""
    return Finding.of(
        f"the sum of relevance is off the logit by {max(found('off')):.1e} at most", max(found("off")) <= 0.01
    )


def covers_the_object(found: Figures) -> Finding:
    """In every seed."""
    salient, raw = found("salient"), found("relevance")
    figure = (
        f"overlap with the object: SR map {listed(salient, '.2f')}, relevance {listed(raw, '.2f')}, noise "
        f"{listed(found('noise'), '.2f')}; {listed(found('right'), '.0%')} of the scenes are told"
    )
    return Finding.of(figure, all(a > b for a, b in zip(salient, raw, strict=True)))


def matters(found: Figures) -> Finding:
    """More than by the worst of five random tenths, in every seed."""
    salient, raw, random = (found(f"without {name}") for name in ("salient", "relevance", "random"))
    figure = (
        f"the logit falls by {listed(salient, '.1f')} without the most salient tenth of the pixels, by "
        f"{listed(raw, '.1f')} without the most relevant, by {listed(random, '.1f')} at most without random ones"
    )
    return Finding.of(figure, all(a > b for a, b in zip(salient, random, strict=True)))
