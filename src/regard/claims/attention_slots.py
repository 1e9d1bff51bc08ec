"""Lines of SmolLM2's lookups put where it attends: the slot profile of some contexts, the recall of others."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from regard.analysis.attn_rank import Slotted, agreeing_layer, by_profile, slot_profile
from regard.claims.cells import measured, quick
from regard.claims.figures import Figures, Finding
from regard.claims.testbeds.key_values import BEFORE, CONTEXT, DEPTHS, DIGITS, LINE, PAIRS, SPANS, drawn, gain, smollm2


def arranged(context: Tensor, order: Sequence[int]) -> Tensor:
    """A context with its lines in another order."""
    lines = context[BEFORE:].view(PAIRS, LINE)
    return torch.cat([context[:BEFORE], lines[list(order)].flatten()])


@torch.no_grad()
def recalled(contexts: Tensor, asked: Tensor) -> Tensor:
    """The mean log-probability of a digit of each question in its own context, ``(questions,)``."""
    texts = torch.cat([contexts, asked], 1)
    logs = smollm2()[0](input_ids=texts, use_cache=False).logits[:, -DIGITS - 1 : -1].float().log_softmax(-1)
    return logs.gather(2, asked[:, -DIGITS:, None])[..., 0].mean(1)


@quick(profiled=[2], asked=[2])
@measured(profiled=[10], asked=[12])
def reordered(profiled: int, asked: int) -> dict[str, float]:
    """The profile of shuffled contexts, in halves; then each asked line in the best slot, a random and the worst."""
    model, _ = smollm2()
    source, halves = random.Random(0), []
    lookups = drawn(profiled, 51)
    for part in (slice(0, None, 2), slice(1, None, 2)):
        prompts = []
        for context, questions in zip(lookups.contexts[part], lookups.asked[part], strict=True):
            order = source.sample(range(PAIRS), PAIRS)
            question = source.choice(list(questions))[:-DIGITS]
            ids = torch.cat([arranged(context, order), question])
            prompts.append(Slotted(ids, SPANS, (CONTEXT, len(ids))))
        halves.append(slot_profile(model, prompts))
    layer = agreeing_layer(*halves)
    agreement = torch.corrcoef(torch.stack([half[layer] for half in halves]))[0, 1].item()
    profile = (halves[0] + halves[1])[layer]
    held_out = drawn(asked, 52)
    found: dict[str, list[Tensor]] = {}
    for context, questions in zip(held_out.contexts, held_out.asked, strict=True):
        arrangements: dict[str, list[Tensor]] = {"best": [], "random": [], "worst": []}
        for depth in DEPTHS:
            relevance = [float(pair == depth) + source.random() / 2 for pair in range(PAIRS)]
            best = by_profile(profile, relevance)
            arrangements["best"].append(arranged(context, best))
            arrangements["random"].append(arranged(context, source.sample(range(PAIRS), PAIRS)))
            arrangements["worst"].append(arranged(context, by_profile(-profile, relevance)))
        for name, contexts in arrangements.items():
            found.setdefault(name, []).append(recalled(torch.stack(contexts), questions))
    logs = {name: torch.stack(rows) for name, rows in found.items()}
    told = {"layer": float(layer), "agreement": agreement, "first": float(profile.argmax())}
    told |= {name: rows.mean().item() for name, rows in logs.items()}
    for name, (one, other) in {"over random": ("random", "best"), "over worst": ("worst", "random")}.items():
        mean, low, high = gain(logs[one], logs[other])
        told |= {f"{name} gain": mean, f"{name} low": low, f"{name} high": high}
    return told


def better_where_attended(found: Figures) -> Finding:
    """Halves correlate above 0.9; the best slot beats a random one and that the worst, both intervals above zero."""
    best, worst = (
        [found.one(f"over {name} {what}") for what in ("gain", "low", "high")] for name in ("random", "worst")
    )
    figure = (
        f"halves correlate by {found.one('agreement'):.2f} in layer {found.one('layer'):.0f}; log-probability of a "
        f"digit in the best slot {found.one('best'):.3f}, a random one {found.one('random'):.3f} ({best[1]:+.3f} to "
        f"{best[2]:+.3f}), the worst {found.one('worst'):.3f} ({worst[1]:+.3f} to {worst[2]:+.3f})"
    )
    return Finding.of(figure, found.one("agreement") > 0.9, best[1] > 0, worst[1] > 0)
