"""Held-out accuracy on scikit-learn's digits: 1,200 images to train on, 597 to test."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.errors import wrong
from regard.train.fit import Recipe, fit


def load() -> tuple[Tensor, Tensor]:
    """All images ``(1797, 1, 8, 8)`` from 0 to 1, and their labels.

    Raises:
        ModuleNotFoundError: scikit-learn, which brings them, is not installed.
    """
    if find_spec("sklearn") is None:
        raise wrong("digits", "no scikit-learn", "pip install scikit-learn", ModuleNotFoundError)
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images).float().view(-1, 1, 8, 8) / 16, torch.tensor(labels)


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(images to train on, their labels, images to test on, theirs)``, split by the seed."""
    images, labels = load()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return images[order[:1200]], labels[order[:1200]], images[order[1200:]], labels[order[1200:]]


def accuracy(model: Any, seed: int, steps: int = 300, size: int = 32) -> float:
    """Share of the test images told apart after so many steps."""
    images, labels, unseen, answers = digits(seed)

    def loss(ready, generator):
        rows = torch.randint(len(labels), (size,), generator=generator)
        return F.cross_entropy(ready(images[rows]), labels[rows])

    fit(model, loss, Recipe(steps, seed=seed))
    with torch.no_grad():
        return (model(unseen).argmax(1) == answers).float().mean().item()
