"""States that can only be tracked step by step: products of permutations, by a recurrence and by attention."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.networks.frames import FrameActions
from regard.networks.lm import LM, Config, fitted
from regard.train.fit import Recipe, fit

LENGTH, LONGER = 32, 128
LENGTHS = (8, 16, 32, 64, 128)


@cache
def table(of: int) -> Tensor:
    """``(of!, of!)``: the number of the product of two permutations of so many."""
    every = list(itertools.permutations(range(of)))
    number = {each: i for i, each in enumerate(every)}
    return torch.tensor([[number[tuple(a[x] for x in b)] for b in every] for a in every])


def drawn(count: int, length: int, generator: Generator, of: int = 5) -> tuple[Tensor, Tensor]:
    """Words of permutations, and the products of all up to each, both ``(count, length)``."""
    words = torch.randint(math.factorial(of), (count, length), generator=generator)
    products, state = [], torch.zeros(count, dtype=torch.int64)
    for letter in words.unbind(1):
        state = table(of)[state, letter]
        products.append(state)
    return words, torch.stack(products, 1)


def frames_of(of: int, seed: int) -> FrameActions:
    """A network whose frames are one permutation of so many each."""
    return FrameActions(math.factorial(of), 1, math.factorial(of), 128, 1, 2, 4, 128, seed=seed)


def logits(model: Any, words: Tensor) -> Tensor:
    """``(count, length, of!)`` of a network of frames of one token, or of a language model."""
    return model(words[..., None]) if isinstance(model, FrameActions) else model(words)


def trained(model: Any, length: int, steps: int, seed: int, of: int) -> Any:
    """The model after so many batches of 64 words."""

    def loss(ready: nn.Module, generator: Generator) -> Tensor:
        words, products = drawn(64, length, generator, of)
        return F.cross_entropy(logits(ready, words).flatten(0, 1), products.flatten())

    return fit(model, loss, Recipe(steps, 2e-3, seed=seed))


def judged(kind: str, seed: int, steps: int, of: int) -> dict[str, float]:
    """The share of right products of 32 letters, as trained, and of the last of 128."""
    frames = frames_of(of, seed)
    plain = fitted(Config(math.factorial(of), 128, "softmax*4", heads=4), frames.parameter_count)
    model = trained(frames if kind == "frames" else LM(plain, seed), LENGTH, steps, seed, of)
    found = {}
    with torch.no_grad():
        for name, length in (("short", LENGTH), ("long", LONGER)):
            given, products = drawn(256, length, Generator().manual_seed(7_919), of)
            found[name] = (logits(model, given).argmax(-1) == products)[:, -1].float().mean().item()
    return found


@measured(kind=("frames", "transformer"), seed=range(2), steps=[3000])
def words(kind: str, seed: int, steps: int) -> dict[str, float]:
    """Of permutations of five."""
    return judged(kind, seed, steps, 5)


@measured(kind=("frames", "transformer"), seed=range(3), steps=[1500])
def small_words(kind: str, seed: int, steps: int) -> dict[str, float]:
    """Of permutations of three."""
    return judged(kind, seed, steps, 3)


def follows(found: Figures) -> Finding:
    """95% at 128 letters, where the transformer has 60% at most."""
    frames, plain = (found("long", kind=kind) for kind in ("frames", "transformer"))
    short = found("short", kind="frames")
    figure = (
        f"{listed(frames, '.1%')} of words of 128 (of 32 {listed(short, '.1%')}), a transformer {listed(plain, '.1%')}"
    )
    return Finding.of(figure, min(frames) >= 0.95, max(plain) < 0.6)


def after(length: int, seed: int, steps: int, of: int) -> dict[str, float]:
    """Nats a product on words of 128 letters after training on words of so many."""
    model = trained(frames_of(of, seed), length, steps, seed, of)
    with torch.no_grad():
        given, products = drawn(128, LONGER, Generator().manual_seed(7_919), of)
        return {"loss": F.cross_entropy(logits(model, given).flatten(0, 1), products.flatten()).item()}


@measured(length=LENGTHS, seed=[0], steps=[600])
def lengths(length: int, seed: int, steps: int) -> dict[str, float]:
    """Of permutations of five."""
    return after(length, seed, steps, 5)


@measured(length=LENGTHS, seed=[0], steps=[600])
def small_lengths(length: int, seed: int, steps: int) -> dict[str, float]:
    """Of permutations of three."""
    return after(length, seed, steps, 3)


def is_a_power(found: Figures) -> Finding:
    """Falls with every length, and a line in logarithms has R² of 0.9."""
    losses = [found.one("loss", length=length) for length in LENGTHS]
    x, y = (torch.tensor([math.log(value) for value in values]) for values in (LENGTHS, losses))
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    rest = (y - y.mean() - slope * (x - x.mean())).square().sum() / (y - y.mean()).square().sum()
    figure = f"{listed(losses, '.2f')} nats from 8 to 128 letters, n^{slope:.2f} with R² {1 - rest:.2f}"
    return Finding.of(figure, all(a > b for a, b in itertools.pairwise(losses)), 1 - rest.item() >= 0.9)
