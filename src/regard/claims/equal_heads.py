"""Heads that are silent in training by turns: how evenly heads matter afterwards, on a toy translation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.edits.ablation import HeadAblation
from regard.hosts.steer import steer
from regard.tasks.translation import Translation
from regard.train.fit import Recipe
from regard.train.objective import Batch, cross_entropy, run, tune
from regard.train.objectives.head_mask import HeadMask, importance

TASK = Translation(words=20, blocks=4, size=2)
LAYERS, HEADS, WIDTH = 3, 8, 64
SIZE, HELD_OUT = 32, 256


def sentences(count: int) -> Callable[[Generator], Batch]:
    """Batches of sentences, a mark, and their translations, which alone are learned."""

    def drawn(generator: Generator) -> Batch:
        pairs = TASK.batch(count, generator)
        seen = torch.arange(pairs.source.shape[1]) < pairs.lengths[:, None]
        first = torch.full((count, 1), TASK.source + TASK.target)
        ids = torch.cat([first, pairs.source, first + 1, pairs.target + TASK.source], 1)
        real = torch.cat([torch.ones_like(first), seen, torch.ones_like(first), pairs.real], 1).bool()
        learned = torch.cat([torch.zeros(count, ids.shape[1] - pairs.real.shape[1], dtype=torch.bool), pairs.real], 1)
        return Batch(ids, learned, real)

    return drawn


def translator(seed: int) -> Any:
    """A small Llama, untrained."""
    sizes: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(vocab_size=TASK.source + TASK.target + 2, num_attention_heads=HEADS, **sizes)
        )


@torch.no_grad()
def right(model: Any, batch: Batch) -> float:
    """The share of words that are the likeliest."""
    targets = batch.targets[:, 1:]
    found: Tensor = run(model, batch).logits[:, :-1].argmax(-1) == batch.ids[:, 1:]
    return found[targets].float().mean().item()


@measured(by=("plain", "random", "importance"), seed=range(3), steps=[1200])
def masked(by: str, seed: int, steps: int) -> dict[str, float]:
    """Words that are right, the spread of heads' importance over its mean, and what the worst single head costs."""
    model = translator(seed)
    objective = HeadMask(0) if by == "plain" else HeadMask(1, "random" if by == "random" else "importance")
    tune(model, objective, sentences(SIZE), Recipe(steps, seed=seed))
    batch = sentences(HELD_OUT)(Generator().manual_seed(99))
    whole = torch.cat(list(importance(model, batch).values()))
    with torch.no_grad():
        own, costs = cross_entropy(model, batch).item(), []
        for layer in range(LAYERS):
            for head in range(HEADS):
                with steer(model, HeadAblation({layer: [head]})):
                    costs.append(cross_entropy(model, batch).item() - own)
    spread = (whole.var() / whole.mean().square()).item()
    return {"right": right(model, batch), "loss": own, "spread": spread, "worst": max(costs)}


def evener(found: Figures) -> Finding:
    """On average, either way: the variance falls by 30%, words are as often right, and the worst head costs less."""
    ways = ("plain", "random", "importance")
    right, spread, worst = ({by: found.mean(name, by=by) for by in ways} for name in ("right", "spread", "worst"))
    figure = (
        f"variance of importance over its squared mean {listed(spread.values(), '.2f')} (plain, random and important "
        f"heads silent), words right {listed(right.values(), '.1%')}, the worst head costs "
        f"{listed(worst.values(), '.2f')} nats"
    )
    conditions = [
        held
        for by in ways[1:]
        for held in (
            spread[by] <= 0.7 * spread["plain"],
            right[by] >= right["plain"],
            worst[by] < worst["plain"],
        )
    ]
    return Finding.of(figure, *conditions)
