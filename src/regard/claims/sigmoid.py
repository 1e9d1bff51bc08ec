"""Sigmoid self-attention: its bias keeps the output's size, and no row needs a statistic."""

from __future__ import annotations

import math

import torch

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.kernels import tiled
from regard.mechanisms.scored.sigmoid import Sigmoid

LENGTHS = (64, 256, 1024, 4096)


@measured(n=LENGTHS, bias=("-log n", "default", "none"))
def norms(n: int, bias: str) -> dict[str, float]:
    """Mean norm of an initial layer's outputs; hidden states share a mean, as embeddings do."""
    torch.manual_seed(n)
    hidden = torch.randn(n, 64) + torch.randn(64)
    q, k, v = (hidden @ torch.randn(64, 64) * 0.02 for _ in range(3))
    out = Sigmoid({"-log n": -math.log(n), "default": None, "none": 0.0}[bias])(
        q[None, None], k[None, None], v[None, None]
    )
    return {"norm": out.norm(dim=-1).mean().item()}


def independent_of_the_length(found: Figures) -> Finding:
    """The norm grows as n to less than 0.1 with the bias, and to 0.9 to 1.1 without."""
    slopes = {
        bias: math.log(values[-1] / values[0]) / math.log(LENGTHS[-1] / LENGTHS[0])
        for bias, values in found.by("bias", "norm").items()
    }
    given, usual, none = (slopes[bias] for bias in ("-log n", "default", "none"))
    figure = f"norm ~ n^{usual:.3f} with the bias and n^{none:.2f} without, {LENGTHS[0]} to {LENGTHS[-1]:,} tokens"
    return Finding.of(figure, abs(given) < 0.1, abs(usual) < 0.1, 0.9 < none < 1.1)


@measured()
def kept() -> dict[str, int]:
    """How many tensors of one number for each row are saved for the backward pass, and how many by softmax."""
    shapes: list[tuple[int, ...]] = []
    q, k, v = (torch.randn(1, 3, 307, 17, requires_grad=True) for _ in range(3))
    found = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: shapes.append(tuple(x.shape)) or x, lambda x: x):
        for name, normaliser in (("sigmoid", tiled.Sigmoid(-5.0)), ("softmax", tiled.Softmax())):
            shapes.clear()
            tiled.attend(q, k, v, normaliser=normaliser)
            found[name] = shapes.count((1, 3, 307))
    return found


def keeps_none(found: Figures) -> Finding:
    """Sigmoid keeps none, softmax some."""
    sigmoid, softmax = found.one("sigmoid"), found.one("softmax")
    return Finding.of(f"{sigmoid} row statistics kept, {softmax} by softmax", sigmoid == 0, softmax > 0)
