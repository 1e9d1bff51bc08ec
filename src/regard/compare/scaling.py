"""How cost grows with length: exponents fitted to what was measured, and predictions beyond it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from regard.core.errors import wrong
from regard.core.mechanism import GROWTHS

STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Half width of a 95% interval in standard errors, for 1 to 9 degrees of freedom."""
SETTLED = 0.25
"""Half width of an exponent's interval from which on it is no finding."""


def student(freedom: int) -> float:
    """Half width of a 95% interval in standard errors; for more than 9 degrees of freedom that of 9."""
    return STUDENT[min(freedom, len(STUDENT)) - 1]


@dataclass(frozen=True)
class Exponent:
    """``y ∝ n^value``, with the standard error of the fit; None where there are too few lengths for one.

    Args:
        value, error: of the slope. lengths: how many it was fitted to.
    """

    value: float
    error: float | None
    lengths: int

    @property
    def half(self) -> float | None:
        """Half width of the 95% interval by Student's t: of three lengths 12.7 standard errors."""
        return None if self.error is None else self.error * student(self.lengths - 2)

    @property
    def settled(self) -> bool:
        """Whether the lengths say what the growth is."""
        return self.half is not None and self.half <= SETTLED


def exponent(lengths: Sequence[int], values: Sequence[float]) -> Exponent | None:
    """The slope of log y over log n by least squares, over the upper half of the lengths (at least three of them).

    None for fewer than two lengths.
    """
    pairs = sorted(zip(lengths, values, strict=True))
    upper = pairs[min(len(pairs) // 2, max(len(pairs) - 3, 0)) :]
    if len(upper) < 2 or min(y for _, y in upper) <= 0:
        return None
    xs, ys = [math.log(n) for n, _ in upper], [math.log(y) for _, y in upper]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    if len(upper) == 2:
        return Exponent(slope, None, 2)
    residual = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in zip(xs, ys, strict=True))
    return Exponent(slope, math.sqrt(residual / (len(upper) - 2) / spread), len(upper))


def claimed(growth: str, phase: str, state_growth: str | None) -> float:
    """The exponent of time that the traits claim: decoding reads the state, the other phases do all of the work."""
    return GROWTHS[state_growth or "linear"] if phase == "decode" else GROWTHS[growth]


def projected(
    lengths: Sequence[int], seconds: Sequence[float], work: Callable[[int], float], target: int
) -> tuple[float, float]:
    """``(predicted seconds at target, largest relative error of the fit at the measured lengths)``.

    The fit is ``seconds = a + b · work(n)`` with a, b ≥ 0, relative errors weighing the same at every length; ``work``
    is a cost formula in FLOPs or bytes.

    Raises:
        ValueError: fewer than two lengths.
    """
    if len(set(lengths)) < 2:
        raise wrong("--project", f"{len(set(lengths))} measured length(s)", "at least two to fit the constants to")
    xs = [work(n) for n in lengths]
    rows = [(1 / y, x / y) for x, y in zip(xs, seconds, strict=True)]
    aa, ab, bb = (sum(p[i] * p[j] for p in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    a_, b_ = sum(p[0] for p in rows), sum(p[1] for p in rows)
    scale = aa * bb - ab * ab
    a, b = ((a_ * bb - b_ * ab) / scale, (aa * b_ - ab * a_) / scale) if scale > 1e-12 * aa * bb else (a_ / aa, 0.0)
    if a < 0:
        a, b = 0.0, b_ / bb
    elif b < 0:
        a, b = a_ / aa, 0.0
    worst = max(abs(a + b * x - y) / y for x, y in zip(xs, seconds, strict=True))
    return a + b * work(target), worst
