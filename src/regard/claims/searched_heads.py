"""Heads that gain by an edit alone, found on some key–value lookups in SmolLM2 and held to others."""

from __future__ import annotations

import torch

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.claims.steering import measure
from regard.claims.testbeds.key_values import DEPTHS, drawn, smollm2
from regard.edits.act import ACT
from regard.hosts.calibrate import Answered
from regard.hosts.head_search import search_heads

DIGITS = 4
"""Tokens of an answer."""


@measured(contexts=[3])
def act(contexts: int) -> dict[str, float]:
    """ACT with the authors' α and β in the heads of layers 2 to 28 that gain by it alone, on contexts held out."""
    lookups = drawn(contexts, 1)
    examples = [
        Answered(torch.cat([lookups.contexts[row], asked[:-DIGITS]]), asked[-DIGITS:])
        for row in range(contexts)
        for asked in (lookups.asked[row, index] for index in range(len(DEPTHS)))
    ]
    found = search_heads(smollm2()[0], lambda heads: ACT(heads=heads), examples, range(2, 29), by="log_probability")
    kept = sum(map(len, found.heads.values()))
    return measure("kept heads", ACT(heads=found.heads)) | {"kept": float(kept), "tried": float(len(found.found))}


def no_lower(found: Figures) -> Finding:
    """The interval of their gain does not lie below zero."""
    low, high, mean = (found.one(f"kept heads {what}") for what in ("low", "high", "gain"))
    figure = (
        f"{found.one('kept'):.0f} of {found.one('tried'):.0f} heads gain alone; together on lookups held out "
        f"{mean:+.3f} nats a digit ({low:+.3f} to {high:+.3f})"
    )
    return Finding.of(figure, high > 0)
