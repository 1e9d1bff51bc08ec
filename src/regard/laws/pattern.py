"""The laws of patterns: whatever is known without looking at entries agrees with the entries.

What examples are ``given``: ``tokens``, how many keys the pattern is for; ``queries``, of another sequence, where it is
for so many of them alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from regard.core.kinds import Sample
from regard.laws.finding import Broken, Unclaimed
from regard.patterns.base import Bounds, Pattern, Region
from regard.patterns.grid import tiles
from regard.patterns.text import parse_pattern

SIDES = ((1, 1), (8, 5), (16, 16), (64, 3))
"""Of blocks of queries and keys."""


class Drawn:
    """A pattern under examination, and all of its entries.

    Args:
        sample: the pattern. device: where its masks are made.
    """

    def __init__(self, sample: Sample, device: str = "cpu") -> None:
        self.pattern: Pattern = sample.thing
        self.device = device
        self.m: int = sample.given["tokens"]
        self.n: int = sample.given.get("queries", self.m)
        self.entries = self.pattern.dense(self.n, self.m)

    @property
    def lengths(self) -> list[int]:
        """Numbers of queries that it takes for its keys."""
        return [self.n] if self.pattern.crossed else [self.n, 1, 5, self.n // 2 + 1]

    def regions(self) -> Iterator[tuple[str, Region, Region]]:
        """Blocks of queries and of keys: runs of several sides, one residue class each, and boxes of a grid."""
        for rows, cols in SIDES:
            queries = Region.runs(torch.arange(self.m - self.n, self.m), rows)
            yield f"{rows} × {cols}", queries, Region.runs(torch.arange(self.m), cols)
        for period in {2, 3, self.pattern.period}:
            queries = Region.classes(torch.arange(self.m - self.n, self.m), 4, period)
            yield f"classes of {period}", queries, Region.classes(torch.arange(self.m), 3, period)
        grid = self.pattern.grid
        if grid is not None and len(grid) > 1 and self.n == self.m:
            for side in (2, 3):
                boxes = tiles(grid, [min(side + axis, size) for axis, size in enumerate(grid)])
                yield f"boxes of {side}", boxes, boxes

    def blocks(self, head: int, queries: Region, keys: Region) -> tuple[Tensor, Tensor]:
        """``(some, all)`` of a head's entries in blocks, from the entries."""
        rows = queries.tokens - (self.m - self.n)
        found = self.entries[head][rows][:, :, keys.tokens].permute(0, 2, 1, 3).flatten(2)
        return found.any(2), found.all(2)


def entries(subject: Drawn) -> str:
    """A mask for each head; fewer queries are the last ones, and some rows are those of the whole."""
    pattern, m, whole = subject.pattern, subject.m, subject.entries
    if whole.shape != (pattern.heads, subject.n, m) or whole.dtype != torch.bool:
        raise Broken(f"{whole.dtype} of shape {tuple(whole.shape)}, want bool of {(pattern.heads, subject.n, m)}")
    if not whole.any() or (whole.all() and m > 1):
        raise Broken(f"all entries are {bool(whole.any())}: no example of a pattern")
    for n in subject.lengths:
        unlike(pattern.dense(n, m), whole[:, subject.n - n :], f"the last {n} queries")
        rows = slice(n // 3, n // 3 + 2)
        unlike(pattern.dense(n, m, rows=rows), whole[:, subject.n - n :][:, rows], f"rows {rows} of {n}")
    for head in range(pattern.heads):
        unlike(pattern.head(head).dense(subject.n, m), whole[head : head + 1], f"head {head} alone")
    return f"{whole.double().mean():.0%} of {pattern.heads} × {subject.n} × {m}"


def bounds(subject: Drawn) -> str:
    """What is said of blocks without looking is true: surely some or all are seen, or possibly."""
    settled = total = 0
    for head in range(subject.pattern.heads):
        pattern = subject.pattern.head(head)
        for name, queries, keys in subject.regions():
            some, every = subject.blocks(head, queries, keys)
            told: Bounds = pattern.bounds(queries, keys, subject.m)
            for what, low, truth, high in (
                ("some", told.some_low, some, told.some_high),
                ("all", told.all_low, every, told.all_high),
            ):
                if (low & ~truth).any():
                    raise Broken(f"{name}: {what} surely seen in a block where it is not")
                if (truth & ~high).any():
                    raise Broken(f"{name}: {what} seen in a block where it cannot be")
            settled += int((told.some_low == told.some_high).sum())
            total += some.numel()
    return f"{settled / total:.0%} of blocks are settled by them"


def cover(subject: Drawn) -> str:
    """The listed blocks are those with a visible entry, and the full ones those with no other."""
    listed = 0
    for name, queries, keys in subject.regions():
        found = subject.pattern.cover_of(queries, keys, subject.n, subject.m)
        rows = len(queries.tokens)
        for head in range(subject.pattern.heads):
            some, full = (torch.zeros(rows, len(keys.tokens), dtype=torch.bool) for _ in range(2))
            for row in range(rows):
                at = slice(int(found.offsets[head * rows + row]), int(found.offsets[head * rows + row + 1]))
                some[row, found.columns[at]], full[row, found.columns[at]] = True, found.full[at]
            want = subject.blocks(head, queries, keys)
            unlike(some, want[0], f"{name}, listed blocks of head {head}")
            unlike(full, want[1], f"{name}, full blocks of head {head}")
        listed += found.blocks
    return f"{listed} blocks"


def pairs(subject: Drawn) -> str:
    """The count of visible pairs, and their share, without the mask."""
    for n in subject.lengths:
        want = int(subject.entries[:, subject.n - n :].sum())
        got, share = subject.pattern.pairs(n, subject.m), subject.pattern.density(n, subject.m)
        if got != want or abs(share - want / (subject.pattern.heads * n * subject.m)) > 1e-9:
            raise Broken(f"{n} queries: {got} pairs, {share:.4f} of all, want {want}")
    return f"{subject.pattern.pairs(subject.n, subject.m)}"


def future(subject: Drawn) -> str:
    """A key that no later query might see is seen by none."""
    if subject.n != subject.m:
        raise Unclaimed("of another sequence")
    keys, forgotten = torch.arange(subject.m), 0
    for i in sorted({0, 3, subject.m // 2, subject.m - 1}):
        later = subject.entries[:, i:].any(1).any(0)
        told = subject.pattern.future(keys, i)
        if (later & ~told).any():
            key = int((later & ~told).nonzero()[0])
            raise Broken(f"key {key} is seen from {i} on, and forgotten")
        forgotten += int((~told).sum())
    return f"{forgotten} keys forgotten"


def flex(subject: Drawn) -> str:
    """The function for FlexAttention has the same entries."""
    if subject.n != subject.m:
        raise Unclaimed("of another sequence")
    mask, m = subject.pattern.flex_mask(subject.m), subject.m
    i, j = torch.arange(m)[:, None], torch.arange(m)
    for head in range(subject.pattern.heads):
        got = mask(torch.tensor(0), torch.tensor(head), i, j).expand(m, m)
        unlike(got, subject.entries[head], f"head {head}")
    return f"{subject.pattern.heads} heads"


def endless(subject: Drawn) -> str:
    """Among more tokens it says the same of the first ones."""
    if not subject.pattern.endless:
        raise Unclaimed("of one length")
    for m in (1, subject.m // 2, subject.m - 1):
        unlike(subject.pattern.dense(m), subject.entries[:, :m, :m], f"the first {m} tokens")
    return "any length"


def text(subject: Drawn) -> str:
    """Read from its own text it is the same."""
    told = str(subject.pattern)
    unlike(parse_pattern(told).dense(subject.n, subject.m), subject.entries, told)
    return told


def unlike(got: Tensor, want: Tensor, where: str) -> None:
    """Broken unless both masks are the same."""
    if got.shape != want.shape:
        raise Broken(f"{where}: shape {tuple(got.shape)}, want {tuple(want.shape)}")
    if not torch.equal(got, want):
        raise Broken(f"{where}: {int((got & ~want).sum())} entries too many, {int((want & ~got).sum())} too few")


LAWS: dict[str, Callable[[Drawn], str]] = {
    law.__name__: law for law in (entries, bounds, cover, pairs, future, flex, endless, text)
}
subject = Drawn


def example(thing: Pattern, tokens: int = 42, queries: int | None = None) -> Sample:
    """A pattern as it is, for so many tokens."""
    return Sample(str(thing), thing, {"tokens": tokens, "queries": tokens if queries is None else queries})
