"""FreeSwim's second path: what a step costs that keeps its cross-attention."""

from __future__ import annotations

import time
from statistics import median

import torch

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.networks.freeswim import TwoPaths


@measured(times=(2, 4), side=[40], pairs=[3])
def kept(times: int, side: int, pairs: int) -> dict[str, float]:
    """The median time of two steps, the second with what the first kept, over two in which both paths run.

    Two frames of side × side tokens, so many times those of training each way, and windows as large as these; one
    thread.
    """
    half = side // (2 * times)
    net = TwoPaths((2, side, side), (half, half), 64, 4, 2)
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(1, 2 * side * side, 64, generator=generator), torch.randn(1, 16, 64, generator=generator)
    ratios = []
    with torch.no_grad():
        for _ in range(pairs + 1):
            took = []
            for keeps in (True, False):
                begun = time.process_time()
                _, told = net.run(x, text)
                net.run(x, text, told if keeps else None)
                took.append(time.process_time() - begun)
            ratios.append(took[0] / took[1])
    return {"ratio": median(ratios[1:])}


def is_faster(found: Figures) -> Finding:
    """By half at twice the sides of training."""
    twice, more = (1 / found.one("ratio", times=times) for times in (2, 4))
    figure = f"{twice:.2f} times as fast at twice the sides of training, wanted 1.5, and {more:.2f} at four times"
    return Finding.of(figure, twice >= 1.5)
