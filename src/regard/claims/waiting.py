"""Questions that stand before the text that answers them, in layers whose queries wait for it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.networks.benchmark import BenchmarkNetwork
from regard.networks.lm import Config
from regard.train.fit import Recipe, fit

SYMBOLS, PAIRS, TOKENS, CHUNK = 12, 4, 48, 8
"""Of keys, of values and of noise each; pairs of a text; its tokens; those that come at once."""
MARK = 3 * SYMBOLS


def questions(count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """``(ids (count, TOKENS), values (count,))``: a mark and a key, then noise with pairs, one of them of that key.

    The pairs stand behind the first chunk, up to the middle of the text.
    """
    ids = 2 * SYMBOLS + torch.randint(SYMBOLS, (count, TOKENS), generator=generator)
    keys = torch.rand(count, SYMBOLS, generator=generator).argsort(1)[:, :PAIRS]
    values = SYMBOLS + torch.randint(SYMBOLS, (count, PAIRS), generator=generator)
    slots = torch.rand(count, TOKENS // 4 - CHUNK // 2, generator=generator).argsort(1)[:, :PAIRS]
    places = CHUNK + 2 * slots
    ids.scatter_(1, places, keys).scatter_(1, places + 1, values)
    ids[:, 0], ids[:, 1] = MARK, keys[:, 0]
    return ids, values[:, 0]


@measured(wait=(TOKENS // 2, 0), seed=range(2), steps=[600])
def prefixes(wait: int, seed: int, steps: int) -> dict[str, float]:
    """The share of questions that are answered right at their own place, of values of twelve."""
    layer = f"wait_to_attend(memory={TOKENS // 3}, wait={wait}, chunk={CHUNK}, top=4)"
    model = BenchmarkNetwork(Config(MARK + 1, 48, f"{layer}*2", heads=2), "noncausal self", seed=seed)

    def loss(ready: nn.Module, generator: Generator) -> Tensor:
        ids, values = questions(64, generator)
        return F.cross_entropy(ready(ids)[:, 1], values)

    fit(model, loss, Recipe(steps, 3e-3, seed=seed))
    ids, values = questions(512, Generator().manual_seed(7_919))
    with torch.no_grad():
        return {"right": (model(ids)[:, 1].argmax(-1) == values).float().mean().item()}


def answers_ahead(found: Figures) -> Finding:
    """At least 95% right where queries wait, at most twice chance where they do not, with every seed."""
    waiting, at_once = (found("right", wait=wait) for wait in (TOKENS // 2, 0))
    figure = f"{listed(waiting, '.1%')} right where queries wait, {listed(at_once, '.1%')} where they do not"
    return Finding.of(figure, min(waiting) >= 0.95, max(at_once) <= 2 / SYMBOLS)
