"""Gates of regard-tiny that keep one of two tasks and lose the other, and random heads in the place of those shut."""

from __future__ import annotations

from random import Random

from regard.analysis.contrastive_gates import contrastive_gates, shut
from regard.analysis.head_gates import CausalHeadGating
from regard.analysis.sweep import heads_of
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.claims.heads import DRAWS, right
from regard.claims.testbeds.sentences import TASKS, prompts
from regard.hosts.small import load


@measured(kept=tuple(TASKS), seed=range(2), steps=[100])
def told_apart(kept: str, seed: int, steps: int) -> dict[str, float]:
    """Answers of both tasks that are right, whole, without the heads whose gates are shut, and without random ones."""
    model, tokenizer = load("tiny")
    lost = next(task for task in TASKS if task != kept)
    keep, forget = (prompts(tokenizer, task, 64, 0) for task in (kept, lost))
    gates = contrastive_gates(model, keep, forget, CausalHeadGating(steps, 16, seed=seed))
    out, held_out = shut(gates), {"kept": prompts(tokenizer, kept, 64, 1), "lost": prompts(tokenizer, lost, 64, 1)}
    figures: dict[str, float] = {"heads": len(out)}
    for name, texts in held_out.items():
        figures |= {f"{name} whole": right(model, texts, []), f"{name} without": right(model, texts, out)}
    draws = [Random(draw).sample(heads_of(model), len(out)) for draw in DRAWS]
    random = [[right(model, texts, heads) for texts in held_out.values()] for heads in draws]
    return figures | {"random gap": max(a - b for a, b in random)}


def one_is_lost(found: Figures) -> Finding:
    """The lost task falls by 50 points or more, the kept one by 10 at most, in every run; no random choice does so."""
    kept, lost = (
        [a - b for a, b in zip(found(f"{name} whole"), found(f"{name} without"), strict=True)]
        for name in ("kept", "lost")
    )
    gaps = [a - b for a, b in zip(found("kept without"), found("lost without"), strict=True)]
    figure = (
        f"without {listed(found('heads'), 'd')} of 32 heads the task to lose falls by {listed(lost, '.0%')}, the one "
        f"to keep by {listed(kept, '.0%')}; without random ones they end {listed(found('random gap'), '.0%')} apart"
    )
    apart = all(gap > other for gap, other in zip(gaps, found("random gap"), strict=True))
    return Finding.of(figure, min(lost) >= 0.5, max(kept) <= 0.1, apart)
