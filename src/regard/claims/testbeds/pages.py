"""Synthetic pages: two columns of paragraphs, read line by line across both columns."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.networks.lm import IGNORED

SIDE, LINES, TOPICS, WORDS = 48, 12, 12, 4
MASK = TOPICS * WORDS
VOCABULARY = MASK + 1


@dataclass(frozen=True)
class Pages:
    """Words' ``boxes (b, n, 4)``, the ``block (b, n)`` each belongs to, and ``key_mask (b, n)``, True at words."""

    boxes: Tensor
    block: Tensor
    keys: Tensor

    def __getitem__(self, which: Any) -> Pages:
        return Pages(self.boxes[which], self.block[which], self.keys[which])


def page(draw: random.Random) -> list[tuple[list[int], int]]:
    """The words of one page, in the order of their lines: box and block.

    The gutter and the blank lines between the three paragraphs of each column are drawn anew.
    """
    gutter = draw.randint(SIDE // 2 - 6, SIDE // 2 + 6)
    blank = [sorted(draw.sample(range(2, LINES - 2), 2)) for _ in range(2)]
    words = []
    for line in range(LINES):
        for column, (left, right) in enumerate(((0, gutter - 2), (gutter + 2, SIDE - 1))):
            if line in blank[column]:
                continue
            block = 3 * column + sum(line > above for above in blank[column])
            while left + 3 <= right:
                width = min(draw.randint(3, 8), right - left)
                words.append(([left, 4 * line, left + width, 4 * line + 2], block))
                left += width + 2
    return words


def pages(count: int, seed: int) -> Pages:
    """So many pages, padded at the end."""
    draw = random.Random(seed)
    drawn = [page(draw) for _ in range(count)]
    n = max(map(len, drawn))
    boxes, block = torch.zeros(count, n, 4, dtype=torch.int64), torch.full((count, n), -1)
    for i, words in enumerate(drawn):
        boxes[i, : len(words)] = torch.tensor([box for box, _ in words])
        block[i, : len(words)] = torch.tensor([own for _, own in words])
    return Pages(boxes, block, block >= 0)


def written(drawn: Pages, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``(ids, targets)``: every block has a topic, nine words of ten are the topic's; one word of five is masked."""
    topic = torch.randint(TOPICS, (len(drawn.block), 6), generator=generator)
    own = topic.gather(1, drawn.block.clamp(min=0)) * WORDS
    own = own + torch.randint(WORDS, own.shape, generator=generator)
    other = torch.randint(MASK, own.shape, generator=generator)
    words = torch.where(torch.rand(own.shape, generator=generator) < 0.9, own, other)
    masked = (torch.rand(own.shape, generator=generator) < 0.2) & drawn.keys
    return words.masked_fill(masked, MASK), words.masked_fill(~masked, IGNORED)


def in_line(boxes: Tensor) -> Tensor:
    """Boxes ``(i, 0, i, 0)``: the order of the words, and nothing else of the page."""
    order = torch.arange(boxes.shape[1])[None, :, None].expand(boxes.shape[0], -1, 1)
    return order * torch.tensor([1, 0, 1, 0])
