"""Sums of two digits that SmolLM2 tells after three examples, and numbers that it only has to look up."""

from __future__ import annotations

from random import Random
from typing import Any

import torch

from regard.analysis.arithmetic_mediation import arithmetic_pair
from regard.analysis.base import Prompt
from regard.analysis.sweep import Pair

SUMS = "1 + 1 = 2\n4 + 2 = 6\n3 + 5 = 8\n"
LISTS = "1 , 7 -> 1\n4 , 2 -> 4\n3 , 5 -> 3\n"
"""The same numbers, of which the first is asked for."""
FIRST, SECOND = -6, -3
"""Slots of the operands."""
Question = tuple[str, str]
"""A prompt and its answer."""


def question(task: str, one: int, other: int) -> Question:
    """``task``: "sum" or "look up"."""
    if task == "sum":
        return f"{SUMS}{one} + {other} = ", str(one + other)
    return f"{LISTS}{one} , {other} -> ", str(one)


def operands() -> list[tuple[int, int]]:
    """All whose sum is a digit."""
    return [(one, other) for one in range(1, 9) for other in range(1, 10 - one)]


def prompts(tokenizer: Any, task: str = "sum") -> list[Prompt]:
    """A prompt for all operands, with its answer behind it."""
    found = []
    for one, other in operands():
        text, answer = question(task, one, other)
        ids = tokenizer(text + answer, add_special_tokens=False).input_ids
        found.append(Prompt(torch.tensor(ids), answer=len(ids) - 1))
    return found


TRIPLES = "1 + 1 + 2 = 4\n4 + 2 + 1 = 7\n3 + 1 + 5 = 9\n"


def triples(tokenizer: Any) -> list[Prompt]:
    """Prompts for all three operands whose sum is a digit, with their answers behind them."""
    found = []
    for one, other in operands():
        for third in range(1, 10 - one - other):
            text = f"{TRIPLES}{one} + {other} + {third} = "
            ids = tokenizer(text + str(one + other + third), add_special_tokens=False).input_ids
            found.append(Prompt(torch.tensor(ids), answer=len(ids) - 1))
    return found


def pairs(model: Any, tokenizer: Any, task: str, count: int, seed: int) -> list[Pair]:
    """Pairs of prompts that the model answers, whose operands both differ, and so do the answers."""
    draw, found, known = Random(seed), [], answered(model, tokenizer, task)
    while len(found) < count:
        one, other = draw.sample(known, 2)
        (base, result), (donor, instead) = question(task, *one), question(task, *other)
        if one[0] != other[0] and one[1] != other[1] and result != instead:
            found.append(arithmetic_pair(tokenizer, base, donor, result, instead))
    return found


@torch.no_grad()
def answered(model: Any, tokenizer: Any, task: str) -> list[tuple[int, int]]:
    """The operands whose answer is the model's likeliest token."""
    ids = torch.stack([prompt.ids for prompt in prompts(tokenizer, task)])
    right = model(input_ids=ids[:, :-1], logits_to_keep=1).logits[:, -1].argmax(1) == ids[:, -1]
    return [of for of, known in zip(operands(), right.tolist(), strict=True) if known]
