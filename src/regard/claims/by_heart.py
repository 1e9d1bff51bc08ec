"""Paragraphs that regard-tiny is made to know by heart: where their gradients are, and what it takes to forget them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from regard.analysis.base import Prompt
from regard.analysis.paragraph_memory import (
    ParagraphMemory,
    block_gradients,
    continuation_loss,
    forgetting,
    lower_share,
)
from regard.analysis.retrieval_heads import manual
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.hosts.small import load
from regard.train.fit import Recipe, fit

PREFIX, TOKENS, PLANTED, OTHERS = 32, 64, 8, 16
"""Tokens of a prefix, of a paragraph; paragraphs known by heart, and as many that are to be kept; unseen ones."""


@measured(seed=range(2), steps=[40])
def of_tiny(seed: int, steps: int) -> dict[str, float]:
    """Of texts that are recited after training, and of unseen ones: lower layers' shares, what forgetting leaves."""
    from scipy.stats import mannwhitneyu

    model, planted, kept, unseen = learned(seed, steps)
    known = ParagraphMemory().run(model, planted).memorised.tolist()
    planted = [text for text, by_heart in zip(planted, known, strict=True) if by_heart] or planted
    lower = [[lower_share(block_gradients(model, text)) for text in some] for some in (planted, unseen)]
    figures = {"recited": sum(known) / len(known), "unseen": recited(model, unseen)}
    figures |= {"lower": mean(lower[0]), "lower unseen": mean(lower[1])}
    figures["p"] = float(mannwhitneyu(*lower, alternative="greater").pvalue)  # pyright: ignore[reportArgumentType]
    before = text_loss(model, unseen)
    with forgetting(model, planted, kept, steps=30, rate=1e-2) as masks:
        figures |= {"left": recited(model, planted), "rise": text_loss(model, unseen) / before - 1}
    draw = Generator().manual_seed(seed)
    share = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
    random = {name: torch.rand(mask.shape, generator=draw) < share for name, mask in masks.items()}
    with forgetting(model, planted, kept, steps=30, rate=1e-2, chosen=random):
        figures["left by random"] = recited(model, planted)
    return figures


@measured(seed=range(2), steps=[40])
def changed(seed: int, steps: int) -> dict[str, float]:
    """Of texts known by heart: what is recited after they are made others, and of these; loss of unseen ones.

    The perturbed texts have other texts' continuations.
    """
    model, planted, kept, unseen = learned(seed, steps)
    known = ParagraphMemory().run(model, planted).memorised.tolist()
    texts = [text for text, by_heart in zip(planted, known, strict=True) if by_heart] or planted
    others = [
        Prompt(torch.cat([text.ids[:PREFIX], other.ids[PREFIX:]]), answer=PREFIX)
        for text, other in zip(texts, unseen, strict=False)
    ]
    before = text_loss(model, unseen)
    with forgetting(model, texts, kept, steps=30, rate=1e-2, towards=others):
        figures = {"left": recited(model, texts), "rise": text_loss(model, unseen) / before - 1}
        said = [model(input_ids=text.ids[None]).logits[0, PREFIX - 1 : -1].argmax(1) for text in texts]
        right = [float((a == b.ids[PREFIX:]).double().mean()) for a, b in zip(said, others, strict=True)]
    return {"recited": sum(known) / len(known), **figures, "others": mean(right)}


def learned(seed: int, steps: int) -> tuple[Any, list[Prompt], list[Prompt], list[Prompt]]:
    """The model, texts that it was made to know by heart, as many that it is to keep, and unseen ones."""
    model, tokenizer = load("tiny")
    ids = torch.tensor(tokenizer(manual(), verbose=False).input_ids)
    texts = [Prompt(ids[i : i + TOKENS], answer=PREFIX) for i in range(0, len(ids) - TOKENS, TOKENS)]
    order = torch.randperm(len(texts), generator=Generator().manual_seed(seed)).tolist()
    planted, kept, unseen, rest = parted([texts[i] for i in order], PLANTED, PLANTED, OTHERS)

    def loss(ready: Any, generator: Generator) -> Tensor:
        drawn = [rest[i] for i in torch.randint(len(rest), (PLANTED,), generator=generator).tolist()]
        batch = torch.stack([text.ids for text in [*planted, *drawn]])
        return ready(input_ids=batch, labels=batch, use_cache=False).loss

    fit(model, loss, Recipe(steps, 1e-3, decay=0, seed=seed))
    return model, planted, kept, unseen


def parted(texts: Sequence[Prompt], *sizes: int) -> list[list[Prompt]]:
    """Parts of these sizes, and the rest."""
    found, at = [], 0
    for size in sizes:
        found.append(list(texts[at : at + size]))
        at += size
    return [*found, list(texts[at:])]


def recited(model: Any, texts: Sequence[Prompt]) -> float:
    """The share of texts that are recited to the end."""
    return float(ParagraphMemory().run(model, texts).memorised.double().mean())


@torch.no_grad()
def text_loss(model: Any, texts: Sequence[Prompt]) -> float:
    """The mean loss of the texts' continuations."""
    return mean([float(continuation_loss(model, text)) for text in texts])


def mean(values: Sequence[float]) -> float:
    """Of at least one."""
    return sum(values) / len(values)


def is_known_below(found: Figures) -> Finding:
    """At a level of 1%, in every seed."""
    own, other, levels = (found(name) for name in ("lower", "lower unseen", "p"))
    figure = (
        f"the lower half of regard-tiny has {listed(own, '.1%')} of the gradients' norms of texts known by heart, "
        f"{listed(other, '.1%')} of those of unseen ones (p {listed(levels, '.2g')})"
    )
    return Finding.of(figure, max(levels) < 0.01)


def is_forgotten(found: Figures) -> Finding:
    """Of texts that were all recited; a random thousandth forgets fewer."""
    before, left, rise, random = (found(name) for name in ("recited", "left", "rise", "left by random"))
    figure = (
        f"of {PLANTED} texts {listed(before, '.0%')} are recited, of those {listed(left, '.0%')} after 30 steps of a "
        f"thousandth of the weights, {listed(random, '.0%')} of a random thousandth; the loss of unseen ones moves by "
        f"{listed(rise, '+.1%')}"
    )
    fewer = [now < other for now, other in zip(left, random, strict=True)]
    return Finding.of(figure, min(before) > 0, max(left) <= 0.2, max(rise) <= 0.02, all(fewer))


def is_changed(found: Figures) -> Finding:
    """At most a fifth is recited as it was, half of the tokens that are told behind it are the others', and the loss of
    unseen texts rises by 5% at most."""
    left, others, rise = (found(name) for name in ("left", "others", "rise"))
    figure = (
        f"towards perturbed texts {listed(left, '.0%')} of those known by heart are recited, {listed(others, '.0%')} "
        f"of the tokens are the perturbed ones'; the loss of unseen texts moves by {listed(rise, '+.1%')}"
    )
    return Finding.of(figure, max(left) <= 0.2, min(others) >= 0.5, max(rise) <= 0.05)
