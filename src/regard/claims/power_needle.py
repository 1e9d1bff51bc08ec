"""Keys at powers of two against a sliding window of as many keys: needles at any distance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.claims.cells import measured, quick
from regard.claims.figures import Figures, Finding, listed
from regard.experiments.cell import Cell
from regard.networks.lm import LM, Config
from regard.tasks import batch
from regard.tasks.needles import MARK, Needle
from regard.train.fit import Recipe, fit
from regard.train.lm import predicted

WINDOW, DEPTH, QUARTERS = 32, 4, 4
"""Four layers: three powers and the window lead to every distance below 256, four windows to 136."""
ARMS = ("power", "sliding", "dense")


def layers(arm: str, length: int) -> str:
    """The layers of an arm; a sliding window has as many keys more as there are powers from its end on."""
    powers = sum(1 for k in range(length.bit_length()) if WINDOW <= 2**k < length)
    each = {
        "power": f"power(window={WINDOW}, sinks=1, block=1)",
        "sliding": f"window(size={WINDOW + powers}, sinks=1)",
        "dense": "softmax",
    }
    return f"{each[arm]}*{DEPTH}"


@torch.no_grad()
def by_distance(model: nn.Module, task: Needle, length: int, count: int) -> dict[str, float]:
    """The share of right answers where the needle is in each quarter of the text, the first the farthest."""
    ids, answers = batch(task, torch.Generator().manual_seed(7_919), count, length)
    logits: Tensor = torch.cat([model(part[:, :-1]) for part in ids.split(16)])
    right = (logits.argmax(-1) == ids[:, 1:])[answers[:, 1:]]
    quarter = (ids == MARK).int().argmax(1) * QUARTERS // length
    return {f"quarter_{q}": right[quarter == q].float().mean().item() for q in range(QUARTERS)}


@quick(steps=[5], length=[128], seed=[0])
@measured(arm=ARMS, seed=range(3), steps=[1000], length=[256])
def needle(arm: str, seed: int, steps: int, length: int) -> dict[str, float]:
    """The share of needles that four layers of 64 channels find, by how far back they are.

    Nothing is learned in the first 300 steps, which have 16 answers each.
    """
    task, model = Needle(vocabulary=32), LM(Config(32, 64, layers(arm, length), heads=4, inner=128), seed)

    def loss(ready: nn.Module, generator: torch.Generator) -> Tensor:
        return F.cross_entropy(*predicted(ready, task, length, 16, generator))

    fit(model, loss, Recipe(steps, seed=seed))
    return by_distance(model.eval(), task, length, 256)


def beside() -> list[Cell]:
    """Powers and windows with every seed, and what dense attention finds, with one."""
    return [*needle.where(arm=("power", "sliding")), *needle.where(arm=["dense"], seed=[0])]


def finds_at_any_distance(found: Figures) -> Finding:
    """In every quarter at least 95%, and 30 points above the window in the mean of all."""
    shares = {arm: [found.mean(f"quarter_{q}", arm=arm) for q in range(QUARTERS)] for arm in ARMS}
    figure = "; ".join(f"{arm} {listed(each, '.1%')}" for arm, each in shares.items())
    more = (sum(shares["power"]) - sum(shares["sliding"])) / QUARTERS
    worst = min(shares["power"])
    return Finding.of(f"needles found by quarter, the farthest first: {figure}", worst >= 0.95, more >= 0.3)
