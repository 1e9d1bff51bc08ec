"""Samples that several steps learn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch
from torch import Generator

from regard.core.errors import wrong
from regard.core.files import write_whole
from regard.train.objective import Batch

SEEDS = 1_000_003
"""What a recipe's seed is multiplied by where steps are told apart: see `train.fit.Recipe.generator`."""


class Reused:
    """Batches for `train.objective.tune`, each drawn once and given to so many steps after one another.

    So a model that draws its own samples learns from each several times, as PPO and GRPO do: with what
    `train.objectives.preplan_anchor.remembered` keeps of the policy that drew them.

        batches = Reused(lambda drawn: remembered(model, samples(model, drawn)), 4, folder)
        tune(model, PreplanAnchor(), batches, recipe, folder)

    Args:
        draw: gives a batch, drawn by the generator of the first of its steps. times: how many steps learn from it.
        folder: keeps the batches, so that a run goes on that was stopped between two steps of one; None for a run that
            is not resumed.

    Raises:
        ValueError: no times. RuntimeError: a run that goes on with a batch that is nowhere.
    """

    def __init__(self, draw: Callable[[Generator], Batch], times: int, folder: str | Path | None = None) -> None:
        if times < 1:
            raise wrong("times", str(times), "at least 1")
        self.draw, self.times = draw, times
        self.folder = None if folder is None else Path(folder) / "samples"
        self.number, self.held = -1, Batch(torch.zeros(0, 0, dtype=torch.int64))

    def __call__(self, generator: Generator) -> Batch:
        number, place = divmod(generator.initial_seed() % SEEDS, self.times)
        if place == 0:
            self.held = self.draw(generator)
            self.keep(number)
        elif number != self.number:
            self.held = self.kept(number)
        self.number = number
        return self.held

    def keep(self, number: int) -> None:
        """Writes the batch that is held."""
        if self.folder is not None:
            told = {field.name: getattr(self.held, field.name) for field in fields(Batch)}
            write_whole(self.folder / f"{number}.pt", lambda draft: torch.save(told, draft))

    def kept(self, number: int) -> Batch:
        """A batch that a run before wrote."""
        path = None if self.folder is None else self.folder / f"{number}.pt"
        if path is None or not path.exists():
            what = f"a step in the middle of batch {number}, which is not in {self.folder}"
            raise wrong("folder", what, "the folder of the run that goes on", RuntimeError)
        return Batch(**torch.load(path, weights_only=True))
