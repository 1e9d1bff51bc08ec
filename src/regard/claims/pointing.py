"""Lists of numbers put in order by pointing at them, or by naming places."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.networks.pointer import PointerNetwork
from regard.train.fit import Recipe, fit

LEAST, MOST, LONGER = 5, 10, 15


def lists(count: int, size: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Numbers in 0 to 1, ``(b, n, 1)``, and the places of the least, the next …"""
    numbers = torch.rand(count, size, 1, generator=generator)
    return numbers, numbers[..., 0].argsort(1)


def right(model: PointerNetwork, size: int) -> float:
    """The share of 400 lists that are put in order without a fault."""
    numbers, order = lists(400, size, Generator().manual_seed(size))
    return (model.generate(numbers, size) == order).all(1).double().mean().item()


@measured(network=("pointer", "vocabulary"), seed=range(2), steps=[800])
def sorted_lists(network: str, seed: int, steps: int) -> dict[str, float]:
    """The share of lists in order, over lengths of 5 to 10, and of 15, which it was not trained on."""
    model = PointerNetwork(1, 64, None if network == "pointer" else MOST, seed)

    def loss(model: nn.Module, drawn: Generator) -> Tensor:
        size = int(torch.randint(LEAST, MOST + 1, (1,), generator=drawn))
        numbers, order = lists(64, size, drawn)
        return F.nll_loss(model(numbers, order).flatten(0, 1), order.flatten())

    fit(model, loss, Recipe(steps, 5e-3, seed=seed, decay=0.0))
    shares = [right(model, size) for size in range(LEAST, MOST + 1)]
    found = {"right": sum(shares) / len(shares), "ten": shares[-1]}
    return found | ({"longer": right(model, LONGER)} if network == "pointer" else {})


def sorts(found: Figures) -> Finding:
    """On average over the lengths, in every seed."""
    shares, ten, longer = (found(name, network="pointer") for name in ("right", "ten", "longer"))
    figure = f"in order {listed(shares, '.1%')} of 5 to 10 numbers, {listed(ten, '.1%')} of 10"
    return Finding.of(f"{figure}; untrained on 15: {listed(longer, '.1%')}", min(shares) > 0.6)


def beats_the_vocabulary(found: Figures) -> Finding:
    """In every seed."""
    ours, theirs = (found("right", network=name) for name in ("pointer", "vocabulary"))
    figure = f"in order: pointers {listed(ours, '.1%')}, places by name {listed(theirs, '.1%')}"
    return Finding.of(figure, min(ours) > max(theirs))
