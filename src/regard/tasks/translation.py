"""A toy translation with known alignments: words by a lexicon, blocks in another order, and words for nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from regard.core.errors import wrong


@dataclass(frozen=True)
class Pairs:
    """Sentences and their translations.

    Args:
        source: ``(b, m)``, padded behind. lengths: ``(b,)`` of them. target: ``(b, n)``. links: ``(b, n)``, the place
            in the source of the word that each token stands for, −1 for none. real: ``(b, n)``, False = padding.
    """

    source: Tensor
    lengths: Tensor
    target: Tensor
    links: Tensor
    real: Tensor


@dataclass(frozen=True)
class Translation:
    """Sentences are blocks of random words; neighbouring blocks change places, and each word is the lexicon's.

    Each block begins with one of as many marks as there are blocks, its number. In the target a block is behind its
    neighbour, and begins with its mark; with ``fillers`` each block ends with a token that stands for nothing.

    Args:
        words: of either language. blocks: of a sentence, even, at most so many. size: words of a block, at most.
        fillers: whether blocks end with one.
    """

    words: int = 20
    blocks: int = 6
    size: int = 3
    fillers: bool = False

    def __post_init__(self) -> None:
        if self.words < 2 or self.blocks < 2 or self.blocks % 2 or self.size < 1:
            raise wrong("words, blocks, size", f"{self.words}, {self.blocks}, {self.size}", "2, 2 and even, 1 at least")

    @property
    def source(self) -> int:
        """The source's vocabulary: words, then marks, then padding."""
        return self.words + self.blocks + 1

    @property
    def target(self) -> int:
        """The target's: words, marks, the filler and padding."""
        return self.words + self.blocks + 2

    def batch(self, count: int, generator: Generator, blocks: int | None = None) -> Pairs:
        """Random sentences and their translations by the lexicon of seed 0, of so many ``blocks`` or any number."""
        lexicon = torch.randperm(self.words, generator=torch.Generator().manual_seed(0))
        sentences, links = [], []
        for _ in range(count):
            most = blocks or 2 * int(torch.randint(1, self.blocks // 2 + 1, (1,), generator=generator))
            sentence, places = [], []
            for block in range(most):
                size = int(torch.randint(1, self.size + 1, (1,), generator=generator))
                start = sum(map(len, sentence))
                words = torch.randint(self.words, (size,), generator=generator).tolist()
                sentence.append([self.words + block % self.blocks, *words])
                places.append(list(range(start, start + size + 1)) + ([-1] if self.fillers else []))
            order = [block ^ 1 for block in range(most)]
            sentences.append([word for block in sentence for word in block])
            links.append([place for block in order for place in places[block]])
        source, lengths = rows(sentences, self.source - 1)
        told, real = rows(links, -1)
        words = source.gather(1, told.clamp(min=0))
        target = torch.where(words < self.words, lexicon[words.clamp(max=self.words - 1)], words)
        target = torch.where(told == -1, self.target - 2, target)
        seen = torch.arange(told.shape[1]) < real[:, None]
        return Pairs(source, lengths, torch.where(seen, target, self.target - 1), told, seen)


def rows(lists: list[list[int]], padding: int) -> tuple[Tensor, Tensor]:
    """Lists in one matrix, and their lengths."""
    lengths = torch.tensor([len(row) for row in lists])
    most = int(lengths.max())
    return torch.tensor([row + [padding] * (most - len(row)) for row in lists]), lengths
