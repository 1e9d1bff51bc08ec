"""Local linear attention as regression: planes come out exactly, and pieces of planes nearly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import regard
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed

TEMPERATURE = 0.1


def draw(n: int, m: int, seed: int, d: int = 3) -> tuple[Tensor, Tensor]:
    """Queries and keys of unit length, so that their products fall with their distance."""
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(1, 1, size, d, generator=generator, dtype=torch.float64) for size in (n, m))
    return F.normalize(q, dim=-1), F.normalize(k, dim=-1)


@measured()
def affine() -> dict[str, float]:
    """The error of values that are affine in the keys, with a ridge of 1e-8, and that of softmax attention."""
    q, k = draw(37, 128, 0)
    generator = torch.Generator().manual_seed(1)
    matrix, offset = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((3, 5), (5,)))
    want, v = q @ matrix + offset, k @ matrix + offset
    local = regard.build("local_linear", ridge=1e-8, temperature=TEMPERATURE)(q, k, v)
    softmax = regard.build("softmax", scale=1 / TEMPERATURE)(q, k, v)
    return {"local": (local - want).abs().max().item(), "softmax": (softmax - want).abs().max().item()}


def is_exact(found: Figures) -> Finding:
    """To 1e-4, where softmax attention errs by over 1e-2."""
    local, softmax = found.one("local"), found.one("softmax")
    figure = f"affine values come out to {local:.0e}, by softmax attention to {softmax:.2f}"
    return Finding.of(figure, local <= 1e-4, softmax > 1e-2)


@measured()
def least_squares() -> dict[str, float]:
    """How far it is from the intercepts that a solver of weighted least squares, the ridge among its rows, finds."""
    q, k = draw(19, 64, 2)
    v = torch.randn(1, 1, 64, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ridge, found = 0.05, []
    shares = torch.softmax(q @ k.mT / TEMPERATURE, -1)[0, 0]
    for query, weights in zip(q[0, 0], shares, strict=True):
        roots = weights.sqrt()[:, None]
        rows = torch.cat([torch.ones(64, 1, dtype=torch.float64), k[0, 0] - query], 1) * roots
        slopes = torch.cat([torch.zeros(3, 1, dtype=torch.float64), ridge**0.5 * torch.eye(3, dtype=torch.float64)], 1)
        right = torch.cat([v[0, 0] * roots, torch.zeros(3, 5, dtype=torch.float64)])
        found.append(torch.linalg.lstsq(torch.cat([rows, slopes]), right).solution[0])
    got = regard.build("local_linear", ridge=ridge, temperature=TEMPERATURE)(q, k, v)[0, 0]
    return {"apart": (got - torch.stack(found)).abs().max().item()}


@measured(seed=range(10))
def piecewise(seed: int) -> dict[str, float]:
    """Mean squared errors at 128 queries of a function of two planes, told at 256 keys with noise of 0.1."""
    q, k = draw(128, 256, 10 + seed)
    generator = torch.Generator().manual_seed(100 + seed)
    planes, split = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((2, 3, 1), (3,)))

    def function(x: Tensor) -> Tensor:
        return torch.where((x @ split > 0)[..., None], x @ planes[0], x @ planes[1] + 1)

    noise = 0.1 * torch.randn(1, 1, 256, 1, generator=generator, dtype=torch.float64)
    v, want = function(k) + noise, function(q)
    outs = {
        "local": regard.build("local_linear", ridge=1e-3, temperature=TEMPERATURE)(q, k, v),
        "softmax": regard.build("softmax", scale=1 / TEMPERATURE)(q, k, v),
        "linear": regard.build("linear")(q, k, v),
    }
    return {name: (out - want).square().mean().item() for name, out in outs.items()}


def errs_least(found: Figures) -> Finding:
    """The lowest error with every seed."""
    local, softmax, linear = (found(name) for name in ("local", "softmax", "linear"))
    named = zip(("local", "softmax", "linear"), (local, softmax, linear), strict=True)
    shown = "; ".join(f"{name} {listed(row, '.3f')}" for name, row in named)
    best = all(a < min(b, c) for a, b, c in zip(local, softmax, linear, strict=True))
    return Finding.of(f"squared error of ten functions of two planes: {shown}", best)
