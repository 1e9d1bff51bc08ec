"""Information flow routes of regard-tiny on repeated random tokens: which heads they hold, what cutting them costs."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from regard.analysis.base import run_together
from regard.analysis.flow_routes import routes
from regard.analysis.induction_heads import InductionHeads, PreviousTokenHeads, repeats
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.core.edit import Edit, Place, Where
from regard.hosts.attach import attach
from regard.hosts.small import load

BLOCK, TEXTS, DRAWS = 29, 12, range(5)
Pairs = set[tuple[int, int, int, int]]
"""``(layer, head, query, key)``."""


class Cut(Edit):
    """Hides single pairs of single heads."""

    def __init__(self, pairs: Iterable[tuple[int, int, int, int]]) -> None:
        super().__init__(Where())
        self.pairs = set(pairs)

    def scores(self, place: Place) -> Tensor | None:
        here = [(head, i, j) for layer, head, i, j in self.pairs if layer == place.layer]
        if not here:
            return None
        hidden = torch.zeros(1, place.heads, place.n, place.m)
        for head, i, j in here:
            hidden[0, head, i, j] = -torch.inf
        return hidden


@torch.no_grad()
def logit(model: Any, ids: Tensor, target: int, cut: Pairs) -> float:
    """The target's logit after the text, some pairs hidden."""
    with attach(model, edits=[Cut(cut)] if cut else []):
        return float(model(input_ids=ids[None], use_cache=False).logits[0, -1, target])


def others(pairs: Pairs, seed: int) -> Pairs:
    """As many pairs of the same heads, at random among those that these may see and that are not kept."""
    draw, found = Random(seed), set()
    for layer, head, i, _ in sorted(pairs):
        while True:
            query = draw.randrange(1, i + 1) if i else 0
            one = (layer, head, query, draw.randrange(query + 1))
            if one not in pairs | found or i == 0:
                found.add(one)
                break
    return found


@measured(threshold=(0.04,))
def found(threshold: float) -> dict[str, float]:
    """Of the routes of the last token of repeated texts: how many hold both kinds of heads, and what cutting costs."""
    model, tokenizer = load("tiny")
    texts = [
        (prompt.ids[:-6], int(prompt.ids[-6]))
        for prompt in repeats(model.config.vocab_size, BLOCK, TEXTS, 5, tokenizer.bos_token_id)
    ]
    analyses = [InductionHeads(), PreviousTokenHeads()]
    kinds = run_together(analyses, model, repeats(model.config.vocab_size, start=tokenizer.bos_token_id))
    matching, before = ({(at, h) for at, h, _ in kinds[a.name].ranked(a.threshold)} for a in analyses)
    held, kept, random = [], [], {draw: list[float]() for draw in DRAWS}
    edges = []
    for ids, target in texts:
        graph = routes(model, ids, threshold=threshold)
        source = len(ids) - BLOCK  # the token after the last occurrence of the last one
        pairs = {(e.layer, e.head, e.to, e.source) for e in graph.edges if e.head is not None}
        reads = [e for e in graph.edges if (e.layer, e.head) in matching and e.source == source]
        fed = [e for e in graph.edges if (e.layer, e.head) in before and (e.to, e.source) == (source, source - 1)]
        held.append(bool(reads and fed))
        whole = logit(model, ids, target, set())
        kept.append(whole - logit(model, ids, target, pairs))
        edges.append(len(pairs))
        for draw in DRAWS:
            random[draw].append(whole - logit(model, ids, target, others(pairs, draw)))
    figures = {"held": mean(map(float, held)), "edges": mean(edges), "kept": mean(kept)}
    return figures | {f"random {draw}": mean(values) for draw, values in random.items()}


def hold_the_circuit(figures: Figures) -> Finding:
    """In 90% of the texts an edge of an induction head, and one of a head of the previous token into what it reads."""
    held, edges = figures.one("held"), figures.one("edges")
    return Finding.of(f"{held:.0%} of {TEXTS} texts hold both, with {edges:.0f} edges of heads on average", held >= 0.9)


def kept_edges_matter(figures: Figures) -> Finding:
    """The logit falls five times as far, or further, than with any random draw."""
    kept, random = figures.one("kept"), [figures.one(f"random {draw}") for draw in DRAWS]
    figure = f"the logit falls by {kept:.2f} without the kept edges, by {listed(random, '.2f')} without random ones"
    return Finding.of(figure, kept > 0, kept >= 5 * max(0.0, *random))
