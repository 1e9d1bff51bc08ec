"""Key–value lookup in SmolLM2: ten lines of a key and a number, then a key; the middle is recalled worst."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from regard.core.edit import Edit
from regard.experiments.bootstrap import bootstrap
from regard.hosts.small import load
from regard.hosts.steer import steer

PAIRS, LETTERS, DIGITS = 10, 6, 4
LINE = 11
"""Tokens of a line, the same in all, so that every pair stands in the same place."""
DEPTHS = (0, 2, 5, 7, 9)
"""Which pairs are asked for: the first, at a quarter, in the middle, at three quarters, the last."""
HEADER = "Here is a list of keys and their values.\n"
BEFORE = 11
"""Tokens of the header."""
CONTEXT = BEFORE + PAIRS * LINE
SPANS = [(BEFORE + LINE * pair, BEFORE + LINE * (pair + 1)) for pair in range(PAIRS)]
Made = Callable[[int], Edit]
"""An edit for the lookups at one depth."""


@dataclass(frozen=True)
class Lookups:
    """Contexts, and in each the lookups at `DEPTHS`.

    Args:
        contexts: ``(c, CONTEXT)`` token ids. asked: ``(c, depths, n)``, the key and its number after the context.
    """

    contexts: Tensor
    asked: Tensor


@cache
def smollm2() -> tuple[Any, Any]:
    """The model and its tokenizer."""
    return load("smollm2")


def drawn(contexts: int, seed: int) -> Lookups:
    """So many contexts."""
    _, tokenizer = smollm2()
    source, lines, asked = random.Random(seed), [], []
    for _ in range(contexts):
        pairs = [line(source, tokenizer) for _ in range(PAIRS)]
        lines.append(ids(tokenizer, HEADER + "".join(f"{key}: {value}\n" for key, value in pairs)))
        asked.append([ids(tokenizer, f"{pairs[depth][0]}: {pairs[depth][1]}") for depth in DEPTHS])
    return Lookups(torch.tensor(lines), torch.tensor(asked))


def line(source: random.Random, tokenizer: Any) -> tuple[str, str]:
    """A key and a number whose line has `LINE` tokens."""
    while True:
        key = "".join(source.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(LETTERS))
        value = "".join(source.choice("0123456789") for _ in range(DIGITS))
        if len(ids(tokenizer, f"{key}: {value}\n")) == LINE:
            return key, value


def ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text, none added."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def looked_up(lookups: Lookups, *edits: Edit | Made) -> tuple[Tensor, Tensor]:
    """``(mean log-probability of a digit (c, depths), whether all are the likeliest (c, depths))`` under some edits.

    Contexts are read once for all depths if no edit acts on them, or all depths have the same edits.
    """
    model, _ = smollm2()
    made = [[edit if isinstance(edit, Edit) else edit(depth) for edit in edits] for depth in DEPTHS]
    once = all(
        other.resumable and (isinstance(edit, Edit) or late(other)) for edit, other in zip(edits, made[0], strict=True)
    )
    logs, right, read = [], [], None
    for depth, at in enumerate(made):
        asked = lookups.asked[:, depth]
        with steer(model, *at):
            if read is None or not once:
                read = read_contexts(lookups)
            out = ask(copy.deepcopy(read) if once else read, asked)
        digits = asked[:, -DIGITS:]
        logs.append(out.gather(2, digits[..., None])[..., 0].mean(1))
        right.append((out.argmax(-1) == digits).all(1))
    return torch.stack(logs, 1), torch.stack(right, 1)


@torch.no_grad()
def read_contexts(lookups: Lookups) -> DynamicCache:
    """What the model remembers of the contexts."""
    model, _ = smollm2()
    cache = DynamicCache(config=model.config)
    model(input_ids=lookups.contexts, past_key_values=cache, logits_to_keep=1)
    return cache


@torch.no_grad()
def ask(read: DynamicCache, asked: Tensor) -> Tensor:
    """Log-probabilities ``(c, DIGITS, vocabulary)`` of the digits of ``asked (c, n)`` after contexts that were read.

    They go on in ``read`` itself.
    """
    model, _ = smollm2()
    logits = model(input_ids=asked[:, :-1], past_key_values=read).logits
    return logits[:, -DIGITS:].float().log_softmax(-1)


def late(edit: Edit) -> bool:
    """Whether an edit leaves the rows of the context alone."""
    rows = edit.where.rows
    return isinstance(rows, slice) and (rows.start or 0) >= CONTEXT


def gain(plain: Tensor, edited: Tensor) -> tuple[float, float, float]:
    """``(mean, lower, upper)`` of the gain over contexts ``(c, …)``, a paired bootstrap's 95% interval."""
    each = (edited - plain).flatten(1).mean(1)
    low, high = bootstrap(each)
    return each.mean().item(), low.item(), high.item()


def random_heads(count: int, seed: int, layers: Sequence[int] = range(30), heads: int = 9) -> dict[int, list[int]]:
    """So many heads, drawn from all."""
    every = [(layer, head) for layer in layers for head in range(heads)]
    found: dict[int, list[int]] = {}
    for layer, head in random.Random(seed).sample(every, count):
        found.setdefault(layer, []).append(head)
    return found
