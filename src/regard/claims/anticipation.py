"""Clips of an action grammar: a hand goes from object to object, and what it does next follows from where it was."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.claims.cells import measured, null, quick
from regard.claims.figures import Figures, Finding, interval
from regard.networks.unified_recurrence import UnifiedRecurrence
from regard.train.fit import Recipe, fit

VERBS, OBJECTS, FRAMES = 4, 3, 8
ACTIONS, VERTICES = VERBS * OBJECTS, 1 + OBJECTS
CHANNELS = VERBS + OBJECTS + 2
SURE, NOISE = 0.95, 0.2
EDGES = ("full", "learned", "states", "template")


def clips(count: int, generator: Generator, still: bool = False) -> tuple[Tensor, Tensor]:
    """Clips ``(b, 8, 4, 9)`` and the action that comes after each frame ``(b, 8)``.

    Vertex 0 is the hand, which shows its verb and where it is; the others are objects, which show their kind and where
    they are, in an order of the clip's own. The hand is at the object that it touches, and nothing else says which one
    that is. The next verb follows from the verb and the object before, the next object from the object and the verb.

    Args:
        still: actions at random instead.
    """
    kinds = torch.rand(count, OBJECTS, generator=generator).argsort(1)
    where = 2 * torch.rand(count, OBJECTS, 2, generator=generator) - 1
    verb, kind, before = (torch.randint(x, (count,), generator=generator) for x in (VERBS, OBJECTS, OBJECTS))
    frames, told = [], []
    for _ in range(FRAMES):
        touched = (kinds == kind[:, None]).int().argmax(1)
        hand = torch.cat([F.one_hot(verb, VERBS), torch.zeros(count, OBJECTS)], 1)
        hand = torch.cat([hand, where[torch.arange(count), touched]], 1)
        blank = torch.zeros(count, OBJECTS, VERBS)
        objects = torch.cat([blank, F.one_hot(kinds, OBJECTS), where], 2)
        frame = torch.cat([hand[:, None], objects], 1)
        frames.append(frame + NOISE * torch.randn(frame.shape, generator=generator))
        follows = (torch.rand(count, generator=generator) < (0.0 if still else SURE)).long()
        other = [torch.randint(x, (count,), generator=generator) for x in (VERBS, OBJECTS)]
        verb, kind, before = (
            follows * ((verb + 1 + before) % VERBS) + (1 - follows) * other[0],
            follows * ((kind + 1 + verb) % OBJECTS) + (1 - follows) * other[1],
            kind,
        )
        told.append(verb * OBJECTS + kind)
    return torch.stack(frames, 1), torch.stack(told, 1)


class Baseline(nn.Module):
    """A GRU over frames, or the mean of all frames so far, of what all vertices show.

    Args:
        kind: "gru" or "mean".
    """

    def __init__(self, kind: str, width: int = 96) -> None:
        super().__init__()
        self.kind, self.embed = kind, nn.Linear(VERTICES * CHANNELS, width)
        self.recurrent = nn.GRU(width, width, batch_first=True) if kind == "gru" else nn.Linear(width, width)
        self.out = nn.Linear(width, ACTIONS)

    def forward(self, clip: Tensor) -> Tensor:
        x = F.relu(self.embed(clip.flatten(2)))
        if self.kind == "gru":
            return self.out(self.recurrent(x)[0])
        counts = torch.arange(1, clip.shape[1] + 1, dtype=x.dtype)[:, None]
        return self.out(F.relu(self.recurrent(x.cumsum(1) / counts)))


@quick(model=("states", "gru", "mean"), seed=[0], steps=[10])
@null(still=[True])
@measured(model=(*EDGES, "gru", "mean"), still=[False], seed=range(3), steps=[1000])
def told(model: str, still: bool, seed: int, steps: int) -> dict[str, float]:
    """The share of next actions that are told after the third frame and later; null: actions at random."""
    torch.manual_seed(seed)
    made: Any = (
        Baseline(model) if model in ("gru", "mean") else UnifiedRecurrence(CHANNELS, VERTICES, ACTIONS, 48, 4, model)  # pyright: ignore
    )

    def loss(ready: Any, drawn: Generator) -> Tensor:
        seen, action = clips(64, drawn, still)
        return F.cross_entropy(ready(seen).flatten(0, 1), action.flatten())

    fit(made, loss, Recipe(steps, 3e-3, seed=seed, decay=0.0))
    seen, action = clips(1000, Generator().manual_seed(99), still)
    with torch.no_grad():
        right = made(seen).argmax(-1) == action
    return {"right": right[:, 2:].double().mean().item()}


def tells_more(found: Figures) -> Finding:
    """Every strategy of edges, on average over seeds, by 3 points."""
    by = found.by("model", "right")
    figure = "; ".join(f"{model} {interval(values, '.3f')}" for model, values in by.items())
    means = {model: sum(values) / len(values) for model, values in by.items()}
    ours = [mean for model, mean in means.items() if model in EDGES]
    return Finding.of(f"next actions told: {figure}", min(ours) >= max(means["gru"], means["mean"]) + 0.03)
