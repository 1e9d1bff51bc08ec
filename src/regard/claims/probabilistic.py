"""Probabilistic attention: softmax as its special case, the posterior that EM raises, and segmentation from clicks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

import regard
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.mechanisms.scored.probabilistic import Known, Mixture, Prior

CLASSES, SIDE, FEATURES = 4, 16, 8


def draw(n: int, m: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    q, k, v = (torch.randn(2, 3, count, size, dtype=torch.float64) for count, size in ((n, 8), (m, 8), (m, 5)))
    return q, k, v


@measured()
def unadapted() -> dict[str, float]:
    """How far it is from softmax attention without adaptation, with the prior of norms and with a uniform one."""
    q, k, v = draw(300, 290)
    want = F.scaled_dot_product_attention(q, k, v)
    norm, uniform = (regard.build("probabilistic", steps=0, prior=prior)(q, k, v) for prior in ("norm", "uniform"))
    return {"norm": (norm - want).abs().max().item(), "uniform": (uniform - want).abs().max().item()}


def is_softmax(found: Figures) -> Finding:
    """To 1e-12 with π_j ∝ exp(α |ζ_j|² / 2), and not with equal π."""
    norm, uniform = found.one("norm"), found.one("uniform")
    return Finding.of(f"softmax attention to {norm:.0e}", norm < 1e-12, uniform > 0.1)


@measured(prior=("norm", "uniform"))
def steps_of_em(prior: Prior) -> dict[str, float]:
    """Over 32 draws with some values known: the least rise of the log posterior by a step, and by the first two."""
    least, first = float("inf"), float("inf")
    for seed in range(32):
        q, k, v = draw(23, 11, seed)
        values, given = torch.randn(2, 3, 23, 5, dtype=torch.float64), torch.rand(2, 3, 23) < 0.3
        known = Known(values, given, precision=0.5 + seed % 3)
        mixture = Mixture.of(k, v, 0.1 + seed % 4, prior, key_precision=0.3, mean_precision=0.7)
        before = mixture.objective(q, known)
        for step in range(12):
            mixture = mixture.adapt_keys(q, known) if step % 2 == 0 else mixture.adapt_values(q, known)
            after = mixture.objective(q, known)
            rise = (after - before).min().item()
            least, first = min(least, rise), min(first, rise) if step < 2 else first
            before = after
    return {"least": least, "first": first}


def rises(found: Figures) -> Finding:
    """No step lowers it by more than 1e-9, the first two raise it."""
    least, first = min(found("least")), min(found("first"))
    figure = f"12 steps in 32 draws: least rise {least:.0e}, of the first two steps {first:.2g}"
    return Finding.of(figure, least > -1e-9, first > 1e-3)


def scenes(count: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels of regions around random sites, whose features are their class's, moved for each scene, and noise.

    Returns features ``(count, n, d)``, labels ``(count, n)`` and the classes' features ``(C, d)`` without the move.
    """
    place = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"), -1).view(-1, 2).double()
    sites = torch.rand(count, 2 * CLASSES, 2, generator=generator, dtype=torch.float64) * SIDE
    labels = torch.cdist(place.expand(count, -1, -1), sites).argmin(-1) % CLASSES
    classes = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    moved = classes + 1.2 * torch.randn(count, CLASSES, FEATURES, generator=generator, dtype=torch.float64)
    features = moved.take_along_dim(labels[..., None], 1)
    noise = torch.randn(features.shape, generator=generator, dtype=torch.float64)
    return features + 0.7 * noise, labels, classes


def overlap(found: Tensor, labels: Tensor) -> float:
    """The mean over scenes and their classes of intersection over union."""
    found, labels = (F.one_hot(x, CLASSES).bool() for x in (found, labels))
    both, either = (found & labels).sum(1), (found | labels).sum(1)
    return (both[either > 0] / either[either > 0]).mean().item()


@measured(clicks=(0, 1, 2, 3))
def clicked(clicks: int) -> dict[str, float]:
    """Mean IoU of 100 scenes from so many clicks, with keys as they are and adapted by EM."""
    generator = torch.Generator().manual_seed(0)
    q, labels, classes = scenes(100, generator)
    given = torch.rand(labels.shape, generator=generator).argsort(-1) < clicks
    k = classes.expand(100, -1, -1)
    v = torch.eye(CLASSES, dtype=torch.float64).expand(100, -1, -1)
    known = Known(F.one_hot(labels, CLASSES).double(), given, precision=20.0)
    start = adapted = Mixture.of(k, v, 2.0, "uniform", key_precision=2.0)
    for _ in range(5):
        adapted = adapted.adapt_keys(q, known)
    plain, better = (overlap(mixture.read(q, known).argmax(-1), labels) for mixture in (start, adapted))
    return {"plain": plain, "adapted": better}


def segments_better(found: Figures) -> Finding:
    """At one to three clicks over 5 points better."""
    shown = "; ".join(f"{row['plain']:.2f} to {row['adapted']:.2f}" for row in found.rows)
    gains = [row["adapted"] - row["plain"] for row in found.rows if row["clicks"]]
    return Finding.of(f"mean IoU at 0 to 3 clicks {shown}", min(gains) > 0.05)


@measured()
def propagated() -> dict[str, float]:
    """Where one class is predicted as another: mean IoU before and after a tenth of the values is used."""
    generator = torch.Generator().manual_seed(1)
    q, labels, _ = scenes(30, generator)
    truth, v = (F.one_hot(x, CLASSES).double() for x in (labels, labels.masked_fill(labels == 0, 1)))
    given = torch.rand(labels.shape, generator=generator) < 0.1
    known, found = Known(truth, given, precision=10.0), []
    mixture = Mixture.of(q, v, 0.6, "uniform", mean_precision=0.1)
    for each in (mixture, mixture.adapt_values(q, known)):
        out = torch.where(given[..., None], truth, each.read(q, known))
        found.append(overlap(out.argmax(-1), labels))
    return {"before": found[0], "after": found[1]}


def corrects(found: Figures) -> Finding:
    """Over 20 points better."""
    before, after = found.one("before"), found.one("after")
    return Finding.of(f"known values of a tenth of the pixels bring {before:.2f} to {after:.2f}", after > before + 0.2)
