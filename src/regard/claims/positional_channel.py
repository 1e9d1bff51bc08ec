"""The channel of hidden states that counts places: planted and found in SmolLM2, then scaled in its lookups."""

from __future__ import annotations

from statistics import mean

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from regard.claims.cells import measured, quick
from regard.claims.figures import Figures, Finding, half_width, interval, listed
from regard.claims.testbeds.key_values import CONTEXT, DEPTHS, DIGITS, Lookups, drawn, gain, smollm2
from regard.core.edit import Edit, Place, Where
from regard.edits.positional_hidden import PositionalHidden
from regard.hosts import caches
from regard.hosts.positional import candidates, mean_states, random_strings
from regard.hosts.steer import steer

LAYERS = range(9, 24)
"""The authors' 10 to 25 of 32 layers, of SmolLM2's 30."""
LATE = slice(CONTEXT, None)
CHANNELS, DRAWS = 576, 5
"""Channels of hidden states, and how many at random the one that is found is held against."""


class Planted(Edit):
    """What grows with the place, added to one channel of the states that come into the second block."""

    parts = ("resid",)

    def __init__(self, channel: int, size: float) -> None:
        super().__init__(Where([1]))
        self.channel, self.size = channel, size

    def hidden(self, x: Tensor, place: Place) -> Tensor:
        grows = self.size * x.std() * (place.query_positions / place.m).to(x)
        x = x.clone()
        x[..., self.channel] += grows
        return x


@torch.no_grad()
def read(lookups: Lookups, *edits: Edit) -> Tensor:
    """The mean log-probability of a digit ``(contexts, depths)``; a context is read once for all of its questions."""
    model, _ = smollm2()
    found = []
    for contexts, asked in zip(lookups.contexts.split(4), lookups.asked.split(4), strict=True):
        cache, rows = DynamicCache(config=model.config), asked.flatten(0, 1)
        with steer(model, *edits):
            model(input_ids=contexts, logits_to_keep=1, **caches.given(model, cache))
            cache.batch_repeat_interleave(asked.shape[1])
            logits = model(input_ids=rows[:, :-1], logits_to_keep=DIGITS, **caches.given(model, cache)).logits
        told = logits.float().log_softmax(-1).gather(2, rows[:, -DIGITS:, None])[..., 0].mean(1)
        found.append(told.view(len(contexts), -1))
    return torch.cat(found)


@measured(seed=range(3), texts=[6], length=[560])
def planted(seed: int, texts: int, length: int) -> dict[str, float]:
    """At which place of the list of candidates a planted channel stands, from 1; 0 where it is not among ten."""
    model, tokenizer = smollm2()
    channel = int(torch.randint(CHANNELS, (), generator=torch.Generator().manual_seed(seed)))
    states = mean_states(model, random_strings(tokenizer, texts, length, seed), Planted(channel, 20.0))
    found = candidates(states)
    return {"place": 1.0 + found.index(channel) if channel in found else 0.0, "candidates": len(found)}


def found(found: Figures) -> Finding:
    """Among the first three in every draw."""
    places = found("place")
    return Finding.of(f"at place {listed(places, '.0f')} of the candidates", all(0 < place <= 3 for place in places))


@quick(texts=[2], searched=[1], held_out=[2])
@measured(texts=[12], length=[560], searched=[3], held_out=[12])
def scaled(texts: int, length: int, searched: int, held_out: int) -> dict[str, float | str]:
    """Candidates from random texts, the best channel and factor by lookups that are searched, then on others."""
    model, tokenizer = smollm2()
    tried = candidates(mean_states(model, random_strings(tokenizer, texts, length)))
    seen, unseen = drawn(searched, 21), drawn(held_out, 22)
    plain = read(seen)

    def edit(channel: int, factor: float) -> PositionalHidden:
        return PositionalHidden([channel], factor, layers=LAYERS, rows=LATE)

    if not tried:
        return {"candidates": 0}

    def gained(channel: int, factor: float) -> float:
        return gain(plain, read(seen, edit(channel, factor)))[0]

    channels = {channel: gained(channel, 0.0) for channel in tried}
    first = max(tried, key=lambda channel: channels[channel])
    best = first, max((0.0, -1.0), key=lambda factor: channels[first] if factor == 0 else gained(first, factor))
    before, after = read(unseen), read(unseen, edit(*best))
    worst = int(before.mean(0).argmin())
    told: dict[str, float | str] = {"candidates": len(tried), "channel": best[0], "factor": best[1]}
    for name, columns in (("worst", [worst]), ("all", list(range(before.shape[1])))):
        most, low, high = gain(before[:, columns], after[:, columns])
        told |= {f"{name} gain": most, f"{name} low": low, f"{name} high": high}
    order = torch.randperm(CHANNELS, generator=torch.Generator().manual_seed(5)).tolist()
    for draw, other in enumerate([channel for channel in order if channel not in tried][:DRAWS]):
        edited = read(unseen, edit(other, best[1]))
        told[f"random {draw}"] = gain(before[:, [worst]], edited[:, [worst]])[0]
    return told | {f"at {depth}": value for depth, value in zip(DEPTHS, (after - before).mean(0).tolist(), strict=True)}


def evens_out(found: Figures) -> Finding:
    """The worst place gains, its interval above zero, more than by any random channel; the mean loses nothing; random
    channels gain nothing, the interval of their mean being not above zero."""
    if not found.one("candidates"):
        return Finding.of("no channel is monotone in more than a quarter of SmolLM2's layers", False)
    worst, every = ([found.one(f"{name} {what}") for what in ("gain", "low", "high")] for name in ("worst", "all"))
    random = [found.one(f"random {draw}") for draw in range(DRAWS)]
    figure = (
        f"channel {found.one('channel'):.0f} times {found.one('factor'):g}: log-probability of a digit at the worst "
        f"place {worst[0]:+.3f} ({worst[1]:+.3f} to {worst[2]:+.3f}), everywhere {every[0]:+.3f}, {DRAWS} random "
        f"channels {interval(random)}, {max(random):+.3f} at most"
    )
    nothing = mean(random) - half_width(random) <= 0
    return Finding.of(figure, worst[1] > 0, worst[0] > max(random), every[0] >= 0, nothing)
