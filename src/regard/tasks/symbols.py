"""Tasks on random ids, with no language in them: copying, induction, key–value recall.

Nothing but the sequence itself tells the answer, so a model solves them by attention alone. Any model can be given
them: they need a set of ids, not a tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from regard.core.errors import wrong
from regard.tasks.example import Example, check_length, draw, symbol_tensor


@dataclass(frozen=True)
class Copy:
    """A block of random ids, repeated to the end; every token after the first block is an answer.

    symbols: the ids that blocks are drawn from (with replacement).
    block: shortest and longest block in tokens; None for half of the sequence, so that it is repeated once.
    bos: id that begins the sequence; None for none.
    """

    symbols: Sequence[int]
    block: tuple[int, int] | None = None
    bos: int | None = None

    def sample(self, generator: Generator, length: int) -> Example:
        """A block of random length, repeated until `length` tokens are full."""
        head = _head(self.bos)
        size = self._size(generator, length - len(head))
        symbols = symbol_tensor(self.symbols, 2, "Copy")
        block = symbols[torch.randint(len(symbols), (size,), generator=generator)]
        body = block.repeat(-(-(length - len(head)) // size))[: length - len(head)]
        return Example(torch.cat([head, body]), torch.arange(length) >= len(head) + size)

    def _size(self, generator: Generator, room: int) -> int:
        check_length(room, 2, "Copy")
        if self.block is None:
            return room // 2
        low, high = self.block
        if not 1 <= low <= high:
            raise wrong("Copy: block", f"{self.block}", "(shortest, longest) with 1 <= shortest <= longest")
        return min(low + draw(generator, high - low + 1), room - 1)


@dataclass(frozen=True)
class Induction:
    """Random ids … A B … A: the answer, the last token, is the B that followed the only other A.

    symbols: the ids to draw from; `bos` as in `Copy`.
    """

    symbols: Sequence[int]
    bos: int | None = None

    def sample(self, generator: Generator, length: int) -> Example:
        """One sequence whose last token is the answer."""
        head = _head(self.bos)
        check_length(length, len(head) + 4, "Induction")
        symbols = symbol_tensor(self.symbols, 3, "Induction")
        asked, *rest = torch.randperm(len(symbols), generator=generator).tolist()
        ids = symbols[torch.tensor(rest)][torch.randint(len(rest), (length,), generator=generator)]
        first = len(head) + draw(generator, length - len(head) - 3)
        ids[: len(head)] = head
        ids[first] = ids[-2] = symbols[asked]
        ids[-1] = ids[first + 1]
        return Example(ids, torch.arange(length) == length - 1)


@dataclass(frozen=True)
class Recall:
    """Key–value recall: pairs scattered among filler, then some of the keys again, whose values are the answers.

    A pair is written `key joint value end`; keys are all different, and filler is never a key. Pairs that are not
    asked for are distractors. Queries repeat a pair, its value marked as an answer.

    symbols: ids for keys, values and filler.
    queries: how many keys are asked for, at the end, all different.
    filler: share of the tokens before the queries that is filler, from 0 to 1; the rest is pairs.
    joint, end: ids between key and value, and after the value, as for " colour = begin\\n".
    bos: id that begins the sequence; None for none.
    """

    symbols: Sequence[int]
    queries: int = 1
    filler: float = 0.5
    joint: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    bos: int | None = None

    def sample(self, generator: Generator, length: int) -> Example:
        """One example: `length` tokens, the last `queries` pairs being the questions."""
        head = _head(self.bos)
        line = 2 + len(self.joint) + len(self.end)
        room = length - len(head) - self.queries * line
        pairs = self._pairs(room, line, length)
        symbols = symbol_tensor(self.symbols, pairs + 2, "Recall")
        order = symbols[torch.randperm(len(symbols), generator=generator)]
        keys, others = order[:pairs], order[pairs:]
        values = _some(generator, others, pairs)
        lines = self._lines(keys, values)
        context = _scatter(generator, lines, _some(generator, others, room - pairs * line))
        asked = lines[torch.randperm(pairs, generator=generator)[: self.queries]]
        ids = torch.cat([head, context, asked.flatten()])
        return Example(ids, self._answers(length, line))

    def _pairs(self, room: int, line: int, length: int) -> int:
        if not 0 <= self.filler <= 1:
            raise wrong("Recall: filler", f"{self.filler}", "a share from 0 to 1")
        check_length(length, length - room + self.queries * line, "Recall")
        return min(max(round(room * (1 - self.filler)) // line, self.queries), room // line)

    def _lines(self, keys: Tensor, values: Tensor) -> Tensor:  # (pairs, line)
        joint = torch.tensor(self.joint, dtype=torch.int64).expand(len(keys), -1)
        end = torch.tensor(self.end, dtype=torch.int64).expand(len(keys), -1)
        return torch.cat([keys[:, None], joint, values[:, None], end], dim=1)

    def _answers(self, length: int, line: int) -> Tensor:
        answers = torch.zeros(length, dtype=torch.bool)
        first = length - self.queries * line + 1 + len(self.joint)
        answers[first::line] = True
        return answers


def _head(bos: int | None) -> Tensor:
    return torch.tensor([] if bos is None else [bos], dtype=torch.int64)


def _some(generator: Generator, symbols: Tensor, count: int) -> Tensor:
    return symbols[torch.randint(len(symbols), (count,), generator=generator)]


def _scatter(generator: Generator, lines: Tensor, filler: Tensor) -> Tensor:
    """The lines, each in one piece, in order, at random places among the filler tokens."""
    units = len(lines) + len(filler)
    is_line = torch.zeros(units, dtype=torch.bool)
    is_line[torch.randperm(units, generator=generator)[: len(lines)]] = True
    sizes = torch.where(is_line, lines.shape[1], 1)
    from_line = is_line.repeat_interleave(sizes)
    context = torch.empty(int(sizes.sum()), dtype=torch.int64)
    context[from_line], context[~from_line] = lines.flatten(), filler
    return context
