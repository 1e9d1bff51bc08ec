"""Selecting tokens by a gate and packing them: what stays equal, what the gate learns, what is saved."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.utils.flop_counter import FlopCounterMode

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.claims.testbeds.maps import apart, drawn, stirred
from regard.claims.testbeds.scenes import scenes
from regard.networks.vision.select_pack import SelectPackViT
from regard.train.fit import Recipe, fit

PATCH = 4


@measured(share=(0.5, None))
def packed(share: float | None) -> dict[str, float]:
    """How far the logits of five images together are from those of each alone."""
    net = stirred(SelectPackViT(7, 12, 2, 17, 3, share, PATCH))
    images = drawn(5, 3, 18, 21)
    with torch.no_grad():
        alone = torch.cat([net(image[None]) for image in images])
        return {"apart": apart(net(images), alone)}


def has_shape(labels: Tensor) -> Tensor:
    """Which patches have a pixel of a shape ``(b, n)``."""
    return F.max_pool2d((labels > 0)[:, None].float(), PATCH).flatten(1)


@measured(seed=range(3), steps=[300])
def gate(seed: int, steps: int) -> dict[str, float]:
    """The area under the curve of the first block's gate on unseen scenes: the share of pairs in order."""
    net = SelectPackViT(2, 24, 2, 32, 1, 0.5, PATCH, 1, seed)

    def loss(ready: Any, generator: Generator) -> Tensor:
        images, labels = scenes(16, generator)
        return F.binary_cross_entropy_with_logits(ready.selection(images)[0], has_shape(labels))

    fit(net, loss, Recipe(steps, seed=seed))
    images, labels = scenes(100, torch.Generator().manual_seed(10_000 + seed))
    with torch.no_grad():
        scores = net.selection(images)[0].flatten()
    shown = has_shape(labels).flatten().bool()
    order = scores.argsort().argsort().double()
    many, few = shown.sum().item(), (~shown).sum().item()
    return {"area": ((order[shown].sum() - many * (many - 1) / 2) / (many * few)).item()}


def tells_shapes(found: Figures) -> Finding:
    """At least 0.9 in each run."""
    area = found("area")
    return Finding.of(f"area {listed(area, '.3f')}", min(area) >= 0.9)


@measured(share=(0.5, 1.0))
def work(share: float) -> dict[str, int]:
    """Multiply-adds of the blocks for an image of 224 × 224."""
    with torch.no_grad():
        net = SelectPackViT(depth=2, share=share).eval()
        with FlopCounterMode(display=False) as counter:
            for block in net.blocks:
                block(torch.zeros(1, 196, 192))
    return {"multiply_adds": counter.get_total_flops() // 2}


def is_cheaper(found: Figures) -> Finding:
    """At most 60%."""
    half, whole = (found("multiply_adds", share=share)[0] for share in (0.5, 1.0))
    return Finding.of(f"{half / whole:.0%} of the multiply-adds", half <= 0.6 * whole)
