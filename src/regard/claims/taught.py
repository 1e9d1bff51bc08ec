"""Digits told by attention that is taught where to look."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from regard.analysis.gaze import area_under_curve, correlation, normalised_scanpath_saliency
from regard.claims.cells import measured, null, quick
from regard.claims.figures import Figures, Finding, interval
from regard.claims.testbeds.digits import digits
from regard.studies.human_attention import GazePool

FIXATIONS, WEIGHT = 12, 1.0


def gaze_of(images: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Fixations ``(b, places)`` that are drawn where a digit's ends and crossings are, and a smooth map of them.

    A place is looked at the oftener the brighter it is and the less its surroundings are.
    """
    around = F.avg_pool2d(images, 3, 1, 1)
    likely = (images * (1.5 * images.amax() - around)).clamp(min=0).flatten(1) + 1e-3
    drawn = torch.multinomial(likely, FIXATIONS, replacement=True, generator=generator)
    counts = torch.zeros_like(likely).scatter_add(1, drawn, torch.ones(drawn.shape))
    side = images.shape[2]
    y = torch.arange(side).float()
    blur = torch.exp(-(y[:, None] - y).square() / 2)
    smooth = (blur @ counts.view(-1, side, side) @ blur).flatten(1)
    return counts, smooth / smooth.sum(1, keepdim=True)


@quick(seed=[0], steps=[20])
@null(weight=[0.0])
@measured(weight=(0.0, WEIGHT), seed=range(5), steps=[600])
def digits_taught(weight: float, seed: int, steps: int) -> dict[str, float]:
    """The share of unseen digits that are told, and CC, NSS and AUC of attention and gaze; null: none is taught."""
    images, labels, unseen, answers = digits(seed)
    generator, model = Generator().manual_seed(seed), GazePool(seed=seed)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    _, gaze = gaze_of(images, generator)
    for _ in range(steps):
        rows = torch.randint(len(images), (64,), generator=generator)
        optimiser.zero_grad()
        model.loss(images[rows], labels[rows], gaze[rows], weight).backward()
        optimiser.step()
    counts, smooth = gaze_of(unseen, Generator().manual_seed(99))
    with torch.no_grad():
        right, maps = (model(unseen).argmax(-1) == answers).double().mean().item(), model.maps(unseen)
    pairs = list(zip(maps, counts, smooth, strict=True))
    return {
        "right": right,
        "cc": sum(correlation(a, s) for a, _, s in pairs) / len(pairs),
        "nss": sum(normalised_scanpath_saliency(a, c) for a, c, _ in pairs) / len(pairs),
        "auc": sum(area_under_curve(a, c) for a, c, _ in pairs) / len(pairs),
    }


def follows_gaze(found: Figures) -> Finding:
    """On average over seeds."""
    by = {name: found.by("weight", name) for name in ("cc", "right", "nss", "auc")}
    plain, taught = 0.0, max(by["cc"])
    mean = {name: {weight: sum(values) / len(values) for weight, values in each.items()} for name, each in by.items()}
    figure = "; ".join(
        f"{name} {interval(each[plain], '.3f')} → {interval(each[taught], '.3f')}" for name, each in by.items()
    )
    more = mean["cc"][taught] - mean["cc"][plain]
    return Finding.of(figure, more >= 0.2, mean["right"][taught] >= mean["right"][plain] - 0.01)
