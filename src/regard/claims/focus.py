"""Focus directions in SmolLM2: learned on lookups among ten pairs, measured on others."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.claims.cells import measured, quick
from regard.claims.figures import Figures, Finding, listed
from regard.claims.positional_channel import read
from regard.claims.testbeds.key_values import CONTEXT, DEPTHS, DIGITS, SPANS, Lookups, drawn, gain, smollm2
from regard.core.edit import Edit
from regard.hosts.focus import Marked, contextual_heads, learned, random_like, relevant_mass

ALPHAS = (0.25, 0.5, 1.0)


def marked(lookups: Lookups) -> list[Marked]:
    """Every lookup up to its first digit, with the line that it asks for."""
    return [
        Marked(torch.cat([context, asked[:-DIGITS]]), SPANS[depth])
        for context, row in zip(lookups.contexts, lookups.asked, strict=True)
        for depth, asked in zip(DEPTHS, row, strict=True)
    ]


@torch.no_grad()
def mass(lookups: Lookups, heads: dict[int, list[int]], *edits: Edit) -> Tensor:
    """The mean mass that the heads give to the asked line."""
    found = relevant_mass(smollm2()[0], marked(lookups), *edits, heads=heads, shared=CONTEXT)
    return torch.cat([found[layer].flatten() for layer in heads]).mean()


@quick(steps=[1], searched=[1], held_out=[2])
@measured(seed=range(2), steps=[25], count=[20], searched=[2], held_out=[10])
def directed(seed: int, steps: int, count: int, searched: int, held_out: int) -> dict[str, float]:
    """Heads, directions and α from some contexts; mass and log-probability on others, with three random draws."""
    model, _ = smollm2()
    seen, unseen = drawn(searched, 31 + seed), drawn(held_out, 41 + seed)
    heads = contextual_heads(model, marked(seen), count, CONTEXT)
    edit = learned(model, heads, marked(seen), steps, shared=CONTEXT)
    plain = read(seen)
    tried = {alpha: gain(plain, read(seen, edit.at(alpha)))[0] for alpha in ALPHAS}
    alpha = max(tried, key=lambda value: tried[value])
    edit, before = edit.at(alpha), read(unseen)
    own, (mean, low, high) = mass(unseen, heads), gain(before, read(unseen, edit))
    found = {"alpha": alpha, "gain": mean, "low": low, "high": high}
    found["mass"] = (mass(unseen, heads, edit) / own - 1).item()
    for draw in range(3):
        found[f"random {draw}"] = gain(before, read(unseen, random_like(edit, draw)))[0]
    return found


def looks_where_asked(found: Figures) -> Finding:
    """In every draw of contexts the mass rises by 30%, the digits gain, and more than by any random directions."""
    rises, gains, lows = (found(name) for name in ("mass", "gain", "low"))
    random = [max(draws) for draws in zip(*(found(f"random {draw}") for draw in range(3)), strict=True)]
    figure = (
        f"α = {listed(found('alpha'), 'g')}: mass on the asked line {listed(rises, '+.0%')}, log-probability of a "
        f"digit {listed(gains, '+.3f')} (from {listed(lows, '+.3f')}), by random ones {listed(random, '+.3f')}"
    )
    return Finding.of(figure, min(rises) >= 0.3, min(lows) > 0, all(a > b for a, b in zip(gains, random, strict=True)))
