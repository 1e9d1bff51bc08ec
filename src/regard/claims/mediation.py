"""Which parts of SmolLM2 carry a sum, and a number that is looked up, from one prompt into another."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from regard.analysis.arithmetic_mediation import (
    ArithmeticMediation,
    Results,
    all_patched,
    neuron_effects,
    relative_importance,
)
from regard.analysis.sweep import Pair, Site
from regard.claims.cells import measured, quick
from regard.claims.figures import Figures, Finding, listed
from regard.claims.testbeds import sums
from regard.claims.testbeds.key_values import smollm2
from regard.hosts.small import load
from regard.train.fit import Recipe, fit

PAIRS, LONG = 12, 4
"""Pairs of prompts for the last token, whose prefix is computed once, and for the operands."""
TIMES = 5
"""By how much the median of all parts is to be exceeded, as the catalogue has it."""


@measured(task=("sum", "look up"))
def of_sums(task: str) -> dict[str, float | str]:
    """The largest effects of SmolLM2's 60 parts at the last token and at the operands, and what all of them do."""
    model, tokenizer = smollm2()
    pairs, half = sums.pairs(model, tokenizer, task, PAIRS, 0), model.config.num_hidden_layers // 2
    last = ArithmeticMediation().run(model, pairs)
    early = ArithmeticMediation(slots=(sums.FIRST, sums.SECOND)).run(model, pairs[:LONG])
    figures: dict[str, float | str] = {"late": relative_importance(last, lambda site: late(site, half))}
    figures["site"] = last.ranked()[0][0].label
    for name, effects in (("last", last), ("operands", early)):
        sites = [of for of in effects.ranked() if late(of[0], half) or (name == "operands" and of[0].part == "mlp")]
        figures |= {f"{name} site": sites[0][0].label, f"{name} most": sites[0][1]}
        figures |= {f"{name} layer": sites[0][0].layer / half, f"{name} median": float(effects.mean.median())}
    found = all_patched(model, pairs)
    return figures | {"moved": float((found[:, 1] > found[:, 0]).double().mean()), "result": float(found[:, 1].mean())}


def late(site: Site, half: int) -> bool:
    """Whether it is an MLP of the later half."""
    return site.part == "mlp" and site.layer >= half


def a_late_network_carries(found: Figures) -> Finding:
    """The largest effect of a late MLP at the last token is five times the median part's."""
    figure = f"at the last token {peak(found, 'last')}; the largest of all is that of {found.one('site', task='sum')}"
    return Finding.of(figure, exceeds(found, "last"))


def early_networks_carry(found: Figures) -> Finding:
    """The MLP of the largest effect at the operands is one of the earlier half, and has five times the median's."""
    early = found.one("operands layer", task="sum") < 1
    return Finding.of(f"at the operands {peak(found, 'operands')}", early, exceeds(found, "operands"))


def peak(found: Figures, at: str) -> str:
    """The MLP of the largest effect, in words."""
    most, median = (found.one(f"{at} {what}", task="sum") for what in ("most", "median"))
    return f"{found.one(f'{at} site', task='sum')} has an effect of {most:.0f}, the median part {median:.2g}"


def exceeds(found: Figures, at: str) -> bool:
    """Whether the largest effect is so many times the median."""
    return found.one(f"{at} most", task="sum") >= TIMES * max(0.0, found.one(f"{at} median", task="sum"))


def all_parts_carry(found: Figures) -> Finding:
    """The donor's result is likelier than the own one in 95% of the pairs, and has most of the probability."""
    moved, result = (found.one(what, task="sum") for what in ("moved", "result"))
    return Finding.of(
        f"the donor's result is the likelier one in {moved:.0%} of {PAIRS} pairs, its mean probability {result:.0%}",
        moved >= 0.95,
        result > 0.5,
    )


def looking_up_is_elsewhere(found: Figures) -> Finding:
    """Late MLPs have a smaller share of all effects, and the largest effect is another part's."""
    shares = [found.one("late", task=task) for task in ("sum", "look up")]
    sites = [found.one("site", task=task) for task in ("sum", "look up")]
    figure = (
        f"late MLPs have {shares[0]:.0%} of the effects at the last token for sums, {shares[1]:.0%} for numbers looked "
        f"up, whose largest is that of {sites[1]}"
    )
    return Finding.of(figure, shares[0] > shares[1], sites[0] != sites[1])


FEW, SHARE = 3, 0.05
"""Pairs whose neurons are patched one by one, and the share of the neurons that is few."""


@measured()
def of_neurons() -> dict[str, float]:
    """Of the late MLP of SmolLM2 that carries sums most: the share of its neurons' effects that a twentieth has."""
    model, tokenizer = smollm2()
    pairs, half = sums.pairs(model, tokenizer, "sum", FEW, 0), model.config.num_hidden_layers // 2
    effects = ArithmeticMediation(("mlp",)).run(model, pairs)
    layer = next(site.layer for site, _ in effects.ranked() if late(site, half))
    found = neuron_effects(model, pairs, layer).mean(0).clamp(min=0).log1p()
    most = found.topk(round(SHARE * len(found))).values.sum() / found.sum()
    return {"layer": layer, "neurons": len(found), "share": float(most)}


def few_neurons_carry(found: Figures) -> Finding:
    """Half or more, of log(IE + 1) summed."""
    share, layer = found.one("share"), found.one("layer")
    figure = (
        f"{SHARE:.0%} of the {found.one('neurons')} neurons of SmolLM2's layer {layer} have {share:.0%} of the effects"
    )
    return Finding.of(figure, share >= 0.5)


@quick(seed=[0], steps=[2])
@measured(seed=range(2), steps=[150])
def of_training(seed: int, steps: int) -> dict[str, float]:
    """The share of late MLPs in all effects at the last token of regard-tiny, before and after it is trained to add."""
    model, tokenizer = load("tiny")
    texts = [(f"{one} + {other} =", f" {one + other}") for one, other in sums.operands()]
    ids = [tokenizer(text + answer, add_special_tokens=False).input_ids for text, answer in texts]
    if len({len(of) for of in ids}) > 1:
        raise RuntimeError("the sums are of different numbers of tokens")
    every, draw, half = torch.tensor(ids), Random(seed), model.config.num_hidden_layers // 2

    def drawn() -> Pair:
        while True:
            (one, other) = draw.sample(ids, 2)
            if one[-1] != other[-1]:
                return Pair(torch.tensor(one[:-1]), torch.tensor(other[:-1]), Results(one[-1], other[-1]))

    pairs = [drawn() for _ in range(PAIRS)]

    def share() -> dict[str, float]:
        effects = ArithmeticMediation().run(model, pairs)
        with torch.no_grad():
            right = model(input_ids=every[:, :-1]).logits[:, -1].argmax(1) == every[:, -1]
        late_share = relative_importance(effects, lambda site: late(site, half))
        return {"late": late_share, "right": float(right.double().mean())}

    def loss(ready: Any, generator: Generator) -> Tensor:
        some = every[torch.randint(len(every), (16,), generator=generator)]
        return cross_entropy(ready(input_ids=some[:, :-1]).logits[:, -1], some[:, -1])

    before = share()
    fit(model, loss, Recipe(steps, 1e-3, seed=seed))
    return {f"{name} before": x for name, x in before.items()} | {f"{name} after": x for name, x in share().items()}


def training_moves_it_late(found: Figures) -> Finding:
    """In every seed, and the model adds after it and not before."""
    lates, rights = ([found(f"{of} {when}") for when in ("before", "after")] for of in ("late", "right"))
    figure = (
        f"late MLPs have {listed(lates[0], '.0%')} of the effects before training and {listed(lates[1], '.0%')} after; "
        f"sums that are right {listed(rights[0], '.0%')} and {listed(rights[1], '.0%')}"
    )
    more = [b > a for a, b in zip(*lates, strict=True)]
    return Finding.of(figure, all(more), min(rights[1]) >= 0.9, max(rights[0]) < 0.5)
