"""MiniLM's heads as parsers of drawn sentences, alone and together, and how alike the heads of a layer are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from regard.analysis.base import Prompt
from regard.analysis.head_divergence import HeadDivergence, every_map
from regard.analysis.relation_heads import RelationHeads, Sentence, attention_probe, word_map
from regard.analysis.retrieval_heads import manual
from regard.analysis.word_probe import AntecedentHeads, word_probe
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.claims.testbeds.trees import RELATIONS, referring, sentences
from regard.hosts.small import load

COUNT, DRAWS = 60, 5
"""Sentences that heads are chosen on, and as many that they are measured on; shuffled trees."""


@measured()
def of_minilm() -> dict[str, float]:
    """By relation the accuracy on unseen sentences of the head that was best, of the best offset; on shuffled trees.

    Then of the probe of all heads, and of the best single one, for all relations together.
    """
    model, tokenizer = load("minilm")
    seen, unseen = (sentences(tokenizer, COUNT, seed) for seed in (0, 1))
    analysis, figures = RelationHeads(RELATIONS), dict[str, float]()
    chosen, found = analysis.run(model, seen), analysis.run(model, unseen)
    for relation in RELATIONS:
        way, head, _ = chosen.best(relation)
        figures |= {relation: found.accuracy(relation, way, head), f"{relation} offset": found.offset(relation)[1]}
    for draw in range(DRAWS):
        random = analysis.run(model, [shuffled(one, draw) for one in unseen])
        right = [random.accuracy(relation, *chosen.best(relation)[:2]) for relation in RELATIONS]
        figures[f"random {draw}"] = sum(right) / len(right)
    maps, gold = parts(model, seen), [one.heads for one in seen]
    figures["probe"] = attention_probe(maps, gold).right(parts(model, unseen), [one.heads for one in unseen])
    together = (found.hits.sum(3) / found.totals.sum()).flatten()
    return figures | {"single": float(together[int(chosen.hits.sum(3).flatten().argmax())])}


def shuffled(sentence: Sentence, seed: int) -> Sentence:
    """The same words with heads in another order."""
    order = torch.randperm(len(sentence.heads), generator=torch.Generator().manual_seed(seed)).tolist()
    return replace(sentence, heads=tuple(sentence.heads[i] for i in order))


def parts(model: Any, some: Sequence[Sentence]) -> list[Tensor]:
    """Maps between the words of each sentence, ``(heads of all layers, words, words)``."""
    return [torch.cat([word_map(of, one.words) for of in every_map(model, one.ids)]) for one in some]


def heads_beat_offsets(found: Figures) -> Finding:
    """By ten points, for at least three relations."""
    gains = {relation: found.one(relation) - found.one(f"{relation} offset") for relation in RELATIONS}
    told = ", ".join(
        f"{name} {found.one(name):.0%} against {found.one(f'{name} offset'):.0%}" for name in sorted(gains)
    )
    random = listed([found.one(f"random {draw}") for draw in range(DRAWS)], ".0%")
    figure = f"MiniLM's heads against offsets: {told}; on shuffled trees {random} on average"
    return Finding.of(figure, sum(gain >= 0.1 for gain in gains.values()) >= 3)


def together_they_find_more(found: Figures) -> Finding:
    """On unseen sentences."""
    probe, single = found.one("probe"), found.one("single")
    return Finding.of(
        f"a probe of all heads finds {probe:.0%} of the heads of words, the best one {single:.0%}", probe > single
    )


CHANNELS = 8
"""Of the words' vectors that a probe reads."""


@measured()
def with_words() -> dict[str, float]:
    """Heads of words on unseen sentences by the probe of attention, by that which reads the words, and by words whose
    vectors are dealt anew."""
    model, tokenizer = load("minilm")
    seen, unseen = (sentences(tokenizer, COUNT, seed) for seed in (0, 1))
    table = model.get_input_embeddings().weight.detach().double()
    _, _, axes = torch.pca_lowrank(table[torch.cat([one.ids for one in seen])], CHANNELS, niter=4)
    maps = [parts(model, some) for some in (seen, unseen)]
    gold = [[one.heads for one in some] for some in (seen, unseen)]
    figures = {"attention": attention_probe(maps[0], gold[0]).right(maps[1], gold[1])}
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    for name, of in (("words", table), ("random", table[order])):
        words = [[vectors(of, one) @ axes for one in some] for some in (seen, unseen)]
        size = torch.cat(words[0]).std()
        words = [[one / size for one in some] for some in words]
        figures[name] = word_probe(maps[0], words[0], gold[0]).right(maps[1], words[1], gold[1])
    return figures


def vectors(table: Tensor, sentence: Sentence) -> Tensor:
    """``(words, channels)``: the mean embedding of each word's pieces."""
    return torch.stack([table[sentence.ids[list(slots)]].mean(0) for slots in sentence.words])


def words_help(found: Figures) -> Finding:
    """More than attention alone, and than with the vectors of other words."""
    plain, words, random = (found.one(name) for name in ("attention", "words", "random"))
    figure = f"a probe of attention finds {plain:.0%} of the heads of words, with words {words:.0%}"
    figure = f"{figure}, with others' vectors {random:.0%}"
    return Finding.of(figure, words > plain, words > random)


@measured()
def antecedents() -> dict[str, float]:
    """Pronouns of drawn sentences whose antecedent is found by the head that is best on others; baselines."""
    model, tokenizer = load("minilm")
    seen, unseen = (referring(tokenizer, COUNT, seed) for seed in (0, 1))
    head, _ = AntecedentHeads().run(model, seen).best()
    found = AntecedentHeads().run(model, unseen)
    return {"head": found.of(head), "nearest": found.nearest / found.total, "first": found.first / found.total}


def a_head_refers(found: Figures) -> Finding:
    """By ten points on sentences that it was not chosen on, over the first candidate, too."""
    head, nearest, first = (found.one(name) for name in ("head", "nearest", "first"))
    figure = f"MiniLM's best head finds {head:.0%} of antecedents"
    figure = f"{figure}, which are the nearest candidate in {nearest:.0%} and the first in {first:.0%}"
    return Finding.of(figure, head - max(nearest, first) >= 0.1)


@measured()
def layers_of_minilm() -> dict[str, float]:
    """The mean divergence of MiniLM's heads from those of their layer and of others, and with layers permuted."""
    model, tokenizer = load("minilm")
    ids = torch.tensor(tokenizer(manual(), add_special_tokens=False).input_ids)
    far = HeadDivergence().run(model, [Prompt(ids[start : start + 64]) for start in range(0, 512, 64)])
    layers = torch.tensor([layer for layer, _ in far.heads])
    figures = {"gap": gap(far.mean, layers), "mean": float(far.mean.mean())}
    for draw in range(DRAWS):
        order = torch.randperm(len(layers), generator=torch.Generator().manual_seed(draw))
        figures[f"random {draw}"] = gap(far.mean, layers[order])
    return figures


def gap(far: Tensor, layers: Tensor) -> float:
    """By how much heads of different layers are farther apart than those of one."""
    same, other = layers[:, None] == layers, ~torch.eye(len(layers), dtype=torch.bool)
    return float(far[~same].mean() - far[same & other].mean())


def layers_are_alike(found: Figures) -> Finding:
    """More than with any permutation of the layers."""
    near, random = found.one("gap"), [found.one(f"random {draw}") for draw in range(DRAWS)]
    figure = (
        f"MiniLM's heads are {near:.3f} nats farther from those of other layers than of their own, "
        f"{listed(random, '.3f')} with layers permuted; {found.one('mean'):.3f} on average"
    )
    return Finding.of(figure, near > max(0.0, *random))
