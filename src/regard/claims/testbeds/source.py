"""Characters of the standard library's source, as a language model of a few layers learns them in a minute."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from regard.train.fit import Recipe, fit
from regard.train.tiny.corpus import read_packages

VOCABULARY = 128
PACKAGES = ("json", "email", "logging", "unittest", "collections", "importlib", "http")
NAMES = ("asyncio", "email", "multiprocessing", "unittest", "xml")
"""Packages to tell apart."""


@cache
def characters(held_out: bool, packages: tuple[str, ...] = PACKAGES) -> Tensor:
    """The source of a few packages as int64 codes below 128, others left out."""
    text = "\n".join(read_packages(packages, held_out))
    codes = torch.tensor(list(text.encode()))
    return codes[codes < VOCABULARY].long()


def windows(codes: Tensor, count: int, length: int, generator: Generator) -> Tensor:
    """``(count, length)`` pieces from anywhere."""
    starts = torch.randint(len(codes) - length, (count, 1), generator=generator)
    return codes[starts + torch.arange(length)]


def trained(model: Any, seed: int, steps: int, length: int = 64, size: int = 16) -> Any:
    """The model after so many steps on batches of ``size`` windows."""
    codes = characters(False)

    def loss(ready, generator):
        return model.loss(windows(codes, size, length, generator))

    return fit(model, loss, Recipe(steps, seed=seed))


@torch.no_grad()
def held_out_loss(model: Any, length: int = 64, count: int = 512) -> float:
    """Nats a character on windows of files that were not trained on, the same for every model."""
    ids = windows(characters(True), count, length, torch.Generator().manual_seed(0))
    return sum(model.loss(part).item() for part in ids.split(64)) / (count // 64)


def package_accuracy(model: Any, seed: int, steps: int, length: int = 64, size: int = 8, count: int = 600) -> float:
    """Share of windows of unseen files whose package, one of five, a trained image model of one row tells.

    The model's channels are characters, so that its patches, 1 × 1, embed them.
    """

    def draw(sources: Sequence[Tensor], count: int, generator: Generator) -> tuple[Tensor, Tensor]:
        ids = torch.cat([windows(source, count, length, generator) for source in sources])
        return F.one_hot(ids, VOCABULARY).float().mT[:, :, None], torch.arange(len(NAMES)).repeat_interleave(count)

    sources, unseen = ([characters(held_out, (name,)) for name in NAMES] for held_out in (False, True))

    def loss(ready, generator):
        texts, labels = draw(sources, size, generator)
        return F.cross_entropy(ready(texts), labels)

    fit(model, loss, Recipe(steps, seed=seed))
    texts, labels = draw(unseen, count, torch.Generator().manual_seed(0))
    with torch.no_grad():
        return (torch.cat([model(part).argmax(1) for part in texts.split(200)]) == labels).float().mean().item()
