"""Held-out accuracy on scikit-learn's digits: 1,200 images to train on, 597 to test."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from regard.train.fit import Recipe, fit


def digits(seed):
    """``(images to train on, their labels, images to test on, theirs)``, split by the seed."""
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images).float().view(-1, 1, 8, 8) / 16, torch.tensor(labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return images[order[:1200]], labels[order[:1200]], images[order[1200:]], labels[order[1200:]]


def accuracy(model, seed, steps=300, size=32):
    """Share of the test images told apart after so many steps."""
    images, labels, unseen, answers = digits(seed)

    def loss(ready, generator):
        rows = torch.randint(len(labels), (size,), generator=generator)
        return F.cross_entropy(ready(images[rows]), labels[rows])

    fit(model, loss, Recipe(steps, seed=seed))
    with torch.no_grad():
        return (model(unseen).argmax(1) == answers).float().mean().item()
