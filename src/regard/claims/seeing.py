"""Answers about drawn scenes by a network that sees, by one that is told what is there, and by one that looks again."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator

from regard.claims.cells import measured, null, quick
from regard.claims.figures import Figures, Finding, interval
from regard.studies.perception_cognition import ANSWERS, QUESTIONS, Looks, SceneReader

SURE, AGAIN = 0.9, 4
"""A look is sure where all kinds have this chance; else it is repeated, so often at most."""


@quick(seed=[0], steps=[20])
@null(oracle=["shuffled"])
@measured(oracle=["true"], seed=range(3), steps=[2500])
def answered(oracle: str, seed: int, steps: int) -> dict[str, float]:
    """Errors of all answers; of those to questions of seeing, and what is left of these with the oracle; errors that
    the oracle takes away and that stay, by answer; and errors after looking again. Null: it tells of other scenes."""
    world, model, drawn = Looks(), SceneReader(seed=seed), Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(steps):
        images, kinds = world.clean(48, drawn)
        seen, (question, answers) = world.look(images, drawn), world.ask(kinds, drawn)
        optimiser.zero_grad()
        loss = F.cross_entropy(model(question, images=seen), answers) + F.cross_entropy(
            model(question, kinds=kinds), answers
        )
        (loss + F.cross_entropy(model.seen(seen).flatten(0, 1), kinds.flatten())).backward()
        optimiser.step()
    return figures(model.eval(), world, oracle)


@torch.no_grad()
def figures(model: SceneReader, world: Looks, oracle: str) -> dict[str, float]:
    """What `answered` tells of a trained network."""
    drawn = Generator().manual_seed(99)
    images, kinds = world.clean(1500, drawn)
    question, answers = world.ask(kinds, drawn)
    looks = [world.look(images, drawn) for _ in range(AGAIN)]
    plain = model(question, images=looks[0]).argmax(-1) != answers
    told = model(question, kinds=kinds.roll(1, 0) if oracle == "shuffled" else kinds).argmax(-1) != answers
    about = question[:, 0] == QUESTIONS.index("which")
    unsure, total = torch.ones(len(images), dtype=torch.bool), torch.zeros(len(images), ANSWERS)
    for look in looks:
        given = model(question, images=look).log_softmax(-1)
        total = total + given * unsure[:, None]
        unsure = unsure & ~(model.seen(look).softmax(-1).amax(-1) > SURE).all(1)
    again = total.argmax(-1) != answers
    rates = {
        "error": plain,
        "seeing": plain & ~told,
        "working": plain & told,
        "asked": plain & about,
        "left": plain & told & about,
        "again": again,
    }
    return {name: each.double().mean().item() for name, each in rates.items()}


def is_told_apart(found: Figures) -> Finding:
    """In every seed, where there are errors of seeing to take away: a hundredth of all answers at least."""
    error, seeing, working, asked, left = (found(x) for x in ("error", "seeing", "working", "asked", "left"))
    figure = (
        f"errors {interval(error, '.3f')}: of seeing {interval(seeing, '.3f')}, of working out "
        f"{interval(working, '.3f')}; to questions of seeing {interval(asked, '.3f')}, left {interval(left, '.3f')}"
    )
    adds = all(abs(a - b - c) < 1e-9 for a, b, c in zip(error, seeing, working, strict=True))
    return Finding.of(figure, adds, min(asked) >= 0.01, all(b <= 0.1 * a for a, b in zip(asked, left, strict=True)))


def looks_again(found: Figures) -> Finding:
    """In every seed; with an oracle that takes errors away."""
    error, again, seeing = (found(name) for name in ("error", "again", "seeing"))
    figure = f"errors {interval(error, '.3f')}, with up to {AGAIN} looks {interval(again, '.3f')}"
    lower = all(b < a for a, b in zip(error, again, strict=True))
    return Finding.of(figure, lower, all(b >= 0.5 * a for a, b in zip(error, seeing, strict=True)))
