"""How few directions SmolLM2's heads score pairs through, and what becomes of the weights without them."""

from __future__ import annotations

import math
from statistics import mean, median

import torch

from regard.analysis.flow import WatchedMaps
from regard.analysis.retrieval_heads import manual
from regard.analysis.sparse_decomposition import of_states
from regard.analysis.weights import head_weights
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.claims.testbeds.key_values import smollm2
from regard.edits.trace import Trace
from regard.hosts.attach import attach

LEAST = 0.2
"""Weight from which a pair counts as attended to."""


def weight_after(weight: float, change: float) -> float:
    """The weight of a pair whose score changes, all others as they are."""
    raised = weight * math.exp(change)
    return raised / (1 - weight + raised)


@measured()
def attended() -> dict[str, float]:
    """Of each head the pair with the largest weight, the first token and the query's own aside, from 0.2 on."""
    model, tokenizer = smollm2()
    ids, draw = torch.tensor(tokenizer(manual()).input_ids[:128]), torch.Generator().manual_seed(0)
    maps, trace, weights = WatchedMaps(model, ids), Trace("resid"), head_weights(model)
    with attach(model, edits=[trace]), torch.no_grad():
        model(input_ids=ids[None], use_cache=False)
    terms, falls, random = [], [], []
    for layer, of in enumerate(weights):
        every, _ = maps.rows(layer, torch.arange(len(ids)))
        for head, own in enumerate(every):
            far = own.tril(-1)
            far[:, 0] = 0
            query, key = divmod(int(far.argmax()), len(ids))
            weight = float(far[query, key])
            if weight < LEAST:
                continue
            found = of_states(model, of, trace.get("resid", layer)[0], (layer, head), query, key)
            if not (kept := found.fewest()):
                continue
            chance = torch.randn(len(kept), len(found.state), generator=draw, dtype=torch.float64)
            terms.append(len(kept) / len(found.terms))
            for directions, into in ((found.reads[kept], falls), (chance, random)):
                into.append(1 - weight_after(weight, found.without(directions) - found.score) / weight)
    return {"heads": len(terms), "terms": median(terms), "fall": mean(falls), "random": mean(random)}


def few_terms(found: Figures) -> Finding:
    """The median at most a fifth."""
    share, heads = found.one("terms"), found.one("heads")
    return Finding.of(f"the median is {share:.0%} of the 64 terms, of {heads} of SmolLM2's heads", share <= 0.2)


def signal_matters(found: Figures) -> Finding:
    """The weight falls by half or more on average; by a tenth at most without random directions, as many."""
    fall, random = found.one("fall"), found.one("random")
    figure = f"weights fall by {fall:.0%} without them, by {random:.0%} without random ones"
    return Finding.of(figure, fall >= 0.5, random <= 0.1)
