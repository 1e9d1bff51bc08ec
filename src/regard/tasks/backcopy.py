"""Bigrams, and behind a few tokens the token before them once more: a head that has something to do now and then."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from regard.core.errors import wrong
from regard.tasks.example import Example, check_length


@dataclass(frozen=True, eq=False)
class BigramBackcopy:
    """A mark, a token that is no trigger, and then each token by the one before it, or copied behind a trigger.

        P(x_{t+1} = j | x_t, x_{t−1}) = 1[j = x_{t−1}]   where x_t is a trigger
                                        table[x_t, j]    else

    The token behind the mark is any that is no trigger, each as likely, so that no trigger follows another and what is
    copied is never a trigger or the mark. Copies are the answers. Without triggers these are bigrams and nothing else.

    Shapes: `batch` gives ids and answers ``(size, length)``, `law` the probabilities of each next token
    ``(size, length − 1, v + 1)``.

    Args:
        table: ``(v, v)``, the probabilities of the token behind each. triggers: ids below v, not all of them.

    Raises:
        ValueError: a table that is not square, or whose rows are no probabilities; triggers that are not in it, or all.

    Paper: Guo et al., arXiv 2410.13835, the Bigram-Backcopy task, whose table and triggers, the three most frequent,
    are those of Shakespeare's characters; there the token behind the mark is drawn by its frequency.
    """

    table: Tensor
    triggers: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        shape = tuple(self.table.shape)
        if len(shape) != 2 or shape[0] != shape[1]:
            raise wrong("BigramBackcopy: table", str(shape), "(tokens, tokens)")
        if not (self.table.min() >= 0 and bool(((self.table.sum(1) - 1).abs() < 1e-4).all())):
            raise wrong("BigramBackcopy: table", "other numbers", "probabilities, each row's sum 1")
        if not set(self.triggers) < set(range(len(self.table))):
            raise wrong("BigramBackcopy: triggers", str(self.triggers), f"some of the {len(self.table)} ids, not all")

    @property
    def mark(self) -> int:
        """The id that begins every sequence, v."""
        return len(self.table)

    @property
    def vocabulary(self) -> int:
        """How many ids there are, the mark too."""
        return len(self.table) + 1

    def sample(self, generator: Generator, length: int) -> Example:
        """One sequence of ``length`` tokens."""
        ids, answers = self.batch(generator, 1, length)
        return Example(ids[0], answers[0])

    def batch(self, generator: Generator, size: int, length: int) -> tuple[Tensor, Tensor]:
        """So many sequences at once: ids int64 and answers bool, ``(size, length)``."""
        check_length(length, 3, "BigramBackcopy")
        drawn = torch.rand(length, size, 1, generator=generator, dtype=torch.float64)
        sums = self._behind().double().cumsum(1)
        sums = sums / sums[:, -1:]
        triggers = self._is_trigger()
        ids = torch.full((size, length), self.mark)
        for place in range(1, length):
            last = ids[:, place - 1]
            by_table = (sums[last] <= drawn[place]).sum(1)
            ids[:, place] = torch.where(triggers[last], ids[:, max(place - 2, 0)], by_table)
        return ids, F.pad(triggers[ids[:, :-1]], (1, 0))

    def law(self, ids: Tensor) -> Tensor:
        """The probabilities of each token behind the first, from those before it."""
        last = ids[:, :-1]
        copied = F.one_hot(F.pad(ids, (1, 0))[:, : last.shape[1]], self.vocabulary).to(self.table.dtype)
        return torch.where(self._is_trigger()[last][..., None], copied, self._behind()[last])

    def _behind(self) -> Tensor:
        """The table with a row for the mark, ``(v + 1, v + 1)``."""
        first = torch.ones(len(self.table), dtype=self.table.dtype)
        first[list(self.triggers)] = 0
        return F.pad(torch.cat([self.table, first[None] / first.sum()]), (0, 1))

    def _is_trigger(self) -> Tensor:
        """``(v + 1,)`` bool."""
        found = torch.zeros(self.vocabulary, dtype=torch.bool)
        found[list(self.triggers)] = True
        return found
