"""Attention's logits beside the weights behind them, and how its entropy falls and rises."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Generator, nn

from regard.claims.cells import measured, null, quick
from regard.claims.figures import Figures, Finding, interval, listed
from regard.claims.testbeds.source import VOCABULARY, characters, windows
from regard.networks.base import attention_maps
from regard.networks.lm import LM, Config
from regard.studies.joint_dynamics import JointDynamics, LatentTree, flow
from regard.studies.scan_and_snap import world
from regard.train.fit import Recipe, Step, fit

PULLS = (2.0, 1.4, 1.0, 0.6, 0.3, 0.1)


@quick(seed=[0], steps=[50])
@null(rule=["shuffled"])
@measured(kind=("exp", "softmax"), kink=(True, False), rule=["weights"], seed=range(3), steps=[2000])
def tied(kind: str, kink: bool, rule: str, seed: int, steps: int) -> dict[str, float]:
    """How far the logits are from what the weights say, over their size; null: weights of other tokens."""
    z, told = JointDynamics(world(6, 8, 0.5), kind=kind, kink=kink).train(steps, seed)
    told = told.roll(3) if rule == "shuffled" else told
    return {"apart": ((z - told).norm() / z.norm()).item(), "size": z.abs().max().item()}


def are_tied(found: Figures) -> Finding:
    """To 5% in every seed, with either activation and either attention."""
    by = found.by("kind", "apart")
    figure = "; ".join(f"{kind} {listed(values, '.1%')}" for kind, values in by.items())
    return Finding.of(f"logits apart from what weights say: {figure}", max(map(max, by.values())) <= 0.05)


@quick(seed=[0], steps=[2000])
@null(alike=[True])
@measured(linear=(True, False), alike=[False], seed=range(3), steps=[20_000])
def flows(linear: bool, alike: bool, seed: int, steps: int) -> dict[str, float]:
    """Entropy at first, at its lowest and at the end, and its largest rise from one step to the next; null: all tokens
    are pulled alike."""
    pull = torch.tensor(PULLS, dtype=torch.float64)
    pull = pull * (1 + 0.1 * torch.randn(len(PULLS), generator=Generator().manual_seed(seed)))
    entropies = flow(pull.mean().expand(len(PULLS)) if alike else pull, linear, steps)
    rise = entropies.diff().clamp(min=0).max()
    ends = {"first": entropies[0], "lowest": entropies.min(), "end": entropies[-1], "rise": rise}
    return {name: value.item() for name, value in ends.items()}


def rebounds(found: Figures) -> Finding:
    """Linear: it falls by a tenth of a nat and never rises; else it falls so far, and rises by a tenth of its fall."""
    parts = {
        linear: {x: found(x, linear=linear) for x in ("first", "lowest", "end", "rise")} for linear in (True, False)
    }
    figure = "; ".join(
        f"{'linear' if linear else 'with a kink'} {interval(each['first'], '.2f')} → {interval(each['lowest'], '.2f')} "
        f"→ {interval(each['end'], '.2f')}"
        for linear, each in parts.items()
    )
    falls = [a - b for each in parts.values() for a, b in zip(each["first"], each["lowest"], strict=True)]
    back = [b - a >= 0.01 for a, b in zip(parts[False]["lowest"], parts[False]["end"], strict=True)]
    return Finding.of(f"entropy in nats: {figure}", min(falls) > 0.1, max(parts[True]["rise"]) < 1e-9, all(back))


@quick(seed=[0], steps=[500])
@null(flip=[0.5])
@measured(flip=(0.1, 0.2), seed=range(3), steps=[2000])
def hierarchy(flip: float, seed: int, steps: int) -> dict[str, float]:
    """The mean logit of the tokens whose common ancestor with the query is so high; null: latents without parents."""
    tree = LatentTree(flip=flip)
    z, _ = JointDynamics(tree, kink=False).train(steps, seed)
    return {f"height{height}": z[tree.heights == height].mean().item() for height in range(1, tree.depth + 1)}


def nearer_is_more(found: Figures) -> Finding:
    """In every seed each height has a larger logit than the next; the first and the last are at least 0.1 apart."""
    heights = [found(f"height{height}") for height in range(1, LatentTree().depth + 1)]
    figure = "; ".join(f"height {n} {interval(logits, '.2f')}" for n, logits in enumerate(heights, 1))
    falls = [all(a > b for a, b in zip(near, far, strict=True)) for near, far in pairwise(heights)]
    apart = min(a - b for a, b in zip(heights[0], heights[-1], strict=True))
    return Finding.of(f"logits of attention by the common ancestor's height: {figure}", *falls, apart > 0.1)


@quick(seed=[0], steps=[10])
@null(trains=[False])
@measured(trains=[True], seed=range(3), steps=[1500])
def read(trains: bool, seed: int, steps: int) -> dict[str, float]:
    """Entropy of attention on held-out source code in four layers: how far it falls and comes back; null: untrained."""
    model: Any = LM(Config(VOCABULARY, 64, "softmax*4", heads=4), seed)
    codes, ids = characters(False), windows(characters(True), 16, 64, Generator().manual_seed(7))
    curve: list[torch.Tensor] = [entropies(model, ids)]

    def loss(ready: nn.Module, drawn: Generator) -> torch.Tensor:
        return model.loss(windows(codes, 16, 64, drawn))

    def note(step: Step) -> bool:
        if step.number % max(1, steps // 50) == 0:
            curve.append(entropies(model, ids))
        return False

    if trains:
        fit(model, loss, Recipe(steps, 1e-3, seed=seed, decay=0.0), until=note)
    every = torch.stack(curve)
    fall, back = every[0] - every.min(0).values, every[-1] - every.min(0).values
    return {f"fall{layer}": fall[layer].item() for layer in range(4)} | {
        f"back{layer}": back[layer].item() for layer in range(4)
    }


def entropies(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The mean entropy of rows of A in each layer, in nats."""
    with torch.no_grad(), attention_maps(model) as maps:
        model(ids)
    return torch.stack([-torch.special.xlogy(a, a).sum(-1).mean() for a in maps.values()])


def lower_layers_rebound(found: Figures) -> Finding:
    """In the lower of four layers, on average, a tenth of a fall of 0.05 nats comes back, and more than above."""
    falls, backs = ([found(f"{name}{layer}") for layer in range(4)] for name in ("fall", "back"))
    figure = "; ".join(
        f"layer {layer}: falls {interval(falls[layer], '.2f')}, comes back {interval(backs[layer], '.2f')}"
        for layer in range(4)
    )
    low, high = (sum(map(sum, part)) for part in (backs[:2], backs[2:]))
    fell = sum(map(sum, falls[:2])) / (2 * len(falls[0]))
    return Finding.of(figure, fell > 0.05, low >= 0.1 * sum(map(sum, falls[:2])), low > high)
