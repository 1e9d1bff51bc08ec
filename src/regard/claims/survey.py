"""The head of a language model that matches prefixes, taken out, beside others at random."""

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

OTHERS = 10


def repeated_loss(model: Any, ids: torch.Tensor, heads: list[Head]) -> float:
    """The mean cross-entropy of the repetition of random tokens, without some heads."""
    with torch.no_grad(), attach(model, edits=[HeadAblation(by_layer(heads))] if heads else []):
        logits = model(ids).logits
    half = ids.shape[1] // 2
    return cross_entropy(logits[:, half:-1].flatten(0, 1), ids[:, half + 1 :].flatten()).item()


@quick(model=["tiny"])
@null(head=["random"])
@measured(model=("tiny", "smollm2"), head=["best"])
def ablated(model: str, head: str) -> dict[str, float | str]:
    """The best prefix-matching score of a head, and what the loss rises by without it and without each of ten others.

    The head is found on other random tokens than those on which it is taken out. Null: one at random in its place.
    """
    network, _ = small.load(model)
    size = network.config.vocab_size
    ranked = InductionHeads().run(network, repeats(size, 31, 4)).ranked()
    drawn = Random(0).sample([h for h in heads_of(network) if h != ranked[0][:2]], OTHERS + 1)
    chosen = ranked[0][:2] if head == "best" else drawn[-1]
    score = next(value for layer, place, value in ranked if (layer, place) == chosen)
    ids = torch.stack([prompt.ids for prompt in repeats(size, 31, 4, seed=1)])
    whole = repeated_loss(network, ids, [])
    rises = [repeated_loss(network, ids, [other]) - whole for other in drawn[:OTHERS]]
    found = {"score": score, "rise": repeated_loss(network, ids, [chosen]) - whole, "which": f"{chosen[0]}.{chosen[1]}"}
    return found | {"others": sum(rises) / OTHERS}


def of(model: str) -> Cells:
    """Those of one model."""
    return ablated.where(model=[model])


def is_the_cause(found: Figures) -> Finding:
    """A score of 0.5, and five times the mean of others."""
    scores, rises, others = (found(name) for name in ("score", "rise", "others"))
    told = [f"{m}: score {s:.2f}, {r:+.3f} nats, others {o:.3f}" for m, s, r, o in
            zip(found("model"), scores, rises, others, strict=True)]  # fmt: skip
    return Finding.of("; ".join(told), min(scores) >= 0.5, all(r >= 5 * o for r, o in zip(rises, others, strict=True)))
