"""Credit by a model's own rhythm: a small model is reinforced on chains of sums, three ways."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

import torch
from torch import Generator, Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.claims.kl_layers import Plain
from regard.train.fit import Recipe
from regard.train.objective import Batch, tune
from regard.train.objectives.preplan_anchor import PreplanAnchor, largest, policy_gradient

TERMS, FIRST, EQUALS = 6, 10, 11
"""Digits of a chain, and the ids of the first token and of the sign before the answer: the running sums modulo ten."""
PROMPTS, GROUP, PARTS = 8, 8, 10
WARM = 800
"""Steps of plain training before, after which some answers are right."""


def prompts(count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """``(ids (count, TERMS + 2), running sums (count, TERMS))``."""
    digits = torch.randint(10, (count, TERMS), generator=generator)
    ends = [torch.full((count, 1), mark) for mark in (FIRST, EQUALS)]
    return torch.cat([ends[0], digits, ends[1]], 1), digits.cumsum(1) % 10


def answered(ids: Tensor) -> Tensor:
    """Which tokens are the answer."""
    return (torch.arange(ids.shape[1]) >= TERMS + 2).expand_as(ids)


@torch.no_grad()
def samples(model: Any, generator: Generator) -> Batch:
    """Groups of answers that the model draws, with their advantages."""
    ids, sums = (x.repeat_interleave(GROUP, 0) for x in prompts(PROMPTS, generator))
    for _ in range(TERMS):
        chances = model(input_ids=ids, use_cache=False).logits[:, -1].softmax(-1)
        ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator)], 1)
    reward = (ids[:, -1] == sums[:, -1]).float().view(PROMPTS, GROUP)
    advantage = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)
    return Batch(
        ids, None, None, {"answer": answered(ids), "advantage": advantage.flatten()[:, None].expand(ids.shape)}
    )


@torch.no_grad()
def right(model: Any) -> float:
    """The share of chains whose likeliest answer ends right."""
    ids, sums = prompts(256, Generator().manual_seed(71))
    for _ in range(TERMS):
        ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return (ids[:, -1] == sums[:, -1]).float().mean().item()


class RandomCredit(PreplanAnchor):
    """As many tokens as anchors and preplan tokens would be, drawn."""

    def loss(self, model: Any, batch: Batch, generator: Generator) -> Tensor:
        drawn = torch.rand(batch.ids.shape, generator=generator)
        chosen = largest(drawn, batch.marked("answer"), 2 * self.tokens)
        return policy_gradient(model, batch, 1 + (self.gamma - 1) * chosen.float())


WAYS = {"uniform": PreplanAnchor(1.0), "rhythm": PreplanAnchor(1.5), "random": RandomCredit(1.5)}


def examples(generator: Generator) -> Batch:
    """Chains with their answers."""
    ids, sums = prompts(64, generator)
    ids = torch.cat([ids, sums], 1)
    return Batch(ids, answered(ids))


@cache
def begun(seed: int, steps: int) -> Any:
    """What all ways go on from: a model after plain training."""
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=12, num_attention_heads=4, **sizes))
    return tune(model, Plain(), examples, Recipe(steps, 2e-3, seed=seed))


@measured(credit=tuple(WAYS), seed=range(5), steps=[300])
def reinforced(credit: str, seed: int, steps: int) -> dict[str, float]:
    """The share of right answers after each tenth of the steps."""
    model = deepcopy(begun(seed, min(WARM, 50 * steps)))
    found = {"before": right(model)}
    each = max(1, steps // PARTS)
    marks = {each * part: f"after {part}" for part in range(1, PARTS + 1)}  # some beyond the end of a short run

    def report(step: int, value: float) -> None:
        if step in marks:
            found[marks[step]] = right(model)

    tune(model, WAYS[credit], lambda drawn: samples(model, drawn), Recipe(steps, 3e-4, seed=seed + 100), report=report)
    end = right(model)
    return dict.fromkeys(marks.values(), end) | found | {"end": end}


def sooner(found: Figures) -> Finding:
    """What the uniform way reaches in the end the rhythm's reaches in 90% of the steps, on average, random does not."""
    target = found.mean("end", credit="uniform")
    reached = {}
    for credit in ("rhythm", "random"):
        curve = [found.mean(f"after {part}", credit=credit) for part in range(1, PARTS + 1)]
        reached[credit] = next((part / PARTS for part, value in enumerate(curve, 1) if value >= target), 1.1)
    ends = [found.mean("end", credit=credit) for credit in WAYS]
    figure = (
        f"right in the end {listed(ends, '.0%')} (uniform, rhythm, random) from {found.mean('before'):.0%}; the first "
        f"of these is reached after {reached['rhythm']:.0%} and {reached['random']:.0%} of the steps"
    )
    return Finding.of(figure, reached["rhythm"] <= 0.9, reached["random"] > 0.9)
