"""What test-time compute costs: weights, attention and the reading of caches, for many samples of long answers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.plan.device import Device
from regard.plan.roofline import ModelShape, Work


@dataclass(frozen=True)
class Split:
    """Where equivalent FLOPs go: products with weights, products with the cache, reading weights, reading the cache."""

    weights: float
    attention: float
    weights_read: float
    cache_read: float

    @property
    def total(self) -> float:
        return self.weights + self.attention + self.weights_read + self.cache_read

    @property
    def attention_share(self) -> float:
        """Of all, what is due to the context."""
        return (self.attention + self.cache_read) / self.total


@published(
    "kinetics",
    family="parallel",
    kind="study",
    row=135,
    title="Kinetics: Rethinking Test-Time Scaling Laws",
    arxiv="2506.05333",
    year=2025,
    aliases=("eflops", "test_time_scaling"),
    fidelity="hand values",
    claim=(
        Claim(
            ("compute plus intensity times bytes, calibrated on a few steps, predicts the time of others within 15%"),
            cells="planning.calibrated",
            holds="common.at_most(figure=error, most=0.15, said='largest error of 11 predictions', form='.1%')",
        ),
        Claim("attention's share grows with the length", cells="planning.share", holds="planning.grows"),
        Claim(
            "with capped reads the frontier lies above the dense one",
            cells="planning.frontiers",
            holds="planning.lies_above",
        ),
    ),
)
def kinetics(
    model: ModelShape, device: Device, prompt: int, answer: int, samples: int = 1, batch: int | None = None
) -> Split:
    """Equivalent FLOPs of ``samples`` answers to one prompt.

        eFLOPs = compute + I · bytes,   I = ceiling of FLOPs / bandwidth

    summed over the steps of decoding, token t of an answer attending to ``prompt + t`` tokens. The samples are decoded
    together and each reads the whole cache of its own; weights are read once a step for ``batch`` sequences, which are
    the samples if None (a serving engine with other requests has more).

    Paper: Sadhukhan et al., arXiv 2506.05333. How often one answer is right is not its model's to say: `frontier` takes
    it from the caller, and the claim takes a curve.

    Raises:
        ValueError: fewer than one token, sample or sequence.
    """
    batch = samples if batch is None else batch
    for name, value in (("prompt", prompt), ("answer", answer), ("samples", samples), ("batch", batch)):
        if value < 1:
            raise wrong(name, str(value), "at least 1")
    fixed = model.fixed(batch) * (answer * samples / batch)
    attended = model.answered(samples, prompt, answer)
    return Split(
        fixed.flops, attended.flops, device.ridge * fixed.weights, device.ridge * (attended.cache + attended.weights)
    )


@dataclass(frozen=True)
class DecodingPlan:
    """A way of spending: which model, how long its answers, how many of them; with its cost and solve rate."""

    model: str
    answer: int
    samples: int
    cost: float
    rate: float


def frontier(
    models: Mapping[str, ModelShape],
    device: Device,
    prompt: int,
    answers: Sequence[int],
    samples: Sequence[int],
    rate: Callable[[str, int], float],
    batch: int = 64,
) -> list[DecodingPlan]:
    """The plans that no cheaper one equals, cheapest first.

    ``rate(model, answer)`` is the chance that one answer solves the task; of k samples ``1 − (1 − rate)^k`` do. Weights
    are read for at least ``batch`` sequences at once.
    """
    plans = []
    for (name, model), answer, k in itertools.product(models.items(), answers, samples):
        cost = kinetics(model, device, prompt, answer, k, max(batch, k)).total
        plans.append(DecodingPlan(name, answer, k, cost, 1 - (1 - rate(name, answer)) ** k))
    best: list[DecodingPlan] = []
    for plan in sorted(plans, key=lambda plan: (plan.cost, -plan.rate)):
        if not best or plan.rate > best[-1].rate:
            best.append(plan)
    return best


def at_budget(plans: Sequence[DecodingPlan], budget: float) -> float:
    """The best solve rate that ``budget`` buys on a frontier; 0 if nothing."""
    return max((plan.rate for plan in plans if plan.cost <= budget), default=0.0)


@dataclass(frozen=True)
class Calibration:
    """Seconds of a step as ``a · weights read + b · cache read + c · FLOPs``, fitted to measured steps.

    Args:
        weights, cache: seconds a byte. flops: seconds a FLOP. error: largest relative error at the measured steps.
    """

    weights: float
    cache: float
    flops: float
    error: float

    def seconds(self, work: Work) -> float:
        return self.weights * work.weights + self.cache * work.cache + self.flops * work.flops


def calibrate(measured: Iterable[tuple[Work, float]]) -> Calibration:
    """The constants, none below zero, with the least sum of squared relative errors.

    Raises:
        ValueError: fewer than three steps.
    """
    steps = list(measured)
    if len(steps) < 3:
        raise wrong("measured", f"{len(steps)} steps", "at least 3, of different batches and contexts")
    rows = torch.tensor([[w.weights / s, w.cache / s, w.flops / s] for w, s in steps], dtype=torch.float64)
    scale = rows.abs().amax(0).clamp(min=1e-300)
    ones, best = torch.ones(len(steps), dtype=torch.float64), (math.inf, [0.0, 0.0, 0.0])
    for used in itertools.chain.from_iterable(itertools.combinations(range(3), k) for k in (1, 2, 3)):
        part = (rows / scale)[:, used]
        found = torch.linalg.lstsq(part, ones[:, None], driver="gelsd").solution[:, 0]
        loss = (part @ found - ones).square().sum().item()
        if (found >= 0).all() and loss < best[0]:
            whole = [0.0, 0.0, 0.0]
            for place, value in zip(used, found.tolist(), strict=True):
                whole[place] = value / scale[place].item()
            best = (loss, whole)
    fitted = Calibration(*best[1], error=0.0)
    worst = max(abs(fitted.seconds(work) / seconds - 1) for work, seconds in steps)
    return Calibration(*best[1], error=worst)
