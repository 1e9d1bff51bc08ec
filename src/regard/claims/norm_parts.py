"""Networks whose LayerNorm lacks a part: how soon they learn to count, and which keys no query of theirs selects."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.claims.cells import measured, quick
from regard.claims.figures import Figures, Finding, interval, listed
from regard.claims.small_lm import attended
from regard.claims.testbeds.source import VOCABULARY, characters, held_out_loss, trained, windows
from regard.networks import LM, Config
from regard.studies.layer_norm_expressivity import LayerNormParts, Majority, majorities, unselectable
from regard.train.fit import Recipe, Step, fit

BATCH, LEARNED, EVERY = 512, 0.99, 25
RATES = (1e-3, 3e-3, 1e-2)


@quick(rate=[1e-2], seed=[0], steps=[50])
@measured(projection=(True, False), rate=RATES, seed=range(3), steps=[3000])
def majority(projection: bool, rate: float, seed: int, steps: int) -> dict[str, float]:
    """Steps until 99% of unseen sequences are told at every token, one more than all for never; accuracy and the mean
    angle between 1 and queries at the end."""
    model = Majority(projection=projection, seed=seed)
    held_out, labels = majorities(512, Generator().manual_seed(99))
    reached: list[int] = []

    def right() -> float:
        with torch.no_grad():
            return (model(held_out).argmax(-1) == labels[:, None]).double().mean().item()

    def loss(ready: nn.Module, generator: Generator) -> Tensor:
        classes, most = majorities(BATCH, generator)
        return F.cross_entropy(ready(classes).flatten(0, 1), most.repeat_interleave(classes.shape[1]))

    def until(step: Step) -> bool:
        if step.number % EVERY == 0 and right() >= LEARNED:
            reached.append(step.number)
        return bool(reached)

    fit(model, loss, Recipe(steps, rate, seed=seed, decay=0.0), until=until)
    with torch.no_grad():
        angle = model.angle(held_out).mean().item()
    return {"reached": float(reached[0]) if reached else steps + 1.0, "right": right(), "angle": angle}


def projection_is_sooner(found: Figures) -> Finding:
    """On average at the best rate of each arm; with it angles below 10° on average, without it above."""
    rates = dict.fromkeys(found("rate"))
    best = {arm: min(rates, key=lambda rate: found.mean("reached", projection=arm, rate=rate)) for arm in (True, False)}
    own, other = ({name: found(name, projection=arm, rate=best[arm]) for name in ("reached", "angle")} for arm in best)
    told = (
        f"99% right after {listed(own['reached'], '.0f')} steps with the projection, {listed(other['reached'], '.0f')} "
        f"without, each at the best of {len(rates)} rates; queries {interval(own['angle'], '.1f')}° and "
        f"{interval(other['angle'], '.1f')}° from 1"
    )
    mean = {name: sum(own[name]) / len(own[name]) for name in own}
    others = {name: sum(other[name]) / len(other[name]) for name in other}
    return Finding.of(told, mean["reached"] < others["reached"], mean["angle"] < 10 <= others["angle"])


@quick(seed=[0], steps=[20])
@measured(scaling=(True, False), seed=range(3), steps=[1500])
def in_language(scaling: bool, seed: int, steps: int) -> dict[str, float]:
    """Held-out nats a character of four layers of width 8, as the authors' small one, whose norms before attention
    project and scale or project alone, and the share of what they give for 64 characters that no query selects."""
    model = LM(Config(VOCABULARY, 8, "softmax*4", heads=4), seed=seed)
    for layer in model.layers:
        layer.norms[0] = LayerNormParts(scaling=scaling)  # pyright: ignore
    trained(model, seed, steps)
    ids = windows(characters(True), 4, 64, Generator().manual_seed(7))
    with torch.no_grad():
        keys = [keys.unique(dim=0) for _, x in attended(model, ids) for keys in x]
    lost = [unselectable(each).double().mean().item() for each in keys]
    return {"loss": held_out_loss(model), "unselectable": sum(lost) / len(lost)}


def scaling_is_better(found: Figures) -> Finding:
    """On average over seeds, both."""
    loss, lost = ({arm: found(name, scaling=arm) for arm in (True, False)} for name in ("loss", "unselectable"))
    figure = "; ".join(
        f"{'scaled' if arm else 'projected alone'} {interval(loss[arm])} nats a character, "
        f"{interval([100 * share for share in lost[arm]], '.1f')}% of keys unselectable"
        for arm in (True, False)
    )
    return Finding.of(figure, sum(loss[True]) < sum(loss[False]), sum(lost[True]) < sum(lost[False]))
