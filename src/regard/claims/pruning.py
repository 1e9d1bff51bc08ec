"""Attention layers taken out of SmolLM2: by their weights, by what each costs, and at random."""

from __future__ import annotations

import random
import time

from regard.analysis.gate_norm import gate_norms
from regard.analysis.prune import loss_of, losses_without
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.claims.testbeds.key_values import smollm2
from regard.compare.cache_report import continuations
from regard.hosts.prune import Pruned

OUT, LENGTH = 7, 192


@measured()
def losses() -> dict[str, float]:
    """Nats a token of held-out text, whole and without seven of 30 layers, and the seconds of choosing these.

    ``loss`` chooses on other texts.
    """
    model, tokenizer = smollm2()
    held, chosen_on = (
        [prompt.context for prompt in continuations(tokenizer, LENGTH, 3, seed=seed)] for seed in (11, 12)
    )
    found, worth = {"whole": loss_of(model, held)}, {}
    for scale in ("plain", "gain", "relative"):
        begun = time.process_time()
        worth[f"gate norm, {scale}"] = gate_norms(model, scale)
        found[f"seconds, {scale}"] = time.process_time() - begun
    worth["loss"] = losses_without(model, chosen_on)
    layers = range(len(worth["loss"]))
    out = {name: sorted(layers, key=lambda layer: row[layer])[:OUT] for name, row in worth.items()}
    out |= {f"random {seed}": random.Random(seed).sample(layers, OUT) for seed in range(5)}
    for name, some in out.items():
        with Pruned(model, sorted(some)):
            found[name] = loss_of(model, held)
    return found


def half_of_chance(found: Figures) -> Finding:
    """The rise of the loss is at most half of the mean of five random choices."""
    whole, gate, by_loss = (found.one(name) for name in ("whole", "gate norm, gain", "loss"))
    other = ", ".join(f"{scale} {found.one(f'gate norm, {scale}'):.2f}" for scale in ("plain", "relative"))
    draws = [found.one(f"random {seed}") for seed in range(5)]
    figure = (
        f"loss {whole:.2f} of all layers; without seven of 30 by the norm {gate:.2f} ({other}), by each one's loss on "
        f"other text {by_loss:.2f}, at random {listed(draws, '.2f')}; the norms take {found.one('seconds, gain'):.1f} s"
    )
    return Finding.of(figure, gate - whole <= (sum(draws) / len(draws) - whole) / 2)
