"""Circuits of the shipped model: a quarter of its heads carries indirect object identification by themselves."""

from __future__ import annotations

from random import Random

import pytest
import torch

from regard.analysis.patching import SitePatching
from regard.analysis.path_patching import circuit, kept_by
from regard.analysis.sweep import LogitDifference, Pair, heads_of
from regard.hosts import small
from regard.tasks.lexicon import NAMES, OBJECTS, PLACES

pytestmark = pytest.mark.slow


def sentences(tokenizer, count: int, seed: int) -> list[Pair]:
    """Sentences with two names and with the giver exchanged, names of as many tokens."""

    def ids(text: str, special: bool = True) -> list[int]:
        return tokenizer(text, add_special_tokens=special).input_ids

    draw, found = Random(seed), []
    while len(found) < count:
        first, second = draw.sample(NAMES, 2)
        text = f"When {first} and {second} went to the {draw.choice(PLACES)}, {{}} gave a {draw.choice(OBJECTS)} to"
        base, donor = ids(text.format(second)), ids(text.format(first))
        answers = [ids(f" {name}", False)[0] for name in (first, second)]
        if len(base) == len(donor) and answers[0] != answers[1]:
            found.append(Pair(torch.tensor(base), torch.tensor(donor), LogitDifference(*answers)))
    return found


def test_a_quarter_of_the_heads_carries_the_task(record_property):
    """The 8 heads of largest effect keep 80% or more of other sentences' logit difference, random 8 ≤ 30%."""
    model, tokenizer = small.load("tiny")
    heads = circuit(SitePatching("z", (None,)).run(model, sentences(tokenizer, 16, 0)), 8)
    held_out = sentences(tokenizer, 16, 1)
    kept = float(kept_by(model, held_out, heads).median())
    random = [float(kept_by(model, held_out, Random(s).sample(heads_of(model), 8)).median()) for s in range(5)]
    record_property("kept", f"{kept:.0%} by 8 of 32 heads, by random eights at most {max(random):.0%}")
    assert kept >= 0.8
    assert max(random) <= 0.3
