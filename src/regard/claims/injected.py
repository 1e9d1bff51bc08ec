"""Sentences of a summary, and of a new topic, found by small encoders whose heads are given patterns or are not."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.analysis.base import DenseMaps, Prompt
from regard.analysis.human_patterns import PATTERNS, HumanPatterns, PatternEncoder
from regard.analysis.projected_patterns import ProjectedPatterns
from regard.claims.cells import measured, quick
from regard.claims.figures import Figures, Finding, listed
from regard.hosts.small import load
from regard.train.fit import Recipe, fit

SENTENCES, WORDS, VOCABULARY, CHOSEN, TOPICS = 8, 5, 120, 3, 6
PLACES = SENTENCES * (WORDS + 1)
"""Each sentence ends with the token 0."""
GIVEN: dict[str, tuple[str | None, ...]] = {"learned": (None,) * 4, "injected": PATTERNS}

Task = Callable[[int, Generator], tuple[Tensor, Tensor]]


def summaries(count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Texts ``(b, n)`` of words that come once each, but that three sentences share a word with another one of the
    three; and which sentences these are ``(b, sentences)``."""
    words = 1 + torch.rand(count, VOCABULARY - 1, generator=generator).argsort(1)[:, : SENTENCES * WORDS]
    texts = words.view(count, SENTENCES, WORDS)
    chosen = torch.rand(count, SENTENCES, generator=generator).argsort(1)[:, :CHOSEN]
    place = torch.randint(WORDS, (count, CHOSEN), generator=generator)
    row = torch.arange(count)[:, None]
    texts[row, chosen, place] = texts[row, chosen, place][:, :1]
    marked = torch.zeros(count, SENTENCES).scatter(1, chosen, 1.0)
    return F.pad(texts, (0, 1)).flatten(1), marked


def segments(count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Texts ``(b, n)`` of sentences of topics, two fifths of whose words are of any topic; and before which sentences
    the topic changes, told at the sentence before."""
    changes = (torch.rand(count, SENTENCES, generator=generator) < 0.35).long()
    steps = changes * torch.randint(1, TOPICS, (count, SENTENCES), generator=generator)
    topics = (torch.randint(TOPICS, (count, 1), generator=generator) + steps.cumsum(1)) % TOPICS
    size = (VOCABULARY - 1) // TOPICS
    shape = (count, SENTENCES, WORDS)
    own = topics[..., None] * size + torch.randint(size, shape, generator=generator)
    other = torch.randint(VOCABULARY - 1, shape, generator=generator)
    words = 1 + torch.where(torch.rand(shape, generator=generator) < 0.4, other, own)
    return F.pad(words, (0, 1)).flatten(1), F.pad(changes[:, 1:], (0, 1)).float()


def trained(task: Task, heads: str, seed: int, steps: int) -> PatternEncoder:
    """An encoder after so many batches of 32 texts."""
    model = PatternEncoder(VOCABULARY, GIVEN[heads], PLACES, seed=seed)

    def loss(ready: PatternEncoder, generator: Generator) -> Tensor:
        texts, wanted = task(32, generator)
        return F.binary_cross_entropy_with_logits(ready(texts)[:, WORDS :: WORDS + 1], wanted)

    return fit(model, loss, Recipe(steps, 3e-3, seed=seed))  # pyright: ignore


@torch.no_grad()
def f1(model: PatternEncoder, task: Task) -> float:
    """F1 of the sentences that are told, of 512 texts that were not trained on."""
    texts, wanted = task(512, Generator().manual_seed(7_919))
    told = model(texts)[:, WORDS :: WORDS + 1] > 0
    return float(2 * (told & wanted.bool()).sum() / (told.sum() + wanted.sum()).clamp(min=1))


def lifts(model: PatternEncoder, task: Task) -> dict[str, float]:
    """By pattern: the relevance of the head for which it is highest, over chance."""
    texts = [Prompt(ids) for ids in task(32, Generator().manual_seed(11))[0]]
    found = {}
    for pattern in PATTERNS:
        analysis = HumanPatterns(pattern)
        with torch.no_grad():
            scores = analysis.run(DenseMaps(lambda ids: model.maps(ids)[1]), texts)
        found[pattern] = scores.ranked()[0][2] / analysis.chance(texts)
    return found


def told_by(task: Task, heads: str, seed: int, steps: int) -> dict[str, float]:
    """F1, the most that any head's relevance is over chance, and parameters of scores."""
    model = trained(task, heads, seed, steps)
    scored = sum(part.score.weight.numel() for part in model.attention)  # pyright: ignore
    return {"f1": f1(model, task), "scored": scored, **lifts(model, task)}


@measured(heads=tuple(GIVEN), seed=range(3), steps=[800])
def of_summaries(heads: str, seed: int, steps: int) -> dict[str, float]:
    """Sentences of which two or three share a word."""
    return told_by(summaries, heads, seed, steps)


FIRST, STOP = 2000, 1012
"""MiniLM's tokens that stand for the words, from here on, and its full stop."""


@quick(heads=["injected"], seed=[0], steps=[2])
@measured(heads=tuple(GIVEN), seed=range(2), steps=[60])
def of_pretrained(heads: str, seed: int, steps: int) -> dict[str, float]:
    """Sentences that share a word, told by projected layers in MiniLM, which stays as it was trained."""
    model, _ = load("minilm")
    model.requires_grad_(False)
    layers = ProjectedPatterns(model, GIVEN[heads], stop=STOP, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trained = nn.ModuleList([layers, nn.Linear(model.config.hidden_size, 1)])

    def told(texts: Tensor) -> Tensor:
        ids = torch.where(texts > 0, FIRST + texts, STOP)
        with layers.inside(model):
            return trained[1](model(input_ids=ids).last_hidden_state[:, WORDS :: WORDS + 1])[..., 0]

    def loss(ready: nn.Module, generator: Generator) -> Tensor:
        texts, wanted = summaries(12, generator)
        return F.binary_cross_entropy_with_logits(told(texts), wanted)

    fit(trained, loss, Recipe(steps, 3e-3, seed=seed))
    texts, wanted = summaries(64, Generator().manual_seed(7_919))
    with torch.no_grad():
        found = told(texts) > 0
    right = 2 * (found & wanted.bool()).sum() / (found.sum() + wanted.sum()).clamp(min=1)
    scored = sum(part.score.weight.numel() for part in layers.attention)  # pyright: ignore
    return {"f1": float(right), "scored": scored}


@measured(heads=tuple(GIVEN), seed=range(3), steps=[800])
def of_segments(heads: str, seed: int, steps: int) -> dict[str, float]:
    """Sentences before which the topic changes."""
    return told_by(segments, heads, seed, steps)


def help_to(found: Figures) -> Finding:
    """F1 two points above that of learned heads, in every seed, with half of the parameters of scores."""
    learned, injected = (found("f1", heads=heads) for heads in GIVEN)
    fewer = found("scored", heads="injected")[0] / found("scored", heads="learned")[0]
    figure = (
        f"F1 {listed(injected, '.1%')} with patterns, {listed(learned, '.1%')} without; {fewer:.0%} of the scores' "
    )
    figure += "parameters"
    return Finding.of(figure, all(a >= b + 0.02 for a, b in zip(injected, learned, strict=True)), fewer <= 0.5)


def are_found(found: Figures) -> Finding:
    """The pattern that the task needs, matching words, in every seed of the models without patterns."""
    told = {pattern: found(pattern, heads="learned") for pattern in PATTERNS}
    figure = "; ".join(f"{pattern} {listed(values, '.1f')}" for pattern, values in told.items())
    return Finding.of(f"relevance over chance of the best head: {figure}", min(told["matching"]) >= 2)
