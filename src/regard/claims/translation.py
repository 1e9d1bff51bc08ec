"""Translators of a toy language that read their source by different mechanisms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import regard
from regard.analysis.align import Alignment, align
from regard.claims.cells import Cells, measured
from regard.claims.figures import Figures, Finding, listed
from regard.experiments.cell import Cell
from regard.networks.encoder_decoder import EncoderDecoder
from regard.networks.multi_source import MultiSource
from regard.tasks.translation import Pairs, Translation
from regard.train.fit import Recipe, Step, fit

TASK = Translation()
SIZE = 32


def loss_of(model: nn.Module, pairs: Pairs) -> Tensor:
    """The cross-entropy of the tokens that are no padding."""
    logits = model(pairs.source, pairs.target, pairs.lengths)
    return F.cross_entropy(logits[pairs.real], pairs.target[pairs.real])


def trained(task: Translation, reader: str | None, seed: int, steps: int) -> EncoderDecoder:
    """A translator that has learned from sentences of its own."""
    model = EncoderDecoder(task.source, task.target, 64, reader, seed=seed)
    recipe = Recipe(steps, 5e-3, seed=seed, decay=0.0)
    fit(model, lambda model, drawn: loss_of(model, task.batch(SIZE, drawn)), recipe)
    return model


@measured(reader=("none", "luong_general", "local_p", "local_m"), seed=range(2), steps=[200])
def translated(reader: str, seed: int, steps: int) -> dict[str, float]:
    """The share of tokens that a trained translator gets right, writing by itself, and its alignment error."""
    model = trained(TASK, None if reader == "none" else reader, seed, steps)
    pairs = TASK.batch(256, Generator().manual_seed(99))
    found = model.generate(pairs.source, pairs.target.shape[1], pairs.lengths)
    right = (((found == pairs.target) & pairs.real).sum() / pairs.real.sum()).item()
    if reader == "none":
        return {"right": right}
    soft = align(model, pairs.source, pairs.target, pairs.lengths).soft * pairs.real[..., None]
    return {"right": right, "error": Alignment(soft).error(pairs.links)}


def translators(reader: str) -> list[Cell]:
    """Those that do not read, and those that read by a mechanism."""
    return [cell for cell in translated if cell.fields["reader"] in ("none", reader)]


def better_than_none(found: Figures, points: float) -> Finding:
    """In each seed so much more of the tokens is right."""
    none = found("right", reader="none")
    reader = next(row["reader"] for row in found.rows if row["reader"] != "none")
    right, errors = found("right", reader=reader), found("error", reader=reader)
    figure = f"tokens right: {reader} {listed(right, '.1%')}, without reading {listed(none, '.1%')}"
    more = min(ours - theirs for ours, theirs in zip(right, none, strict=True))
    return Finding.of(f"{figure}; alignment error {listed(errors, '.3f')}", more >= points)


@measured(reader=("local_p", "local_m"), m=(64, 256, 1024))
def scores_near(reader: str, m: int) -> dict[str, float]:
    """Scores for each query over m keys, D = 10, from the operations that are counted."""
    mechanism, d = regard.build(reader, heads=1, head_dim=16, score="dot(scale=1.0)"), 16
    q, k = torch.randn(1, 1, 8, d), torch.randn(1, 1, m, d)
    given = {"place": torch.arange(8.0).expand(1, 1, -1)} if mechanism.signals else {}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        mechanism(q, k, k, **given)
    predicted = d * d + d if reader == "local_p" else 0
    return {"scores": (counter.get_total_flops() / 2 / 8 - predicted) / (2 * d)}


def scores_of_local(reader: str) -> Cells:
    """Those of one reader."""
    return scores_near.where(reader=[reader])


def is_flat(found: Figures) -> Finding:
    """21 at every length."""
    scores = found("scores")
    return Finding.of(f"{listed(scores, '.0f')} scores a query over 64, 256 and 1,024 keys", max(scores) <= 21)


FILLED = Translation(fillers=True)


@measured(seed=range(2), steps=[300])
def looking_away(seed: int, steps: int) -> dict[str, float]:
    """The sentinel's mean share at words that stand for something in the source, and at fillers, which do not."""
    model = trained(FILLED, "sentinel(score=network(hidden=64))", seed, steps)
    pairs = FILLED.batch(256, Generator().manual_seed(99))
    found = model.generate(pairs.source, pairs.target.shape[1], pairs.lengths)
    away = 1 - align(model, pairs.source, pairs.target, pairs.lengths).soft.sum(-1)
    right = ((found == pairs.target) & pairs.real).sum() / pairs.real.sum()
    word, filler = pairs.real & (pairs.links >= 0), pairs.real & (pairs.links < 0)
    return {"right": right.item(), "word": away[word].mean().item(), "filler": away[filler].mean().item()}


def looks_away(found: Figures) -> Finding:
    """The sentinel has at least 0.15 more at fillers, and 95% of the tokens are right."""
    words, fillers, right = (found(name) for name in ("word", "filler", "right"))
    figure = f"the sentinel's share at fillers {listed(fillers, '.2f')}, at words {listed(words, '.2f')}"
    more = min(b - a for a, b in zip(words, fillers, strict=True))
    return Finding.of(f"{figure}; right {listed(right, '.1%')}", more >= 0.15, min(right) >= 0.95)


WORDS, PLACES, SURE = 20, 8, 0.01
"""Words and their places, and the mean loss of fifty batches below which a translator needs no more training."""


def split_words(count: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Sources ``(b, 2, n)``, the target ``(b, n)``, and which source has each word; the other has a blank there."""
    words = torch.randint(WORDS, (count, PLACES), generator=generator)
    which = torch.randint(2, words.shape, generator=generator)
    blank = torch.full_like(words, WORDS)
    return torch.stack([torch.where(which == place, words, blank) for place in range(2)], 1), words, which


@measured(strategy=("flat", "hierarchical", "first"), seed=range(3), steps=[2000])
def sources(strategy: str, seed: int, steps: int) -> dict[str, float]:
    """Words right of a translator that reads two sources, or the first alone; how often it looks at the right one."""
    single = strategy == "first"
    model = (
        MultiSource(WORDS + 1, WORDS, 64, 1 if single else 2, "flat" if single else strategy, seed=seed)  # pyright: ignore
    )

    def cut(source: Tensor) -> Tensor:
        return source[:, :1] if single else source

    def loss(model: nn.Module, drawn: Generator) -> Tensor:
        source, words, _ = split_words(SIZE, drawn)
        return F.cross_entropy(model(cut(source), words).flatten(0, 1), words.flatten())

    losses: list[float] = []

    def known(step: Step) -> bool:
        losses.append(step.loss)
        return len(losses) >= 50 and sum(losses[-50:]) < 50 * SURE

    fit(model, loss, Recipe(steps, 5e-3, seed=seed, decay=0.0), until=known)
    source, words, which = split_words(256, Generator().manual_seed(99))
    right = (model.generate(cut(source), PLACES) == words).double().mean().item()
    if single:
        return {"right": right}
    looked = model.shares(source, words).argmax(-1)
    return {"right": right, "looked": (looked == which).double().mean().item()}


def two_are_better(found: Figures) -> Finding:
    """By 10 points in every seed."""
    one = found("right", strategy="first")
    both = {name: found("right", strategy=name) for name in ("flat", "hierarchical")}
    figure = "; ".join(f"{name} {listed(values, '.1%')}" for name, values in both.items())
    more = min(a - b for values in both.values() for a, b in zip(values, one, strict=True))
    return Finding.of(f"words right: {figure}; one source {listed(one, '.1%')}", more >= 0.1)


def look_at_the_right_one(found: Figures) -> Finding:
    """In every seed."""
    looked = {name: found("looked", strategy=name) for name in ("flat", "hierarchical")}
    figure = "; ".join(f"{name} {listed(values, '.1%')}" for name, values in looked.items())
    return Finding.of(f"steps that look at the source with the word: {figure}", min(map(min, looked.values())) >= 0.85)
