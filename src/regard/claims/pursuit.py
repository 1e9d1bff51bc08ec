"""Heads of SmolLM2 that speak of colours: what becomes of these words where the heads' signs are turned around."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor

from regard.analysis.base import Head, Prompt
from regard.analysis.head_importance import text_loss
from regard.analysis.head_pursuit import HeadPursuit
from regard.analysis.retrieval_heads import manual
from regard.analysis.sweep import by_layer, heads_of
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.claims.testbeds.key_values import smollm2
from regard.edits.ablation import HeadAblation
from regard.hosts.attach import attach
from regard.tasks.lexicon import COLOURS, OBJECTS

TURNED, DRAWS = 5, range(5)
"""Heads whose sign is turned, a fiftieth of 270, and random draws of as many."""
FRAMES = ("The colour of the {} is", "She painted the {} in a bright", "My favourite {} has the colour", "A {} that is")


@torch.no_grad()
def mass(model: Any, texts: Sequence[Prompt], concept: Sequence[int], turned: Sequence[Head]) -> Tensor:
    """``(texts,)``: the probability of the concept's words as the next one, some heads' signs turned around."""
    found = []
    with attach(model, edits=[HeadAblation(by_layer(turned), strength=2.0)] if turned else []):
        for text in texts:
            logits = model(input_ids=text.ids[None], use_cache=False, logits_to_keep=1).logits[0, -1]
            found.append(logits.double().softmax(-1)[list(concept)].sum())
    return torch.stack(found)


@measured()
def turned() -> dict[str, float | str]:
    """The probability of colours after phrases that want one: as it is, without their heads, without random ones."""
    model, tokenizer = smollm2()
    concept = sorted({tokenizer(f" {colour}").input_ids[0] for colour in COLOURS})
    found, held_out = (
        [
            Prompt(ids, answer=len(ids))
            for frame in FRAMES
            for thing in OBJECTS[first : first + 8]
            for ids in [torch.tensor(tokenizer(frame.format(thing)).input_ids)]
        ]
        for first in (0, 8)
    )
    ids = torch.tensor(tokenizer(manual()).input_ids)
    best = [(layer, head) for layer, head, _ in HeadPursuit(concept).run(model, found).ranked()[:TURNED]]
    texts = [ids[start : start + 128] for start in (1000, 2000, 3000)]
    whole, loss = mass(model, held_out, concept, []), text_loss(model, texts).mean()
    without = mass(model, held_out, concept, best)
    with attach(model, edits=[HeadAblation(by_layer(best), strength=2.0)]):
        rise = float(text_loss(model, texts).mean() / loss - 1)
    figures: dict[str, float | str] = {"heads": " ".join(f"{layer}.{head}" for layer, head in best)}
    figures |= {"whole": whole.mean().item(), "turned": without.mean().item(), "loss": rise}
    for draw in DRAWS:
        random = Random(draw).sample([head for head in heads_of(model) if head not in best], TURNED)
        figures[f"random {draw}"] = mass(model, held_out, concept, random).mean().item()
    return figures


def turned_heads_suppress(found: Figures) -> Finding:
    """By half or more; random heads by a tenth at most."""
    whole, left = found.one("whole"), found.one("turned")
    random = [found.one(f"random {draw}") for draw in DRAWS]
    figure = (
        f"colours have {whole:.1%} of the probability, {left:.1%} with the {TURNED} best heads turned, "
        f"{listed(random, '.1%')} with random ones"
    )
    return Finding.of(figure, left <= whole / 2, min(random) >= 0.9 * whole)


def other_text_stays(found: Figures) -> Finding:
    """The loss of other text rises by 3% at most."""
    return Finding.of(f"the loss of a manual changes by {found.one('loss'):+.1%}", found.one("loss") <= 0.03)
