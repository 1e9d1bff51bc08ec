"""Paragraphs of keys and values, read with a question."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.networks.bidaf import BiDAF
from regard.train.fit import Recipe, fit

LETTERS, VALUES, RECORDS, MOST = 6, 20, 6, 3
WORDS = LETTERS + VALUES + 1
Drawn = Callable[[int, Generator], tuple[Tensor, Tensor, Tensor]]
"""Draws so many contexts, questions and ends of answers."""


def paragraphs(count: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Contexts of records, each two letters and one to three values, padded; two letters asked for; the answer's ends.

    All pairs of letters of a context differ, but letters come again, so that one letter does not tell the record.
    """
    rows, questions, ends = [], [], []
    for _ in range(count):
        pairs = torch.randperm(LETTERS**2, generator=generator)[:RECORDS]
        sizes = torch.randint(1, MOST + 1, (RECORDS,), generator=generator).tolist()
        chosen = int(torch.randint(RECORDS, (1,), generator=generator))
        row = []
        for place, (pair, size) in enumerate(zip(pairs.tolist(), sizes, strict=True)):
            row += [pair // LETTERS, pair % LETTERS]
            if place == chosen:
                questions.append(row[-2:])
                ends.append([len(row), len(row) + size - 1])
            row += (LETTERS + torch.randint(VALUES, (size,), generator=generator)).tolist()
        rows.append(row + [WORDS - 1] * (RECORDS * (2 + MOST) - len(row)))
    return torch.tensor(rows), torch.tensor(questions), torch.tensor(ends)


@measured(toward=(True, False), seed=range(2), steps=[300])
def answered(toward: bool, seed: int, steps: int) -> dict[str, float]:
    """The share of unseen questions whose first and last word are both right."""
    return read_right(paragraphs, BiDAF(WORDS, 64, toward, seed=seed), Recipe(steps, 5e-3, seed=seed, decay=0.0))


def read_right(drawn: Drawn, model: nn.Module, recipe: Recipe) -> dict[str, float]:
    """The share of 400 unseen paragraphs in which a reader that has learned finds the first and the last word."""

    def loss(model: nn.Module, generator: Generator) -> Tensor:
        context, question, ends = drawn(32, generator)
        return F.cross_entropy(model(context, question).flatten(0, 1), ends.flatten())

    model = fit(model, loss, recipe)
    context, question, ends = drawn(400, Generator().manual_seed(99))
    with torch.no_grad():
        return {"exact": (model(context, question).argmax(-1) == ends).all(1).double().mean().item()}


KEYS, MARKS, ENTRIES, PARTS = 40, 10, 4, 3
"""Of the paragraphs that are compared with a list: keys, marks of keys, records, and pairs of a record."""
SYMBOLS, LISTED = KEYS + MARKS + 1, ENTRIES * PARTS


def compared(count: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Contexts of records of three pairs of a key and a mark, a list of all keys and their marks, and the ends of the
    record that agrees with the list; of each other record's pairs one does not.

    A single vector of the whole list is too little to tell which of 400 pairs it has, and agreement of a record is that
    of all its pairs: each key must find its own mark in the list.
    """
    keys = torch.rand(count, KEYS, generator=generator).argsort(1)[:, :LISTED]
    marks = torch.randint(MARKS, (count, LISTED), generator=generator)
    other = (marks + torch.randint(1, MARKS, marks.shape, generator=generator)) % MARKS
    right = torch.randint(ENTRIES, (count,), generator=generator)
    wrong = torch.randint(PARTS, (count, ENTRIES), generator=generator)
    differs = F.one_hot(wrong, PARTS).bool() & (torch.arange(ENTRIES) != right[:, None])[..., None]
    shown = torch.where(differs.flatten(1), other, marks) + KEYS
    pairs = torch.stack([keys, shown], 2).unflatten(1, (ENTRIES, PARTS)).flatten(2)
    context = F.pad(pairs, (1, 0), value=SYMBOLS - 1).flatten(1)
    order = torch.rand(count, LISTED, generator=generator).argsort(1)
    question = torch.stack([keys.gather(1, order), marks.gather(1, order) + KEYS], 2).flatten(1)
    start = right * (2 * PARTS + 1) + 1
    return context, question, torch.stack([start, start + 2 * PARTS - 1], 1)


@measured(toward=(True, False), seed=range(3), steps=[4000])
def matched(toward: bool, seed: int, steps: int) -> dict[str, float]:
    """The share of unseen paragraphs whose record that agrees with the list is found, first and last word."""
    return read_right(compared, BiDAF(SYMBOLS, 64, toward, seed=seed), Recipe(steps, 3e-3, seed=seed, decay=0.0))


def finds_the_answers(found: Figures) -> Finding:
    """In every seed."""
    exact = found("exact", toward=True)
    return Finding.of(f"answers found exactly {listed(exact, '.1%')}", min(exact) > 0.95)


def needs_the_question(found: Figures) -> Finding:
    """In every seed."""
    whole, without = (found("exact", toward=toward) for toward in (True, False))
    figure = f"answers found {listed(whole, '.1%')}, without context-to-question attention {listed(without, '.1%')}"
    return Finding.of(figure, min(a - b for a, b in zip(whole, without, strict=True)) >= 0.2)
