"""A queue of gated vectors beside attention in chunks: what it keeps, and what it recalls."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.networks.fifo import FifoLM
from regard.networks.lm import Config
from regard.train.fit import Recipe, fit

CHUNK, KEYS = 8, 16
CONFIG = Config(2 * KEYS + 2, 64, "softmax*2", heads=4)


@measured()
def states() -> dict[str, float]:
    """Bytes of the state after 4,096 tokens over those after 256, in chunks of 8 with 8 vectors."""
    model, ids = FifoLM(CONFIG, CHUNK, 8, False, seed=0), torch.zeros(1, 4096, dtype=torch.int64)
    with torch.no_grad():
        sizes = [model.extend(ids[:, :n], model.start(1))[1].bytes for n in (256, 4096)]
    return {"grown": sizes[1] / sizes[0]}


def does_not_grow(found: Figures) -> Finding:
    """Not by a byte."""
    grown = found.one("grown")
    return Finding.of(f"{grown:.3f} times the bytes after 4,096 tokens", grown == 1)


def planted_texts(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``(ids (count, n), keys (count,))``: a key, four chunks of noise, then the question."""
    n, shape = 5 * CHUNK + 1, (count,)
    ids = KEYS + torch.randint(KEYS, (count, n), generator=generator)
    keys = torch.randint(KEYS, shape, generator=generator)
    place = torch.randint(CHUNK, shape, generator=generator)
    ids[torch.arange(count), place] = keys
    ids[:, -1] = 2 * KEYS
    return ids, keys


@measured(memory=(8, 0), seed=range(2), steps=[400])
def planted(memory: int, seed: int, steps: int) -> dict[str, float]:
    """The share of keys told right that stood four chunks ago, of 16, without global attention."""
    model = FifoLM(CONFIG, CHUNK, memory, False, seed=seed)

    def loss(ready: nn.Module, generator: torch.Generator) -> Tensor:
        ids, keys = planted_texts(32, generator)
        return F.cross_entropy(ready(ids)[:, -1], keys)

    fit(model, loss, Recipe(steps, 3e-3, seed=seed))
    ids, keys = planted_texts(512, torch.Generator().manual_seed(7_919))
    with torch.no_grad():
        return {"right": (model(ids)[:, -1].argmax(-1) == keys).float().mean().item()}


def recalls(found: Figures) -> Finding:
    """90% with the memory, within 5 points of chance without."""
    kept, none = found("right", memory=8), found("right", memory=0)
    figure = f"{listed(kept, '.1%')} of keys of four chunks ago, without memory {listed(none, '.1%')}"
    return Finding.of(figure, min(kept) > 0.9, max(none) < 1 / KEYS + 0.05)
