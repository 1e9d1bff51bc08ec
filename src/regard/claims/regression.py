"""Heads that learn regression from prompts: their matrices, and their risk beside the best there is."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import torch
from torch import Generator, Tensor

from regard.claims.cells import measured, null, quick
from regard.claims.figures import Figures, Finding, interval, listed
from regard.experiments.many import train_many
from regard.studies.in_context_regression import (
    RegressionHeads,
    SeveralRegressions,
    bayes,
    debiased_step,
    prompts,
    several_prompts,
    step_of_descent,
)

D, LENGTH, NOISE, BATCH, SEEDS = 5, 40, 0.1, 128, 3


@cache
def side_by_side(heads: int, steps: int) -> list[RegressionHeads]:
    """Models of all seeds."""
    drawn = [Generator().manual_seed(seed) for seed in range(SEEDS)]

    def draw(step: int) -> tuple[Tensor, ...]:
        return tuple(map(torch.stack, zip(*(prompts(BATCH, LENGTH, D, NOISE, g) for g in drawn), strict=True)))

    def loss(call, x: Tensor, y: Tensor, query: Tensor, answer: Tensor) -> Tensor:
        return (call(x, y, query) - answer).square().mean()

    models = [RegressionHeads(D, heads, Generator().manual_seed(100 + seed)) for seed in range(SEEDS)]
    return train_many(models, loss, draw, steps, [3e-3] * SEEDS)  # pyright: ignore[reportReturnType]


@quick(seed=[0], steps=[10])
@null(steps=[0])
@measured(heads=(1, 2, 4), seed=range(SEEDS), steps=[6000])
def trained(heads: int, seed: int, steps: int) -> dict[str, float]:
    """What is off the diagonal of x in K over what is on it, the sum of O over its size, and risks; null: untrained.

    "step" is the risk of one step of gradient descent, which several heads are said to come to.
    """
    model = side_by_side(heads, steps)[seed]
    with torch.no_grad():
        product, read = model.product, model.read[:, -1]
        on = torch.zeros(D + 1, D + 1, dtype=torch.bool).fill_diagonal_(True)
        on[-1, -1] = False
        off = product[:, :D].masked_select(~on[:D]).abs().mean() / product.masked_select(on).abs().mean()
        x, y, query, answer = prompts(20_000, LENGTH, D, NOISE, Generator().manual_seed(7))
        ways = (model(x, y, query), bayes(x, y, query, NOISE), debiased_step(x, y, query, answer))
        risks = [(told - answer).square().mean().item() for told in ways]
    return {
        "off": off.item(),
        "sum": (read.sum().abs() / read.abs().sum()).item(),
        "risk": risks[0],
        "bayes": risks[1],
        "step": risks[2],
        "variance": answer.square().mean().item(),
    }


def is_diagonal_and_sums_to_zero(found: Figures) -> Finding:
    """With four heads: off the diagonal at most a tenth, the sum at most 0.05 of the size."""
    (off, sums), (few, less) = ([found(name, heads=heads) for name in ("off", "sum")] for heads in (4, 2))
    figure = f"off over on the diagonal {listed(off, '.3f')}, sum over size of what is read {listed(sums, '.3f')}"
    two = f"with two heads {listed(few, '.3f')} and {listed(less, '.3f')}"
    return Finding.of(f"{figure}; {two}", max(off) <= 0.1, max(sums) <= 0.05)


def four_are_better(found: Figures) -> Finding:
    """In every seed, and at most 1.2 times the risk of the step."""
    one, two, four = (found("risk", heads=heads) for heads in (1, 2, 4))
    step, best = found("step", heads=4)[0], found("bayes", heads=4)[0]
    figure = f"risk of one head {interval(one)}, of two {listed(two, '.3f')}, of four {interval(four)}"
    better = all(b < a for a, b in zip(one, four, strict=True))
    return Finding.of(f"{figure}, of a step {step:.3f}, Bayes {best:.4f}", better, max(four) <= 1.2 * step)


SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)


@cache
def of_several(tasks: int, heads: int, steps: int) -> list[SeveralRegressions]:
    """Models of all seeds, of covariates that vary more along some axes."""
    drawn, scales = [Generator().manual_seed(seed) for seed in range(SEEDS)], torch.tensor(SCALES)

    def draw(step: int) -> tuple[Tensor, ...]:
        each = (several_prompts(BATCH, LENGTH, scales, NOISE, tasks, g) for g in drawn)
        return tuple(map(torch.stack, zip(*each, strict=True)))

    def loss(call, x: Tensor, y: Tensor, query: Tensor, answer: Tensor) -> Tensor:
        return (call(x, y, query) - answer).square().mean()

    made = [Generator().manual_seed(100 + seed) for seed in range(SEEDS)]
    models = [SeveralRegressions(len(SCALES), tasks, heads, each) for each in made]
    return train_many(models, loss, draw, steps, [3e-3] * SEEDS)  # pyright: ignore[reportReturnType]


@quick(seed=[0], steps=[10])
@null(steps=[0])
@measured(tasks=(1, 2), heads=(2, 4), seed=range(SEEDS), steps=[6000])
def preconditioned(tasks: int, heads: int, seed: int, steps: int) -> dict[str, float]:
    """What so many heads a task weigh along each axis, the least variable first, over all, and their risk beside that
    of a step of descent of the best size; null: untrained."""
    model, scales = of_several(tasks, heads * tasks, steps)[seed], torch.tensor(SCALES)
    x, y, query, answer = several_prompts(20_000, LENGTH, scales, NOISE, tasks, Generator().manual_seed(7))
    with torch.no_grad():
        sizes = model.product[:, range(len(SCALES)), range(len(SCALES))].abs().sum(0)
        plain = step_of_descent(x, y, query, torch.ones_like(scales))
        best = (plain * answer).sum() / plain.square().sum()
        risks = [(told - answer).square().mean().item() for told in (model(x, y, query), best * plain)]
    found = {f"axis{place}": (sizes[place] / sizes.sum()).item() for place in range(len(SCALES))}
    return found | {"risk": risks[0], "plain": risks[1]}


def weighs_by_variance(found: Figures) -> Finding:
    """In every seed, of one task and of two, four heads a task weigh the least variable axis most and each next one
    less; the risk is lower than that of a plain step of the best size. Two heads are told beside them: both may begin
    with one sign, and then stay one head."""
    axes = [found(f"axis{place}", heads=4) for place in range(len(SCALES))]
    risk, plain = found("risk", heads=4), found("plain", heads=4)
    told = ", ".join(interval(shares, ".2f") for shares in axes)
    beside = f"risk {interval(risk)}, with two heads {listed(found('risk', heads=2), '.3f')}, of a plain step"
    figure = f"weight along axes of deviations {listed(SCALES, 'g')}: {told}; {beside} {interval(plain)}"
    falls = [all(a > b for a, b in zip(one, other, strict=True)) for one, other in pairwise(axes)]
    return Finding.of(figure, *falls, all(a < b for a, b in zip(risk, plain, strict=True)))
