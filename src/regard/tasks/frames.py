"""Tokens that are spoken: each is a few noisy frames, and neighbours differ."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from regard.core.errors import wrong
from regard.tasks.translation import Pairs, rows


@dataclass(frozen=True)
class Frames:
    """Each token of a sequence gives one to ``most`` frames, each the token itself or, now and then, another one.

    The target is the tokens and one that ends them. Tokens stand for the frames that they gave: links are the first.

    Args:
        tokens: vocabulary. most: frames of a token. noise: the share of frames that are another token.
    """

    tokens: int = 12
    most: int = 4
    noise: float = 0.1

    def __post_init__(self) -> None:
        if self.tokens < 2 or self.most < 1 or not 0 <= self.noise < 1:
            raise wrong("tokens, most, noise", f"{self.tokens}, {self.most}, {self.noise}", "2, 1 at least, a share")

    @property
    def source(self) -> int:
        """The vocabulary of frames: tokens and padding."""
        return self.tokens + 1

    @property
    def target(self) -> int:
        """That of the target: tokens, the end, and padding."""
        return self.tokens + 2

    def batch(self, count: int, generator: Generator, least: int = 4, length: int = 8) -> Pairs:
        """Random sequences of ``least`` to ``length`` tokens and their frames."""
        spoken, told, links = [], [], []
        for _ in range(count):
            size = int(torch.randint(least, length + 1, (1,), generator=generator))
            steps = torch.randint(1, self.tokens, (size,), generator=generator).cumsum(0)
            said = ((steps + torch.randint(self.tokens, (1,), generator=generator)) % self.tokens).tolist()
            counts = torch.randint(1, self.most + 1, (size,), generator=generator).tolist()
            frames = [token for token, many in zip(said, counts, strict=True) for _ in range(many)]
            noisy = (torch.rand(len(frames), generator=generator) < self.noise).tolist()
            others = torch.randint(self.tokens, (len(frames),), generator=generator).tolist()
            starts = [sum(counts[:place]) for place in range(size)]
            spoken.append(
                [other if wrong else frame for frame, other, wrong in zip(frames, others, noisy, strict=True)]
            )
            told.append([*said, self.tokens])
            links.append([*starts, -1])
        source, lengths = rows(spoken, self.tokens)
        target, real = rows(told, self.tokens + 1)
        where, _ = rows(links, -1)
        return Pairs(source, lengths, target, where, torch.arange(target.shape[1]) < real[:, None])


def errors(told: Tensor, wanted: Tensor, end: int) -> float:
    """Edits that make what is told what is wanted, both up to their end token, over the tokens that are wanted."""
    edits = tokens = 0
    for ours, theirs in zip(told.tolist(), wanted.tolist(), strict=True):
        ours, theirs = (row[: row.index(end)] if end in row else row for row in (ours, theirs))
        edits += distance(ours, theirs)
        tokens += len(theirs)
    return edits / tokens


def distance(a: list[int], b: list[int]) -> int:
    """Levenshtein's distance."""
    last = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (x != y)))
        last = row
    return last[-1]
