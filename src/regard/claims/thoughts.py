"""What a few picked elements tell of the future, beside the whole state."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator

from regard.claims.cells import Cells, measured, null, quick
from regard.claims.figures import Figures, Finding, listed
from regard.studies.conscious_prior import Factors, Thoughts, information

RATE, BATCH = 3e-3, 128


@quick(seed=[0], steps=[20])
@null(picks=["random"])
@measured(picks=("attention", "all"), verifier=["likelihood"], seed=range(3), steps=[3000])
def told(picks: str, verifier: str, seed: int, steps: int) -> dict[str, float]:
    """The share of what comes that is told right, and of picked elements that it follows from; null: any three."""
    world = Factors(seed=seed)
    model, generator = Thoughts(world.elements, world.factors, picks=picks, seed=seed), Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), RATE)
    for _ in range(steps):
        x, cue, comes, _ = world.draw(BATCH, generator)
        optimiser.zero_grad()
        logits = model(x, cue)[0]
        loss = information if verifier == "information" else F.binary_cross_entropy_with_logits
        loss(logits, comes).backward()
        optimiser.step()
    model.eval()
    x, cue, comes, members = world.draw(2000, Generator().manual_seed(99))
    torch.manual_seed(1)
    with torch.no_grad():
        logits, chosen = model(x, cue)
    right = ((logits > 0) == (comes > 0)).double().mean().item()
    picked = ((chosen > 0.5) & (members[:, None] > 0)).sum() / (chosen > 0.5).sum()
    return {"right": right, "picked": picked.item()}


def by(verifier: str) -> Cells:
    """Those whose verifier is trained so."""
    return told.where(verifier=[verifier])


def cost_little(found: Figures) -> Finding:
    """In every seed; the whole state tells 90% right. A null without the whole state is held to 98%."""
    few = found("right", picks=next(iter(found.by("picks", "right"))))
    whole = found.by("picks", "right").get("all", [1.0] * len(few))
    figure = f"told right: by three elements {listed(few, '.1%')}, by all {listed(whole, '.1%')}"
    return Finding.of(figure, min(whole) >= 0.9, all(a >= b - 0.02 for a, b in zip(few, whole, strict=True)))


def are_right(found: Figures) -> Finding:
    """In every seed."""
    picked = found("picked", picks=next(iter(found.by("picks", "picked"))))
    return Finding.of(f"picked elements that tell {listed(picked, '.1%')}", min(picked) >= 0.8)
