"""Cache policies on SmolLM2: needles in a long text, a text that goes on, and planted traces of attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Generator, Tensor
from transformers.cache_utils import DynamicCache

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.claims.testbeds.key_values import gain, smollm2
from regard.compare.cache_report import Kept, Prompt, continuations, needles
from regard.compare.cache_report import measured as kept_of
from regard.core.policy import Policy, View, best
from regard.hosts.compress import compress
from regard.policies import H2O, TOVA, Full, LazyEviction, Observing, TaskKV
from regard.policies.named import policy_of

LENGTH, PROMPTS = 1024, 10
EIGHTH, QUARTER, MORE = 0.125, 0.25, 0.4
NAMES = {
    "random": "random",
    "streaming": "streaming",
    "knorm": "knorm",
    "snapkv": "snapkv(window=16)",
    "pyramidkv": "pyramidkv(window=16)",
    "tova": "tova",
    "h2o": "h2o",
    "task_kv": "task_kv(window=16)",
    "lra": "attendre",
    "lfa": "attendre(order=lfa)",
    "fifo": "attendre(order=fifo)",
}
WAYS = {
    EIGHTH: ("random", "streaming", "knorm", "snapkv", "pyramidkv", "adakv", "tova", "h2o"),
    QUARTER: ("random", "streaming", "lra", "lfa", "fifo"),
    MORE: ("random", "streaming", "snapkv", "task_kv"),
}


@cache
def policies() -> dict[str, Policy]:
    """The policies by the names that figures have."""
    found = {name: policy_of(text) for name, text in NAMES.items()}
    return found | {"adakv": policy_of("adakv", of=found["snapkv"])}


@measured()
def needle() -> dict[str, float]:
    """A number asked for after 1,024 tokens of text, with the question seen at the eviction and not."""
    model, tokenizer = smollm2()
    known = policies()
    names = {str(known[name]): name for names in WAYS.values() for name in names}
    ways = [(known[name], budget) for budget, some in WAYS.items() for name in some]
    rows: dict[tuple[str, str, bool], list[Kept]] = {}
    for row in kept_of(model, needles(tokenizer, LENGTH, PROMPTS), ways):
        rows.setdefault((names.get(row.policy, row.policy), row.budget, row.known), []).append(row)
    found: dict[str, float] = {}
    for (name, budget, asked), some in rows.items():
        label = f"{name} {budget} {'known' if asked else 'unknown'}"
        found[f"{label} right"] = sum(row.right for row in some) / len(some)
        found[f"{label} nats"] = sum(row.nats for row in some) / len(some)
        found[f"{label} bytes"] = sum(row.bytes for row in some) / len(some)
        for control in ("random", "streaming") if budget != "all" else ():
            mine, theirs = (
                -torch.tensor([[row.nats] for row in part]) for part in (some, rows[control, budget, asked])
            )
            _, low, high = gain(theirs, mine)
            found |= {f"{label} over {control} low": low, f"{label} over {control} high": high}
    return found


def told(found: Figures, label: str) -> str:
    """The share of right digits, and the gains over the controls."""
    over = [
        f"{control} {found.one(f'{label} over {control} low'):+.2f} to {found.one(f'{label} over {control} high'):+.2f}"
        for control in ("random", "streaming")
    ]
    return f"{found.one(f'{label} right'):.0%} of digits, log-probability over {', over '.join(over)}"


def finds(found: Figures, policy: str, budget: float = EIGHTH) -> Finding:
    """With the question read: better than random tokens and than a stream, both intervals above zero."""
    return better(found, f"{policy} {budget} known")


def finds_unasked(found: Figures, policy: str, budget: float = EIGHTH) -> Finding:
    """The same with the question unknown."""
    return better(found, f"{policy} {budget} unknown")


def better(found: Figures, label: str) -> Finding:
    """Both intervals above zero."""
    lows = [found.one(f"{label} over {control} low") for control in ("random", "streaming")]
    full = f"full cache {found.one(f'full all {label.split()[2]} right'):.0%}"
    return Finding.of(f"{label}: {told(found, label)}; {full}", min(lows) > 0)


def no_worse(found: Figures, policy: str, than: str, budget: float = EIGHTH) -> Finding:
    """At least as many right digits at the same bytes, with the question read."""
    mine, theirs = (found.one(f"{name} {budget} known right") for name in (policy, than))
    unasked = ", ".join(f"{name} {found.one(f'{name} {budget} unknown right'):.0%}" for name in (policy, than))
    figure = (
        f"{policy} {mine:.0%}, {than} {theirs:.0%} of digits at {budget:g} of the cache; question unknown {unasked}"
    )
    return Finding.of(figure, mine >= theirs)


def as_good_as_full(found: Figures, policy: str, budget: float = MORE) -> Finding:
    """98% of the full cache's digits, and 3 points more than a stream and than the same for all heads."""
    full, mine, stream, same = (
        found.one(f"{label} known right")
        for label in ("full all", f"{policy} {budget}", f"streaming {budget}", f"snapkv {budget}")
    )
    others = f"full {full:.0%}, streaming {stream:.0%}, snapkv {same:.0%}"
    figure = f"{policy} {mine:.0%} of digits at {budget:g} of the cache, {others}"
    return Finding.of(figure, mine >= 0.98 * full, mine >= stream + 0.03, mine >= same + 0.03)


def above_fifo(found: Figures, order: str, budget: float = QUARTER) -> Finding:
    """20 points more than with the oldest first."""
    mine, fifo = (found.one(f"{name} {budget} known right") for name in (order, "fifo"))
    figure = f"{order} {mine:.0%}, oldest first {fifo:.0%} of digits at {budget:g} of the cache"
    return Finding.of(figure, mine >= fifo + 0.2)


TEXTS, TEXT, STEP, HELD = 2, 768, 32, 192


@measured()
def streams() -> dict[str, float]:
    """Loss on the second half of texts that are read 32 tokens at a time into a cache of a quarter, or anew."""
    model, tokenizer = smollm2()
    ways = {"full": Full(), "streaming": policy_of("streaming"), "no sinks": policy_of("streaming", sinks=0)}
    ways |= {"closed up": policy_of("streaming", positions="cache")}
    ways |= {"h2o": H2O(), "random": policy_of("random", recent=STEP)}
    found = dict.fromkeys((*ways, "anew"), 0.0)
    for prompt in continuations(tokenizer, TEXT, TEXTS, seed=1):
        ids = torch.cat([prompt.context, prompt.question])
        found["anew"] += loss_anew(model, ids) / TEXTS
        for name, policy in ways.items():
            found[name] += loss(model, policy, ids) / TEXTS
    return found


@torch.no_grad()
def loss(model: Any, policy: Policy, ids: Tensor) -> float:
    """Nats a token of the second half of a text."""
    cache, logits = DynamicCache(config=model.config), []
    with compress(model, policy, HELD):
        for part in ids[None].split(STEP, 1):
            logits.append(model(input_ids=part, past_key_values=cache).logits[0])
    half = len(ids) // 2
    return torch.nn.functional.cross_entropy(torch.cat(logits)[half:-1].float(), ids[half + 1 :]).item()


@torch.no_grad()
def loss_anew(model: Any, ids: Tensor) -> float:
    """The same where each step reads as many tokens as the cache holds once more, and nothing is cached."""
    half, found = len(ids) // 2, []
    for end in range(half + STEP, len(ids) + 1, STEP):
        begin = max(end - STEP - HELD, 0)
        logits = model(input_ids=ids[None, begin:end], use_cache=False, logits_to_keep=STEP).logits[0].float()
        found.append(torch.nn.functional.cross_entropy(logits[:-1], ids[end - STEP + 1 : end], reduction="none"))
        if end < len(ids):
            found.append(torch.nn.functional.cross_entropy(logits[-1:], ids[end : end + 1], reduction="none"))
    return torch.cat(found).mean().item()


def sinks_hold(found: Figures) -> Finding:
    """With sinks within 5% of the perplexity of reading as many tokens anew, without them half as much again."""
    anew, with_sinks, without, full = (math.exp(found.one(name)) for name in ("anew", "closed up", "no sinks", "full"))
    figure = (
        f"perplexity {with_sinks:.2f} with 4 sinks and positions in the cache, {math.exp(found.one('streaming')):.2f} "
        f"with those of the text, {without:.2f} without sinks, {anew:.2f} where 192 tokens are read anew"
    )
    return Finding.of(f"{figure}, {full:.2f} of the full cache", with_sinks <= 1.05 * anew, without >= 1.5 * with_sinks)


def better_than_recent(found: Figures, policy: str) -> Finding:
    """A lower loss than that of the recent tokens alone."""
    mine, recent, full = (found.one(name) for name in (policy, "no sinks", "full"))
    figure = (
        f"loss {mine:.2f}, recent tokens alone {recent:.2f}, with sinks {found.one('streaming'):.2f}, full {full:.2f}"
    )
    return Finding.of(figure, mine < recent)


@dataclass(frozen=True)
class Traced(View):
    """A view whose attention is planted.

    Args:
        trace: ``(steps, tokens)``, the rows of A.
    """

    trace: Tensor | None = None

    def weights(self, rows: slice = slice(None)) -> Tensor:
        assert self.trace is not None
        return self.trace[self.query_positions[rows]][:, self.positions][None]


STEPS, RECURRING, FLASHING = 240, 24, 60


def traces(generator: Generator) -> tuple[Tensor, Tensor]:
    """``(A (steps, steps), which tokens come back)``: some at intervals, some strongly for a while and never again."""
    order = torch.randperm(STEPS // 2, generator=generator)
    coming, flashing = order[:RECURRING], order[RECURRING : RECURRING + FLASHING]
    age = torch.arange(STEPS)[:, None] - torch.arange(STEPS)
    rows = torch.where((age >= 0) & (age < 6), 0.1, 0.0)
    rows[:, flashing] += torch.where((age >= 0) & (age < 24), 0.1, 0.0)[:, flashing]
    periods = torch.randint(16, 41, (RECURRING,), generator=generator)
    rows[:, coming] += ((age[:, coming] > 0) & (age[:, coming] % periods == 0)) * 0.1
    rows += torch.rand(STEPS, STEPS, generator=generator) * 1e-3
    return (rows / rows.sum(1, keepdim=True)).tril(), coming


def simulated(policy: Policy, trace: Tensor, budget: int) -> Tensor:
    """The positions that are left at the end, one token a step."""
    held, stats = torch.arange(0), {name: torch.zeros(0) for name in policy.keeps}
    one = torch.zeros(1, 1, 1)
    for step in range(STEPS):
        held = torch.cat([held, torch.tensor([step])])
        stats = {name: torch.cat([old, torch.tensor([policy.keeps[name]])]) for name, old in stats.items()}
        entries = (one, torch.zeros(len(held), 1), torch.zeros(len(held), 1), held, step + 1, 1.0)
        view = Traced(0, 1, 0, 1, *entries, stats=stats, budget=budget, trace=trace)
        policy.observe(view)
        stats = view.stats
        if policy.due(len(held) - budget, True):
            scores = policy.scores(replace(view, stats=stats)).masked_fill(policy.protected(view), torch.inf)
            kept = best(scores, budget)
            held, stats = held[kept], {name: stat[kept] for name, stat in stats.items()}
    return held


@measured(seed=range(5))
def recurring(seed: int) -> dict[str, float]:
    """The share of planted recurring tokens that are held at the end, at half of the cache."""
    trace, coming = traces(Generator().manual_seed(seed))
    found = {}
    for name, policy in {"lazy": LazyEviction(), "h2o": H2O(), "tova": TOVA(), "random": policy_of("random")}.items():
        found[name] = torch.isin(coming, simulated(policy, trace, STEPS // 2)).float().mean().item()
    return found


def keeps_recurring(found: Figures) -> Finding:
    """At least nine of ten on average, and more than H2O and TOVA keep in every draw."""
    lazy = found("lazy")
    others = {name: found(name) for name in ("h2o", "tova")}
    shown = ", ".join(f"{name} {found.mean(name):.0%}" for name in ("h2o", "tova", "random"))
    above = all(mine > theirs for values in others.values() for mine, theirs in zip(lazy, values, strict=True))
    return Finding.of(f"{found.mean('lazy'):.0%} of recurring tokens stay, {shown}", found.mean("lazy") >= 0.9, above)


@measured()
def far_heads() -> dict[str, float]:
    """How far the sets of far heads of two tasks overlap, and those of the two halves of one."""
    model, tokenizer = smollm2()
    tasks = (needles(tokenizer, 256, 8), continuations(tokenizer, 256, 8))
    sets = [[far(model, prompt) for prompt in prompts] for prompts in tasks]
    between = overlap(common(sets[0]), common(sets[1]))
    within = [overlap(common(some[::2]), common(some[1::2])) for some in sets]
    return {"between": between, "needle": within[0], "text": within[1]}


@torch.no_grad()
def far(model: Any, prompt: Prompt) -> set[tuple[int, int]]:
    """The farthest kv head of each layer, when the prompt has been read."""
    policy: TaskKV = TaskKV(window=1)
    cache: Any = DynamicCache(config=model.config)
    with compress(model, Observing(of=(policy,)), 1.0):
        model(input_ids=torch.cat([prompt.context, prompt.question])[None], past_key_values=cache, logits_to_keep=1)
    found = set()
    for layer in cache.layers:
        views = layer.views(0, layer.queries[0], len(cache.layers))
        found.add((layer.rank, int(policy.distances(views).argmax())))
    return found


def common(sets: Sequence[set[tuple[int, int]]]) -> set[tuple[int, int]]:
    """The heads that are in half of the sets or more."""
    return {head for head in set.union(*sets) if sum(head in one for one in sets) * 2 >= len(sets)}


def overlap(one: set[Any], other: set[Any]) -> float:
    """Jaccard's index."""
    return len(one & other) / len(one | other)


def heads_differ(found: Figures) -> Finding:
    """The sets of two tasks overlap by less than 0.7, those of two halves of a task by more."""
    between, halves = found.one("between"), [found.one(task) for task in ("needle", "text")]
    figure = (
        f"overlap of far heads {between:.2f} between needles and text, {halves[0]:.2f} and {halves[1]:.2f} within each"
    )
    return Finding.of(figure, between < 0.7, min(halves) > between)
