"""What a task is: a thing that draws sequences of token ids with known answers.

An `Example` is one sequence and a mask over it. A marked token is an *answer*: a reader who has understood everything
that stands before it can predict it. A `Task` draws examples of an exact length from a seeded generator, so a batch
needs no padding and the same seed gives the same data on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from regard.core.errors import wrong

Encode = Callable[[str], Sequence[int]]
"""Text to token ids, without special tokens."""


@dataclass(frozen=True)
class Example:
    """One sequence with its answers.

    ids: (n,) int64, the tokens.
    answers: (n,) bool, True at tokens that are to be predicted from those before them.
    """

    ids: Tensor
    answers: Tensor


@runtime_checkable
class Task(Protocol):
    """Draws examples; any object with a `sample` of this signature is a task."""

    def sample(self, generator: Generator, length: int) -> Example:
        """One example of exactly `length` tokens."""
        ...


def batch(task: Task, generator: Generator, size: int, length: int) -> tuple[Tensor, Tensor]:
    """`size` examples of one length, stacked: ids (size, length) and answers (size, length)."""
    examples = [task.sample(generator, length) for _ in range(size)]
    return torch.stack([e.ids for e in examples]), torch.stack([e.answers for e in examples])


def plain_encoder(tokenizer: Any) -> Encode:
    """The `Encode` of a Hugging Face tokenizer: no special tokens; texts that come again are looked up."""

    @lru_cache(maxsize=4096)
    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    return encode


def word_ids(tokenizer: Any, letters: int = 3) -> tuple[int, ...]:
    """Ids of the tokens that are a space and a whole lower-case word of at least `letters` letters, in order.

    They make readable keys and values: `Recall(word_ids(tokenizer), joint=…)` decodes to lines such as " colour =
    begin".
    """
    texts = ((i, tokenizer.decode([i])) for i in range(len(tokenizer)))
    return tuple(i for i, text in texts if _is_word(text, letters))


def draw(generator: Generator, below: int) -> int:
    """One integer from [0, below)."""
    return int(torch.randint(below, (), generator=generator))


def pick(generator: Generator, options: Sequence[Any]) -> Any:
    """One of the options, each as likely."""
    return options[draw(generator, len(options))]


def choose(generator: Generator, options: Sequence[Any], count: int) -> list[Any]:
    """`count` different options in random order."""
    order = torch.randperm(len(options), generator=generator)[:count]
    return [options[i] for i in order.tolist()]


def symbol_tensor(symbols: Sequence[int], at_least: int, task: str) -> Tensor:
    """The symbols as int64, refused if there are too few of them for the task."""
    if len(symbols) < at_least:
        raise wrong(f"{task}: symbols", f"{len(symbols)} ids", f"at least {at_least}, or a shorter length")
    return torch.tensor(symbols, dtype=torch.int64)


def check_length(length: int, at_least: int, task: str) -> None:
    """Refuses a length that cannot hold one example."""
    if length < at_least:
        raise wrong(f"{task}: length", f"{length} tokens", f"at least {at_least}, to hold one example")


def _is_word(text: str, letters: int) -> bool:
    word = text[1:]
    return text[:1] == " " and len(word) >= letters and word.isascii() and word.isalpha() and word.islower()


__all__ = ["Encode", "Example", "Task", "batch", "plain_encoder", "word_ids"]
