"""A model of source text made deeper: by blocks with memories, by whole copies, each trained on as many tokens."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

from torch import Generator

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.claims.testbeds.source import VOCABULARY, characters, held_out_loss, trained, windows
from regard.networks import LM, Config
from regard.networks.midus import Midus, duplicated, upscaled

AFTER = (1, 3)
"""Blocks, of four, that a copy follows."""


@cache
def begun(seed: int, steps: int) -> LM:
    """The model that all ways go on from."""
    return trained(LM(Config(VOCABULARY, width=64, layers="softmax*4", heads=4), seed=seed), seed, steps)


@measured(way=("as it is", "copies", "memories"), seed=range(2), steps=[600])
def scaled(way: str, seed: int, steps: int) -> dict[str, float]:
    """The loss on files that were not trained on, added parameters, and the share of slots that are read."""
    base = begun(seed, steps)
    model = (
        deepcopy(base)
        if way == "as it is"
        else duplicated(base, AFTER)
        if way == "copies"
        else upscaled(base, AFTER, keys=8, latent=16)
    )
    trained(model, seed + 100, steps)
    found = {"loss": held_out_loss(model), "added": float(model.parameter_count - base.parameter_count), "read": 0.0}
    if isinstance(model, Midus):
        found["read"] = model.slots_read(windows(characters(True), 64, 64, Generator().manual_seed(3)))
    return found


def cheaper(found: Figures) -> Finding:
    """On average no worse than copies, for at most half of their added parameters, and 60% of slots are read."""
    losses = {way: found.mean("loss", way=way) for way in ("as it is", "copies", "memories")}
    share = found.mean("added", way="memories") / found.mean("added", way="copies")
    read = found.mean("read", way="memories")
    figure = (
        f"nats a character {listed(losses.values(), '.3f')} (as it is, copies, memories), for {share:.0%} of the added "
        f"parameters; {read:.0%} of the slots are read"
    )
    return Finding.of(figure, losses["memories"] <= losses["copies"], share <= 0.5, read >= 0.6)
