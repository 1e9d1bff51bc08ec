"""NÜWA's decoder on codes of a moving spot, beside codes of the frame before."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.claims.latents import actions
from regard.networks.nuwa import Nuwa
from regard.train.fit import Recipe, fit

CODES, TIMES = 16, (0, 2, 4, 6, 8)
"""Of the codebook; frames of a video, of which the first is given."""


def codebook(cells: Tensor, generator: Generator) -> Tensor:
    """``(16, channels)`` means of cells ``(n, channels)``, after 20 rounds of Lloyd's algorithm."""
    centres = cells[torch.randperm(len(cells), generator=generator)[:CODES]]
    for _ in range(20):
        near = F.one_hot(torch.cdist(cells, centres).argmin(1), CODES).to(cells.dtype)
        centres = torch.where(near.sum(0)[:, None] > 0, near.mT @ cells / near.sum(0).clamp(min=1)[:, None], centres)
    return centres


def videos() -> tuple[Tensor, Tensor]:
    """Codes ``(videos, 5, 16)`` of 5 frames of 4 × 4 cells: 3,000 to train on and 400 others."""
    generator = Generator().manual_seed(77)
    parts = [actions(count, generator)[0][:, list(TIMES)] for count in (3000, 400)]
    book = codebook(parts[0][:500].flatten(0, 2), generator)
    return tuple(torch.cdist(part, book).argmin(-1) for part in parts)  # pyright: ignore[reportReturnType]


def copied(train: Tensor, unseen: Tensor) -> float:
    """Nats a code of the frame after, by how often each code followed each at its place in training."""
    counts = torch.ones(CODES, CODES)
    pairs = CODES * train[:, :-1].flatten() + train[:, 1:].flatten()
    counts = counts + pairs.bincount(minlength=CODES**2).view(CODES, CODES)
    table = (counts / counts.sum(1, keepdim=True)).log()
    return -table[unseen[:, :-1], unseen[:, 1:]].mean().item()


@measured(seed=range(2), steps=[400])
def moving(seed: int, steps: int) -> dict[str, float]:
    """Nats a code of four frames that follow a given one, by the decoder and by the frame before."""
    train, unseen = videos()
    net = Nuwa(CODES, (4, 4, 4), CODES, (1, 4, 4), (3, 2, 2), 48, 4, 2, 96, seed)

    def nats(ready: nn.Module, some: Tensor) -> Tensor:
        ids = some[:, 1:].flatten(1)
        return F.cross_entropy(ready(ids, some[:, 0]).flatten(0, 1), ids.flatten())

    def loss(ready: nn.Module, generator: Generator) -> Tensor:
        return nats(ready, train[torch.randint(len(train), (32,), generator=generator)])

    fit(net, loss, Recipe(steps, rate=3e-3, seed=seed))
    with torch.no_grad():
        return {"nats": nats(net, unseen).item(), "copied": copied(train, unseen)}


def beats_copies(found: Figures) -> Finding:
    """Fewer nats, with every seed."""
    own, copies = found("nats"), found("copied")
    figure = f"{listed(own, '.2f')} nats a code, {copies[0]:.2f} by the codes of the frame before"
    return Finding.of(figure, all(a < b for a, b in zip(own, copies, strict=True)))
