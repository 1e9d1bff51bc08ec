"""The heads of a language model that match prefixes, taken out, beside others at random."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from regard.analysis.base import Head
from regard.analysis.induction_heads import InductionHeads, repeats
from regard.analysis.sweep import by_layer, heads_of
from regard.claims.cells import Cells, measured, null, quick
from regard.claims.figures import Figures, Finding
from regard.edits.ablation import HeadAblation
from regard.hosts import small
from regard.hosts.attach import attach

OTHERS, THRESHOLD = 10, 0.5
"""Draws of other heads; the score from which a head matches prefixes."""


def repeated_loss(model: Any, ids: torch.Tensor, heads: list[Head]) -> float:
    """The mean cross-entropy of the repetition of random tokens, without some heads."""
    with torch.no_grad(), attach(model, edits=[HeadAblation(by_layer(heads))] if heads else []):
        logits = model(ids).logits
    half = ids.shape[1] // 2
    return cross_entropy(logits[:, half:-1].flatten(0, 1), ids[:, half + 1 :].flatten()).item()


@quick(model=["tiny"])
@null(taken=["random"])
@measured(model=("tiny", "smollm2"), heads=("best", "all"), taken=["found"])
def ablated(model: str, heads: str, taken: str) -> dict[str, float]:
    """The least prefix-matching score of some heads, and the rise of the loss without them and without as many others.

    The heads, the best one or all of a score of 0.5 and more, are found on other random tokens than those on which they
    are taken out; beside them ten draws of as many of the others. Null: one more draw in their place.
    """
    network, _ = small.load(model)
    size = network.config.vocab_size
    ranked = InductionHeads().run(network, repeats(size, 31, 4)).ranked()
    scores = {(layer, place): score for layer, place, score in ranked}
    matching = [each for each, score in scores.items() if score >= THRESHOLD]
    found = matching if heads == "all" else list(scores)[:1]
    rest = [each for each in heads_of(network) if each not in found]
    *draws, another = (Random(draw).sample(rest, len(found)) for draw in range(OTHERS + 1))
    chosen = found if taken == "found" else another
    ids = torch.stack([prompt.ids for prompt in repeats(size, 31, 4, seed=1)])
    whole = repeated_loss(network, ids, [])
    rise, *others = (repeated_loss(network, ids, some) - whole for some in (chosen, *draws))
    return {
        "score": min(scores[each] for each in chosen),
        "count": float(len(chosen)),
        "rise": rise,
        "others": sum(others) / OTHERS,
    }


def best_of(model: str) -> Cells:
    """The best head of one model."""
    return ablated.where(model=[model], heads=["best"])


def together(model: str) -> Cells:
    """All heads of one model that match prefixes, and the best one."""
    return ablated.where(model=[model])


def is_the_cause(found: Figures) -> Finding:
    """A score of 0.5, and five times the mean of others."""
    return carried(found, "best")


def together_they_are(found: Figures) -> Finding:
    """All of a score of 0.5 or more: five times the mean of as many others; the best one alone is told beside them."""
    together, alone = carried(found, "all"), carried(found, "best")
    return Finding(f"{together.figure}; the best alone, {alone.figure}", together.held)


def carried(found: Figures, heads: str) -> Finding:
    """Whether these heads match prefixes, and cost five times what others cost."""
    score, rise, others, count = (found.one(of, heads=heads) for of in ("score", "rise", "others", "count"))
    what = "score" if count == 1 else f"{count:.0f} heads, least score"
    return Finding.of(
        f"{what} {score:.2f}: {rise:+.3f} nats, others {others:+.3f}", score >= THRESHOLD, rise >= 5 * others
    )
