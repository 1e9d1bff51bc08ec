"""Characters of the standard library's source, as a language model of a few layers learns them in a minute."""

import torch

from regard.train.corpus import read_packages
from regard.train.fit import Recipe, fit

VOCABULARY = 128
PACKAGES = ("json", "email", "logging", "unittest", "collections", "importlib", "http")


def characters(held_out):
    """The source of a few packages as int64 codes below 128, others left out."""
    text = "\n".join(read_packages(PACKAGES, held_out))
    codes = torch.tensor(list(text.encode()))
    return codes[codes < VOCABULARY].long()


def windows(codes, count, length, generator):
    """``(count, length)`` pieces from anywhere."""
    starts = torch.randint(len(codes) - length, (count, 1), generator=generator)
    return codes[starts + torch.arange(length)]


def trained(model, seed, steps, length=64, size=16):
    """The model after so many steps on batches of ``size`` windows."""
    codes = characters(False)

    def loss(ready, generator):
        return model.loss(windows(codes, size, length, generator))

    return fit(model, loss, Recipe(steps, seed=seed))


@torch.no_grad()
def held_out_loss(model, length=64, count=512):
    """Nats a character on windows of files that were not trained on, the same for every model."""
    ids = windows(characters(True), count, length, torch.Generator().manual_seed(0))
    return sum(model.loss(part).item() for part in ids.split(64)) / (count // 64)
