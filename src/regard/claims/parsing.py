"""A parser of a small grammar by heads that are labels, or by self-attention; and each head taken out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.claims.cells import measured, null, quick
from regard.claims.figures import Figures, Finding, interval, listed
from regard.claims.testbeds.grammar import LABELS, LONGEST, WORDS, f1, hits, parse, sentences
from regard.networks.label_attention import SpanParser
from regard.train.fit import Recipe, fit

BATCH, KNOWN = 32, 200
"""Sentences of a batch, and that are trained on: of 6,000 both kinds of attention learn all there is."""
Held = list[tuple[Tensor, Tensor]]


def loss_of(model: nn.Module, drawn: Generator) -> Tensor:
    """The cross-entropy of the labels of all spans of sentences of one length; "none" scores zero."""
    known = sentences(KNOWN, 0)
    lengths = list(known)
    words, labels = known[lengths[int(torch.randint(len(lengths), (), generator=drawn))]]
    rows = torch.randint(len(words), (BATCH,), generator=drawn)
    scores = model(words[rows])
    spans = torch.ones(scores.shape[1:3], dtype=torch.bool).triu(1)
    logits = F.pad(scores[:, spans], (1, 0))
    return F.cross_entropy(logits.flatten(0, 1), labels[rows][:, spans].flatten())


def counts(model: Any, held: Held, without: int | None = None) -> Tensor:
    """`hits` of held-out sentences, of a model without one of its heads."""
    found = torch.zeros(len(LABELS), 3, dtype=torch.int64)
    for words, labels in held:
        with torch.no_grad():
            heads = model.heads(words).unflatten(2, (model.labels, -1))
            if without is not None:
                heads = heads.clone()
                heads[:, :, without] = 0
            found += hits(parse(model.read(heads.flatten(2))), labels)
    return found


def halves(size: int) -> tuple[Held, Held]:
    """Two halves of held-out sentences."""
    known = sentences(size, 1)
    return [(x[::2], y[::2]) for x, y in known.values()], [(x[1::2], y[1::2]) for x, y in known.values() if len(x) > 1]


def own_falls(model: Any) -> tuple[float, float]:
    """How much of its F1 a label loses without its head, and what others lose, in the mean over labels.

    A label's head is that without which it lost most on the other half of the sentences.
    """
    falls = []
    for half in halves(300):
        whole = f1(counts(model, half))
        falls.append(torch.stack([whole - f1(counts(model, half, head)) for head in range(model.labels)]))
    own, others = [], []
    for label, head in enumerate(falls[0].argmax(0).tolist()):
        own.append(falls[1][head, label].item())
        rest = [other for other in range(len(LABELS)) if other != label]
        others.append(falls[1][head, rest].mean().item())
    return sum(own) / len(own), sum(others) / len(others)


@quick(seed=[0], steps=[10])
@null(steps=[0])
@measured(attention=("labels", "own", "self"), seed=range(3), steps=[600])
def brackets(attention: str, seed: int, steps: int) -> dict[str, float]:
    """F1 of brackets over unseen sentences, and what labels lose without their heads; null: untrained."""
    own = attention == "own"
    kind = "labels" if own else attention
    model = SpanParser(WORDS, len(LABELS), 48, 16, kind, LONGEST + 2, own, seed, apart=True)
    if steps:
        fit(model, loss_of, Recipe(steps, 3e-3, seed=seed, decay=0.0))
    every = counts(model, [pair for half in halves(300) for pair in half])
    lost, others = own_falls(model)
    return {"f1": f1(every.sum(0)).item(), "own": lost, "others": others}


def is_as_good(found: Figures) -> Finding:
    """On average over seeds; both above 0.5."""
    ours, theirs = (found("f1", attention=name) for name in ("labels", "self"))
    figure = f"F1 of brackets: label attention {interval(ours, '.3f')}, self-attention {interval(theirs, '.3f')}"
    return Finding.of(figure, sum(ours) >= sum(theirs), min(ours) > 0.5)


def heads_are_labels(found: Figures) -> Finding:
    """In every seed; the label loses something."""
    own, others = (found(name, attention="labels") for name in ("own", "others"))
    beside = [interval(found(name, attention="own"), ".3f") for name in ("own", "others")]
    figure = f"F1 lost by a head's own label {listed(own, '.3f')}, by others {listed(others, '.3f')}"
    told = f"{figure}; where labels are scored from their heads alone {beside[0]} and {beside[1]}"
    return Finding.of(told, all(a >= 2 * b and a > 0.01 for a, b in zip(own, others, strict=True)))
