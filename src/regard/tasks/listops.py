"""Nested list operations: a long expression, and the digit that it comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator

from regard.core.errors import wrong
from regard.tasks.example import Example, check_length, draw

DIGITS = tuple(range(10))
OPEN = {"MAX": 10, "MIN": 11, "MED": 12, "SM": 13}
CLOSE, EQUALS, PAD = 14, 15, 16
VOCABULARY = 17


@dataclass(frozen=True)
class ListOps:
    """``PAD … [MAX 4 [SM 2 3 9 ] 1 ] = 4``: the digit after the equals sign is the answer.

    MAX, MIN, MED (lower median) and SM (sum modulo 10) of digits and of expressions, nested up to ``depth``; an
    expression is drawn to fill as much of the length as it can, and padding in front fills the rest.

    depth: of the nesting. arguments: most of one list.

    Papers: Nangia and Bowman, arXiv 1804.06028; Tay et al. (Long Range Arena), arXiv 2011.04006.
    """

    depth: int = 4
    arguments: int = 5

    vocabulary = VOCABULARY
    chance = 0.1

    def __post_init__(self) -> None:
        if self.depth < 1 or self.arguments < 2:
            raise wrong("ListOps: depth, arguments", f"{self.depth}, {self.arguments}", "at least 1 and at least 2")

    def sample(self, generator: Generator, length: int) -> Example:
        """One sequence of ``length`` tokens, the answer last."""
        check_length(length, 6, "ListOps")
        expression = self.expression(generator, length - 2, self.depth)
        ids = [PAD] * (length - 2 - len(expression)) + expression + [EQUALS, value(expression)]
        return Example(torch.tensor(ids), torch.arange(length) == length - 1)

    def expression(self, generator: Generator, room: int, depth: int) -> list[int]:
        """A list of at most ``room`` tokens, at least four."""
        tokens = [list(OPEN.values())[draw(generator, len(OPEN))]]
        wanted = 2 + draw(generator, self.arguments - 1)
        for left in range(wanted, 0, -1):
            free = room - len(tokens) - 1 - (left - 1)
            if depth > 1 and free >= 4 and draw(generator, 4):
                tokens += self.expression(generator, max(4, free // left) if left > 1 else free, depth - 1)
            elif free >= 1:
                tokens.append(draw(generator, 10))
        return [*tokens, CLOSE]


def value(expression: Sequence[int]) -> int:
    """What an expression comes to."""
    stack: list[list[int]] = [[]]
    for token in expression:
        if token == CLOSE:
            operation, *numbers = stack.pop()
            stack[-1].append(apply(operation, numbers))
        elif token in DIGITS:
            stack[-1].append(token)
        else:
            stack.append([token])
    return stack[0][0]


def apply(operation: int, numbers: Sequence[int]) -> int:
    """One list operation."""
    if operation == OPEN["MAX"]:
        return max(numbers)
    if operation == OPEN["MIN"]:
        return min(numbers)
    return sum(numbers) % 10 if operation == OPEN["SM"] else sorted(numbers)[(len(numbers) - 1) // 2]
