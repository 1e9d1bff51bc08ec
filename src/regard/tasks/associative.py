"""Multi-query associative recall: key–value pairs, then their keys again at growing distances."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator

from regard.core.errors import wrong
from regard.tasks.example import Example, check_length


@dataclass(frozen=True)
class AssociativeRecall:
    """Pairs ``k_1 v_1 … k_p v_p``, then every key once more somewhere, each followed by its value: the answers.

    The distance from the end of the pairs to a key's return is drawn from a power law, as in text; between the returns
    stand random ids. Keys and values have ids of their own, so a value is never a key.

    pairs: p. vocabulary: of keys and values together, half each, at least 2 p.
    power: of the law, below 1: the smaller, the nearer the returns are.

    Paper: Arora et al. (Zoology), arXiv 2312.04927.
    """

    pairs: int = 8
    vocabulary: int = 64
    power: float = 0.01

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise wrong("AssociativeRecall: pairs", str(self.pairs), "at least 1")
        if self.vocabulary < 2 * self.pairs or self.vocabulary % 2:
            raise wrong("AssociativeRecall: vocabulary", str(self.vocabulary), f"even and at least {2 * self.pairs}")
        if not self.power < 1:
            raise wrong("AssociativeRecall: power", str(self.power), "below 1")

    @property
    def chance(self) -> float:
        """What guessing gives: one of the values."""
        return 2 / self.vocabulary

    def sample(self, generator: Generator, length: int) -> Example:
        """One sequence of ``length`` tokens."""
        check_length(length, 4 * self.pairs, "AssociativeRecall")
        half, slots = self.vocabulary // 2, (length - 2 * self.pairs) // 2
        keys = torch.randperm(half, generator=generator)[: self.pairs]
        values = half + torch.randint(half, (self.pairs,), generator=generator)
        ids = torch.randint(self.vocabulary, (length,), generator=generator)
        ids[: 2 * self.pairs] = torch.stack([keys, values], dim=1).flatten()
        law = self.power * torch.arange(1, slots + 1, dtype=torch.float64) ** (self.power - 1)
        places = 2 * self.pairs + 2 * torch.multinomial(law, self.pairs, generator=generator)
        ids[places], ids[places + 1] = keys, values
        answers = torch.zeros(length, dtype=torch.bool)
        answers[places + 1] = True
        return Example(ids, answers)
