"""Chains of pointers: how many layers follow them, what they are learned from, and when heads emerge."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from regard.claims.cells import measured, null, quick
from regard.claims.figures import Figures, Finding, listed
from regard.hosts.small import load
from regard.studies.stacked_heads import ChainReader, Chains, chain_prompt, fewest_layers, hops_by_steps, looks
from regard.tasks.lexicon import NAMES
from regard.train.fit import Recipe, Step, fit

CHAINS, MOST, RATE, BATCH = Chains(), 4, 3e-3, 128
CHANCE = 1 / CHAINS.chains
EMERGED, RIGHT, EVERY = 0.5, 0.9, 20
"""Weight from which a head counts as one that looks there, share of right ends that counts as learned, and steps
between looks."""


def right(model: ChainReader, hops: int, linked: bool = True) -> float:
    """The share of right ends of 1,024 texts that training has not seen."""
    keys, values, ends, _ = CHAINS.batch(1024, hops, Generator().manual_seed(7_919), linked)
    with torch.no_grad():
        return (model(keys, values).argmax(1) == ends).double().mean().item()


def trained(
    layers: int, lengths: list[int], seed: int, steps: int, linked: bool = True, look=lambda step, model: None
) -> ChainReader:
    """A reader after so many batches, each of the next of these lengths."""
    model = ChainReader(CHAINS, layers, seed=seed)
    drawn = Generator().manual_seed(1000 + seed)
    count = iter(range(steps))

    def loss(ready: ChainReader, generator: Generator) -> Tensor:
        keys, values, ends, _ = CHAINS.batch(BATCH, lengths[next(count) % len(lengths)], drawn, linked)
        return F.cross_entropy(ready(keys, values), ends)

    def watched(step: Step) -> bool:
        if step.number % EVERY == 0:
            look(step.number, model)
        return False

    return fit(model, loss, Recipe(steps, RATE, decay=0.0), until=watched)  # pyright: ignore


@quick(layers=[1], seed=[0], steps=[60])
@null(linked=[False])
@measured(layers=(1, 2, 3), linked=[True], seed=range(3), steps=[2400])
def depths(layers: int, linked: bool, seed: int, steps: int) -> dict[str, float]:
    """The share of right ends after one to four hops, after training on all of them. Null: values dealt anew."""
    model = trained(layers, list(range(1, MOST + 1)), seed, steps, linked)
    return {f"right {hops}": right(model, hops, linked) for hops in range(1, MOST + 1)}


def need_layers(found: Figures) -> Finding:
    """99% of chains of up to 2ᵗ − 1 hops, in every seed; where the bound forbids it 10 points above chance at most."""
    told, followed, chance = [], [], []
    for layers in dict.fromkeys(found("layers")):
        rows = {hops: found(f"right {hops}", layers=layers) for hops in range(1, MOST + 1)}
        told.append(f"{layers} layers: {listed((min(row) for row in rows.values()), '.0%')}")
        followed += [min(row) >= 0.99 for hops, row in rows.items() if hops <= hops_by_steps(layers)]
        chance += [max(row) <= CHANCE + 0.1 for hops, row in rows.items() if fewest_layers(hops) > layers]
    figure = f"right ends of chains of one to four hops, of the worst seed: {'; '.join(told)}; chance {CHANCE:.0%}"
    return Finding.of(figure, all(followed), all(chance))


@quick(seed=[0], steps=[60])
@null(linked=[False])
@measured(mixed=(True, False), linked=[True], seed=range(3), steps=[900])
def curricula(mixed: bool, linked: bool, seed: int, steps: int) -> dict[str, float]:
    """The share of right ends after three hops by two layers that are trained on one to three, or on three alone."""
    model = trained(2, [1, 2, 3] if mixed else [3], seed, steps, linked)
    return {"right": right(model, 3, linked)}


def need_shorter_ones(found: Figures) -> Finding:
    """95% with them; without them 10 points above chance at most."""
    with_them, alone = (found("right", mixed=mixed) for mixed in (True, False))
    figure = f"three hops: {listed(with_them, '.1%')} with shorter chains, {listed(alone, '.1%')} without"
    return Finding.of(f"{figure}; chance {CHANCE:.0%}", min(with_them) >= 0.95, max(alone) <= CHANCE + 0.1)


@quick(seed=[0], steps=[60])
@null(linked=[False])
@measured(linked=[True], seed=range(5), steps=[900])
def emergence(linked: bool, seed: int, steps: int) -> dict[str, float]:
    """Steps after which a head of the query looks at the first pair, and at those behind it, and after which chains of
    one, two and three hops are followed, by two layers that are trained on all of them; one more than all for never."""
    keys, values, _, places = CHAINS.batch(128, 3, Generator().manual_seed(11))
    first: dict[str, float] = {}

    def look(step: int, model: ChainReader) -> None:
        seen = looks(model, keys, values, places)
        reached = {"head 1": seen[..., 0].max() >= EMERGED, "head 2": seen[..., 1:].sum(-1).max() >= EMERGED}
        reached |= {f"hops {hops}": right(model, hops, linked) >= RIGHT for hops in (1, 2, 3)}
        for name, there in reached.items():
            if bool(there):
                first.setdefault(name, step)

    trained(2, [1, 2, 3], seed, steps, linked, look)
    return {name: first.get(name, steps + 1) for name in ("head 1", "head 2", "hops 1", "hops 2", "hops 3")}


def in_order(found: Figures) -> Finding:
    """In four of five seeds, and all of them within the training: the first head, then the second; one hop, then two,
    then three."""
    heads, hops = ([found(f"{what} {i}") for i in order] for what, order in (("head", (1, 2)), ("hops", (1, 2, 3))))
    steps = found("steps")
    ordered = [
        a < b <= last and one < two <= three <= last
        for a, b, one, two, three, last in zip(*heads, *hops, steps, strict=True)
    ]
    figure = (
        f"a head looks at the first pair after {listed(heads[0], '.0f')} steps, at those behind it after "
        f"{listed(heads[1], '.0f')}; one, two and three hops are followed after "
        f"{'; '.join(listed(row, '.0f') for row in zip(*hops, strict=True))}: in order in {sum(ordered)} seeds"
    )
    return Finding.of(figure, sum(ordered) >= 0.8 * len(steps))


ASKED = 24
"""Prompts of each number of hops."""


@measured(hops=(1, 2, 3))
def of_smollm2(hops: int) -> dict[str, float]:
    """The share of prompts whose right end is the likeliest of the four for SmolLM2."""
    model, tokenizer = load("smollm2")
    draw, right = Generator().manual_seed(hops), 0
    words = [name for name in NAMES if len(tokenizer(f" {name}", add_special_tokens=False).input_ids) == 1]
    chains = Chains(CHAINS.chains, CHAINS.chains * hops)
    for _ in range(ASKED):
        text, ends = chain_prompt(chains, hops, words, draw)
        tokens = [tokenizer(f" {name}", add_special_tokens=False).input_ids[0] for name in ends]
        with torch.no_grad():
            ids = torch.tensor([tokenizer(text).input_ids])
            logits = model(input_ids=ids, logits_to_keep=1, use_cache=False).logits[0, -1]
        right += int(logits[tokens].argmax() == 0)
    return {"right": right / ASKED}


def deep_chains_are_lost(found: Figures) -> Finding:
    """Twice chance or more after one hop, 15 points above chance at most after three."""
    shares = {hops: found.one("right", hops=hops) for hops in (1, 2, 3)}
    told = ", ".join(f"{share:.0%} after {hops}" for hops, share in shares.items())
    figure = f"SmolLM2 tells the right end of four in {told} hops, chance {CHANCE:.0%}"
    return Finding.of(figure, shares[1] >= 2 * CHANCE, shares[3] <= CHANCE + 0.15)
