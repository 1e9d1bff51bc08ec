"""Which parts of SmolLM2 carry a sum, and a number that is looked up, from one prompt into another."""

from __future__ import annotations

from regard.analysis.arithmetic_mediation import ArithmeticMediation, all_patched, relative_importance
from regard.analysis.sweep import Site
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.claims.testbeds import sums
from regard.claims.testbeds.key_values import smollm2

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
