"""Poses lifted from what a camera sees, with and without each way between two branches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from regard.claims.cells import measured, null, quick
from regard.claims.figures import Figures, Finding, interval
from regard.claims.testbeds.skeletons import poses
from regard.networks.pose_lifting import NOTHING, PoseLifter
from regard.train.fit import Recipe, fit

WIDE = 4.0
"""What a camera sees is about this much smaller than the body."""
ARMS = {
    "both": (True, True),
    "no way to attention": (False, True),
    "no way to convolution": (True, False),
    "neither way": (False, False),
    "convolution alone": (False, False),
    "attention alone": (False, False),
}


class Nothing(nn.Module):
    """Zeros, in the place of a branch."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def made(arm: str, seed: int) -> PoseLifter:
    """The network of an arm; one branch alone is as wide as gives it the parameters of both."""
    channels = {"convolution alone": 80, "attention alone": 104}.get(arm, 64)
    model = PoseLifter(channels, 2, 8, NOTHING, ARMS[arm], seed)
    for block in model.blocks:
        each: Any = block
        if arm == "convolution alone":
            each.out = Nothing()
        if arm == "attention alone":
            each.second = Nothing()
    return model


def parameters(model: nn.Module) -> int:
    """Those of a model that its output depends on."""
    model(torch.randn(1, 17, 2)).sum().backward()
    count = sum(p.numel() for p in model.parameters() if p.grad is not None and p.grad.any())
    model.zero_grad(set_to_none=True)
    return count


@quick(seed=[0], steps=[5])
@null(shuffled=[True])
@measured(arm=tuple(ARMS), shuffled=[False], seed=range(3), steps=[2000])
def lifted(arm: str, shuffled: bool, seed: int, steps: int) -> dict[str, float]:
    """The mean distance of joints from where they are, in millimetres; null: learned from poses of other bodies."""
    model = made(arm, seed)

    def loss(model: nn.Module, drawn: Generator) -> Tensor:
        seen, body = poses(128, drawn)
        return (model(WIDE * seen) - (body.roll(1, 0) if shuffled else body)).norm(dim=-1).mean()

    count = parameters(model)
    fit(model, loss, Recipe(steps, 2e-3, seed=seed, decay=0.0))
    seen, body = poses(2000, Generator().manual_seed(99))
    with torch.no_grad():
        return {"error": 1000 * (model(WIDE * seen) - body).norm(dim=-1).mean().item(), "parameters": float(count)}


def both_are_better(found: Figures) -> Finding:
    """On average over seeds, by more than the widest interval; parameters alike to a tenth."""
    arms = ("both", "convolution alone", "attention alone")
    errors, counts = ({arm: found(name, arm=arm) for arm in arms} for name in ("error", "parameters"))
    figure = "; ".join(f"{arm} {interval(errors[arm], '.1f')} mm" for arm in arms)
    best = min(sum(errors[arm]) for arm in arms[1:])
    alike = all(abs(counts[arm][0] / counts["both"][0] - 1) < 0.1 for arm in arms)
    sizes = ", ".join(f"{counts[arm][0]:,.0f}" for arm in arms)
    return Finding.of(f"{figure} ({sizes} parameters)", sum(errors["both"]) < best, alike)


def needs_both_ways(found: Figures) -> Finding:
    """Of networks trained so, on average over seeds."""
    errors = {arm: found("error", arm=arm) for arm in list(ARMS)[:4]}
    figure = "; ".join(f"{arm} {interval(values, '.1f')} mm" for arm, values in errors.items())
    both = sum(errors["both"])
    return Finding.of(figure, all(both < sum(values) for arm, values in errors.items() if arm != "both"))
