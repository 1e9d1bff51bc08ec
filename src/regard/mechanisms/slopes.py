"""The slopes of linear biases and of fixed decays, one for each head."""

from __future__ import annotations

import math


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """ALiBi's: ``2^{-8 t / h}``, t = 1 … h, if h is a power of two; else the power below's, then every other above."""
    below = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * t / below) for t in range(1, below + 1)]
    return tuple(slopes + [2 ** (-4 * t / below) for t in range(1, 2 * (heads - below), 2)])
