"""Indirect objects and coloured objects in plain English, as pairs of texts and as prompts."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch

from regard.analysis.base import Prompt
from regard.analysis.sweep import LogitDifference, Pair
from regard.tasks.lexicon import COLOURS, NAMES, OBJECTS, PLACES

Drawn = tuple[str, str, str, str]
"""A text, the same with another answer, and both answers."""


def indirect_object(draw: Random) -> Drawn:
    """Two names, one of which gives; the giver is exchanged."""
    first, second = draw.sample(NAMES, 2)
    text = f"When {first} and {second} went to the {draw.choice(PLACES)}, {{}} gave a {draw.choice(OBJECTS)} to"
    return text.format(second), text.format(first), first, second


def coloured_objects(draw: Random) -> Drawn:
    """Three coloured things, one of which is asked for; another one is asked for."""
    things, colours = draw.sample(OBJECTS, 3), draw.sample(COLOURS, 3)
    listed = ", ".join(f"a {colour} {thing}" for colour, thing in zip(colours, things, strict=True))
    one, other = draw.sample(range(3), 2)
    text = f"On the table there is {listed}. What colour is the {{}}? It is"
    return text.format(things[one]), text.format(things[other]), colours[one], colours[other]


TASKS: dict[str, Callable[[Random], Drawn]] = {"indirect object": indirect_object, "coloured objects": coloured_objects}


def pairs(tokenizer: Any, task: str, count: int, seed: int) -> list[Pair]:
    """Pairs of texts of as many tokens, measured by the difference of the logits of their answers' first tokens."""

    def ids(text: str, special: bool = True) -> list[int]:
        return tokenizer(text, add_special_tokens=special).input_ids

    draw, found = Random(seed), []
    while len(found) < count:
        *texts, right, wrong = TASKS[task](draw)
        base, donor = (ids(text) for text in texts)
        answers = [ids(f" {word}", False)[0] for word in (right, wrong)]
        if len(base) == len(donor) and answers[0] != answers[1]:
            found.append(Pair(torch.tensor(base), torch.tensor(donor), LogitDifference(*answers)))
    return found


def prompts(tokenizer: Any, task: str, count: int, seed: int) -> list[Prompt]:
    """Texts with their answers' first tokens behind them, all of the length of the first."""
    draw, found = Random(seed), []
    while len(found) < count:
        text, _, right, _ = TASKS[task](draw)
        ids = tokenizer(text).input_ids
        first = tokenizer(f" {right}", add_special_tokens=False).input_ids[0]
        if not found or len(ids) + 1 == len(found[0].ids):
            found.append(Prompt(torch.tensor([*ids, first]), answer=len(ids)))
    return found
