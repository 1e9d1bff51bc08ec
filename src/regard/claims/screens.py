"""Frames of a screen that hardly change: what is kept of the earlier ones."""

from __future__ import annotations

from statistics import mean

import torch
from torch import Generator, Tensor

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.core.policy import Policy, View, best
from regard.policies import GUIKV, SnapKV

TOKENS, FRAMES, CHANGED, DIM, THEMES = 120, 4, 0.1, 64, 24
"""Of a frame; frames; the share of one that changes to the next; numbers of a key; directions that a screen's have."""


def screens(draw: Generator) -> tuple[Tensor, Tensor]:
    """``(keys of all frames (frames · tokens, d), which tokens are in regions that change later)``.

    A screen's keys are mixtures of a few directions, with some noise; a region that changes shows others before.
    """
    themes, others = (torch.randn(THEMES, DIM, generator=draw) for _ in range(2))
    now = torch.randn(TOKENS, THEMES, generator=draw) @ themes
    keys, changed = [], []
    for _ in range(FRAMES - 1):
        start = int(torch.randint(0, int(TOKENS * (1 - CHANGED)), (1,), generator=draw))
        region = torch.zeros(TOKENS, dtype=torch.bool)
        region[start : start + int(TOKENS * CHANGED)] = True
        own = torch.randn(TOKENS, THEMES, generator=draw) @ others
        keys.append(torch.where(region[:, None], own, now))
        changed.append(region)
    every = torch.cat([*keys, now])
    every = every + 0.1 * every.std() * torch.randn(every.shape, generator=draw)
    return every, torch.cat([*changed, torch.zeros(TOKENS, dtype=torch.bool)])


@measured(seed=range(5))
def kept_changes(seed: int) -> dict[str, float]:
    """The share of what is kept of earlier frames, at a fifth of the cache, that is in a region which changed after."""
    draw = Generator().manual_seed(seed)
    keys, changed = screens(draw)
    n, question = len(keys), 16
    keys = torch.cat([keys, torch.randn(question, DIM, generator=draw) * keys.std()])
    frames = tuple((at * TOKENS, (at + 1) * TOKENS) for at in range(FRAMES))
    q = torch.randn(3, question, DIM, generator=draw)
    policies: dict[str, Policy] = {"snapkv": SnapKV(window=8)}
    policies |= {basis: GUIKV(frames=frames, basis=basis, alpha=0.0) for basis in ("first", "pivoted", "svd")}
    budget, found = len(keys) // 5, {"chance": changed[: n - TOKENS].float().mean().item()}
    for name, policy in policies.items():
        rows = q[:, -policy.rows :]
        view = View(0, 1, 0, 1, rows, keys, keys, torch.arange(len(keys)), len(keys), DIM**-0.5 / 8, budget=budget)
        at = best(policy.scores(view), budget)
        found[name] = changed[at[at < n - TOKENS]].float().mean().item()
    return found


def twice_snapkv(found: Figures) -> Finding:
    """Twice as often on average, with the authors' basis."""
    mine, snap = found("first"), found("snapkv")
    other = ", ".join(f"{basis} {found.mean(basis):.0%}" for basis in ("pivoted", "svd"))
    figure = f"{listed(mine, '.0%')} of what is kept had changed ({other}), SnapKV {listed(snap, '.0%')}"
    return Finding.of(figure, mean(mine) >= 2 * mean(snap))
