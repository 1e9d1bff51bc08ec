"""Soft injection in regard-tiny: made-up labels of words, without examples."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, interval
from regard.edits.soft_injection import SoftInjection
from regard.hosts.calibrate import Answered
from regard.hosts.injection import learned, task_states, together
from regard.hosts.small import load
from regard.hosts.steer import steer
from regard.tasks.lexicon import KINDS, LABELS

PROMPTS, SHOTS = 50, 10
"""Prompts whose states are averaged, and examples in each."""
OFF = 0.2
"""The share of heads that is left out for the control."""


class Task:
    """Two kinds of words with a label each, the words parted into known and unknown ones.

    Args:
        seed: of kinds, labels and parts.
    """

    def __init__(self, tokenizer: Any, seed: int) -> None:
        self.source, self.tokenizer = random.Random(seed), tokenizer
        kinds = self.source.sample(list(KINDS), 2)
        self.labels = dict(zip(kinds, self.source.sample(list(LABELS), 2), strict=True))
        words = {kind: self.source.sample(list(KINDS[kind]), len(KINDS[kind])) for kind in kinds}
        self.known = [(word, kind) for kind in kinds for word in words[kind][: len(words[kind]) // 2]]
        self.unknown = [(word, kind) for kind in kinds for word in words[kind][len(words[kind]) // 2 :]]

    def ids(self, text: str) -> Tensor:
        return torch.tensor(self.tokenizer(text)["input_ids"])

    def prompt(self, word: str, shots: int) -> Tensor:
        """A word to label, after so many examples."""
        chosen = [self.source.choice(self.known) for _ in range(shots)]
        told = "".join(f" {other} -> {self.labels[kind]}\n" for other, kind in chosen)
        return self.ids(f"Labels:\n{told} {word} ->")

    def questions(self, words: list[tuple[str, str]], shots: int) -> list[Answered]:
        """Every word as a question."""
        found = []
        for word, kind in words:
            prompt = self.prompt(word, shots)
            whole = self.ids(self.tokenizer.decode(prompt, skip_special_tokens=True) + f" {self.labels[kind]}")
            found.append(Answered(prompt, whole[len(prompt) :]))
        return found


@torch.no_grad()
def share_right(model: Any, questions: list[Answered], *edits: SoftInjection) -> float:
    """How many answers begin with the likeliest token."""
    with steer(model, *edits):
        out = model(**together([one.prompt for one in questions]), use_cache=False).logits[:, -1]
    return (out.argmax(-1) == torch.stack([one.answer[0] for one in questions])).float().mean().item()


@measured(seed=(0, 1, 2, 3, 4))
def labels(seed: int) -> dict[str, float]:
    """Words that the search has not seen: without examples, with eight, injected, and without some heads."""
    model, tokenizer = load("tiny")
    task = Task(tokenizer, seed)
    states = task_states(model, [task.prompt(task.source.choice(task.known)[0], SHOTS) for _ in range(PROMPTS)])
    alpha = learned(model, states, task.questions(task.known, 0))
    plain, shown = task.questions(task.unknown, 0), task.questions(task.unknown, 8)
    whole = torch.cat([alpha[layer] for layer in sorted(alpha)])
    count = round(OFF * len(whole))
    largest = whole.topk(count).indices
    drawn = [torch.randperm(len(whole), generator=torch.Generator().manual_seed(draw))[:count] for draw in range(5)]
    return {
        "zero-shot": share_right(model, plain),
        "eight examples": share_right(model, shown),
        "injected": share_right(model, plain, SoftInjection(states, alpha)),
        "largest off": share_right(model, plain, SoftInjection(states, without(alpha, largest))),
        "random off": sum(share_right(model, plain, SoftInjection(states, without(alpha, part))) for part in drawn) / 5,
    }


def without(alpha: dict[int, Tensor], heads: Tensor) -> dict[int, Tensor]:
    """α with zeros for some of the heads, counted through the layers."""
    whole = torch.cat([alpha[layer] for layer in sorted(alpha)]).index_fill(0, heads, 0.0)
    parts = whole.split([len(alpha[layer]) for layer in sorted(alpha)])
    return dict(zip(sorted(alpha), parts, strict=True))


def as_well_as_examples(found: Figures) -> Finding:
    """Injection is no worse than eight examples on average, and the heads of the largest α matter most."""
    names = ("zero-shot", "eight examples", "injected", "largest off", "random off")
    means = {name: found.mean(name) for name in names}
    figure = (
        f"labelled right: {means['zero-shot']:.0%} without examples, {means['eight examples']:.0%} with eight, "
        f"{interval(found('injected'), '.2f')} of one injected; a fifth of the heads off {means['largest off']:.0%}, "
        f"a random fifth {means['random off']:.0%}; five tasks"
    )
    return Finding.of(figure, means["injected"] >= means["eight examples"], means["largest off"] < means["random off"])
