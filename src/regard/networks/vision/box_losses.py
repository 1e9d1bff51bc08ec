"""Losses of boxes: overlaps that have a gradient where boxes are apart, scores by overlap, distances by bins."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.errors import wrong

KINDS = ("iou", "giou", "diou", "ciou", "siou")


def likeness(one: Tensor, other: Tensor, kind: str = "iou", eps: float = 1e-10) -> Tensor:
    """Intersection over union of pairs of boxes ``(…, 4)``, left, top, right, bottom, less what the kind takes off.

    - iou: I = |A ∩ B| / |A ∪ B|, nothing
    - giou: the share of the hull that neither covers
    - diou: ρ² / c², the squares of the middles' distance and of the hull's diagonal
    - ciou: that and α v, v = 4 / π² (atan(w/h) − atan(w'/h'))², α = v / (v − I + 1), which has no gradient
    - siou: half of Δ + Ω: Δ = Σ 1 − exp((Λ − 2) (ρ_a / hull_a)²) over both axes, Λ = cos(2 arcsin(sin θ) − π/2) of the
      smaller angle θ of the middles to an axis; Ω = Σ (1 − exp(−|w − w'| / max(w, w')))⁴ over both sides

    Args:
        one, other: of shapes that broadcast. eps: added to heights, unions and hulls.

    Raises:
        ValueError: another kind.

    Papers: Rezatofighi et al., arXiv 1902.09630; Zheng et al., 1911.08287; Gevorgyan, 2205.12740.
    """
    if kind not in KINDS:
        raise wrong("kind", repr(kind), f"one of {', '.join(KINDS)}")
    extra = one.new_tensor([0.0, eps])
    size, wanted = one[..., 2:] - one[..., :2] + extra, other[..., 2:] - other[..., :2] + extra
    low, high = torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    union = size.prod(-1) + wanted.prod(-1) - shared + eps
    share = shared / union
    hull = torch.maximum(one[..., 2:], other[..., 2:]) - torch.minimum(one[..., :2], other[..., :2])
    apart = (other[..., :2] + other[..., 2:] - one[..., :2] - one[..., 2:]) / 2
    if kind == "iou":
        return share
    if kind == "giou":
        whole = hull.prod(-1) + eps
        return share - (whole - union) / whole
    if kind == "siou":
        return share - (distance_cost(apart + eps, hull) + shape_cost(size, wanted)) / 2
    far = apart.square().sum(-1) / (hull.square().sum(-1) + eps)
    if kind == "diou":
        return share - far
    turned = [torch.atan(each[..., 0] / each[..., 1]) for each in (wanted, size)]
    odd = 4 / math.pi**2 * (turned[0] - turned[1]).square()
    weight = (odd / (odd - share + 1 + eps)).detach()
    return share - far - weight * odd


def distance_cost(apart: Tensor, hull: Tensor) -> Tensor:
    """How far the middles are apart along both axes, less where they lie on one of them."""
    sines = apart.abs() / apart.norm(dim=-1, keepdim=True)
    sine = torch.where(sines[..., 0] > 0.5**0.5, sines[..., 1], sines[..., 0])
    turn = torch.cos(2 * torch.arcsin(sine) - math.pi / 2)
    return (1 - torch.exp((turn - 2)[..., None] * (apart / hull).square())).sum(-1)


def shape_cost(size: Tensor, wanted: Tensor) -> Tensor:
    """How unlike widths and heights are."""
    unlike = (size - wanted).abs() / torch.maximum(size, wanted)
    return (1 - torch.exp(-unlike)).pow(4).sum(-1)


def varifocal(scores: Tensor, wanted: Tensor, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    """``−w (q log p + (1 − q) log(1 − p))``, p = σ(scores), w = q where q is above 0 and α p^γ elsewhere.

    Args:
        scores: before the sigmoid. wanted: q, 0 to 1, of the same shape.

    Paper: Zhang et al., arXiv 2008.13367.
    """
    weight = torch.where(wanted > 0, wanted, alpha * torch.sigmoid(scores).pow(gamma))
    return weight * F.binary_cross_entropy_with_logits(scores, wanted, reduction="none")


def between_bins(bins: Tensor, wanted: Tensor) -> Tensor:
    """Distribution focal loss: the cross entropy of the two bins about a distance, by how near each is; the mean over
    the sides.

    Args:
        bins: ``(n, sides, bins)`` before the softmax, for the distances 0, 1, … wanted: ``(n, sides)``, taken into the
            bins.

    Paper: Li et al., arXiv 2006.04388.
    """
    wanted = wanted.clamp(0, bins.shape[2] - 1 - 0.01)
    left = wanted.long()
    share, told = wanted - left, -torch.log_softmax(bins, -1)
    near, far = (told.gather(2, place[..., None])[..., 0] for place in (left, left + 1))
    return ((1 - share) * near + share * far).mean(-1)


def softened_divergence(own: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """``T² Σ q log(q / p)``, p and q the softmax of both over their last axis at the temperature T; ``(…,)``."""
    wanted = torch.log_softmax(taught / temperature, -1)
    return temperature**2 * (wanted.exp() * (wanted - torch.log_softmax(own / temperature, -1))).sum(-1)
