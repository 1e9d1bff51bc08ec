"""How like a map of attention is to where people looked: measures of saliency, and of scanpaths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.tasks.frames import distance

TINY = 1e-12
Place = tuple[float, float]


def check(found: Tensor, other: Tensor, name: str) -> None:
    """Raises an error that names what does not fit."""
    if found.shape != other.shape or found.dim() < 1:
        raise wrong(name, f"shape {tuple(other.shape)}", f"the shape of the map, {tuple(found.shape)}")


def normalised_scanpath_saliency(found: Tensor, fixations: Tensor) -> float:
    """NSS: the mean at fixations of a map whose mean is zero and whose deviation is one.

    Args:
        found: the map, any shape. fixations: how often each place was looked at, of that shape.
    """
    check(found, fixations, "fixations")
    x = found.double()
    x = (x - x.mean()) / x.std(correction=0).clamp(min=TINY)
    return (x * fixations).sum().item() / fixations.sum().item()


def area_under_curve(found: Tensor, fixations: Tensor) -> float:
    """AUC: how often a place that was looked at has more of the map than one that was not; ties count a half.

    Args:
        found: the map. fixations: how often each place was looked at.
    """
    check(found, fixations, "fixations")
    looked = fixations.flatten() > 0
    if looked.all() or not looked.any():
        raise wrong("fixations", f"{int(looked.sum())} of {looked.numel()} places", "some places, not all")
    x = found.flatten().double()
    more, same = (compare(x[looked][:, None], x[~looked]).double().mean() for compare in (torch.gt, torch.eq))
    return (more + same / 2).item()


def correlation(found: Tensor, gaze: Tensor) -> float:
    """CC: Pearson's correlation of two maps; zero where one is even."""
    check(found, gaze, "gaze")
    a, b = ((x.double() - x.double().mean()).flatten() for x in (found, gaze))
    size = a.norm() * b.norm()
    return (a @ b / size).item() if size > TINY else 0.0


def divergence(found: Tensor, gaze: Tensor) -> float:
    """KL of the gaze from the map, both made to sum to one, in nats."""
    check(found, gaze, "gaze")
    p, q = gaze.double() / gaze.sum(), found.double() / found.sum()
    return torch.special.xlogy(p, p / q.clamp(min=TINY)).sum().item()


def edit_similarity(a: Sequence[int], b: Sequence[int]) -> float:
    """One less the edit distance of two scanpaths, as regions in order, over the length of the longer one."""
    return 1 - distance(list(a), list(b)) / max(len(a), len(b), 1)


def scan_match(
    a: Sequence[tuple[float, float]], b: Sequence[tuple[float, float]], near: float, gap: float = 0.0
) -> float:
    """ScanMatch: the best alignment of two scanpaths, by Needleman and Wunsch, over the length of the longer one.

    Two fixations that are matched score ``1 − distance / near``, which is negative where they are farther apart than
    ``near``; one that is left out scores ``gap``. The same path scores one.

    Paper: Cristino et al., 2010.
    """
    if not near > 0:
        raise wrong("near", str(near), "above zero")
    best = [[gap * (i + j) for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i, (y, x) in enumerate(a, 1):
        for j, (v, u) in enumerate(b, 1):
            match = 1 - ((y - v) ** 2 + (x - u) ** 2) ** 0.5 / near
            best[i][j] = max(best[i - 1][j - 1] + match, best[i - 1][j] + gap, best[i][j - 1] + gap)
    return best[-1][-1] / max(len(a), len(b), 1)
