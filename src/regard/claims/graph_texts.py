"""Graphs that SmolLM2 reads as lists of edges: whether its heads follow them from node to node."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from regard.analysis.base import DenseMaps
from regard.analysis.head_divergence import every_map
from regard.analysis.node_attention import GraphText, HopWindow, NodeAttention, hop_window
from regard.claims.cells import measured, quick
from regard.claims.figures import Figures, Finding, listed
from regard.claims.testbeds.key_values import smollm2
from regard.hosts.attach import attach
from regard.tasks.lexicon import NAMES
from regard.train.fit import Recipe, fit

NODES, EDGES, TEXTS, DRAWS = 8, 9, 3, 5


def graph_text(tokenizer: Any, seed: int) -> GraphText:
    """People and what each is like, then who knows whom: nodes are their names in the first part."""
    draw = Random(seed)
    names, every = draw.sample(NAMES, NODES), [(a, b) for a in range(NODES) for b in range(a)]
    edges = draw.sample(every, EDGES)
    known = " ".join(f"{names[a]} knows {names[b]}." for a, b in edges)
    parts = [known, " The people are"]
    at = [sum(map(len, parts))]
    for index, name in enumerate(names):
        parts.append(f" {name}" + ("," if index < NODES - 1 else "."))
        at.append(at[-1] + len(parts[-1]))
    told = tokenizer("".join(parts), return_offsets_mapping=True, add_special_tokens=False)
    spans = list(zip(at[:-1], [end - 1 for end in at[1:]], strict=True))
    nodes = [
        tuple(i for i, (start, stop) in enumerate(told.offset_mapping) if start < last and stop > first + 1)
        for first, last in spans
    ]
    return GraphText(torch.tensor(told.input_ids), tuple(nodes), tuple(edges))


HABITS = (
    "gets up before the sun and walks along the river until the first boats come in from the bay",
    "has kept a diary for thirty years and reads a page of it aloud to anybody who asks on Sundays",
    "mends clocks for the whole street and never lets one of them strike more than a minute late",
    "grows beans on the roof, which the neighbours are allowed to pick as soon as they are ripe",
    "once crossed the mountains on foot in winter and has told the story so often that it got longer",
    "teaches children to swim in the pond behind the mill, where the water is cold until late in June",
    "collects maps of places that are no longer there and hangs them in the order in which they were lost",
    "sings in two choirs that do not speak with each other and takes care that neither hears of it",
)
"""What is told of a node that carries a text."""


def long_graph_text(tokenizer: Any, seed: int) -> GraphText:
    """Who knows whom, then of each person a text of some twenty words: nodes are these texts."""
    draw = Random(seed)
    names, every = draw.sample(NAMES, NODES), [(a, b) for a in range(NODES) for b in range(a)]
    edges, habits = draw.sample(every, EDGES), draw.sample(HABITS, NODES)
    text, spans = " ".join(f"{names[a]} knows {names[b]}." for a, b in edges), []
    for name, habit in zip(names, habits, strict=True):
        begin = len(text)
        text += f" {name} {habit}."
        spans.append((begin, len(text)))
    told = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    nodes = [
        tuple(i for i, (start, stop) in enumerate(told.offset_mapping) if start < last and stop > first + 1)
        for first, last in spans
    ]
    return GraphText(torch.tensor(told.input_ids), tuple(nodes), tuple(edges))


@measured()
def of_long_texts() -> dict[str, float]:
    """As `of_smollm2`, with nodes that carry texts."""
    return followed(long_graph_text)


@measured()
def of_smollm2() -> dict[str, float]:
    """The correlation of the head that follows edges most, chosen on some graphs and measured on others; shuffled."""
    return followed(graph_text)


def followed(told: Callable[[Any, int], GraphText]) -> dict[str, float]:
    """Of graphs that are told in some way."""
    model, tokenizer = smollm2()
    seen, unseen = ([told(tokenizer, seed) for seed in range(at, at + TEXTS)] for at in (0, TEXTS))
    kept = {tuple(text.ids.tolist()): [of[None] for of in every_map(model, text.ids)] for text in [*seen, *unseen]}
    analysis, read = NodeAttention(), DenseMaps(lambda ids: kept[tuple(ids[0].tolist())])
    layer, head, _ = analysis.run(read, seen).ranked()[0]
    maps = analysis.run(read, unseen)
    every = torch.cat(list(maps.values.values()))
    figures = {"best": maps.of((layer, head)), "mean": float(every.mean()), "most": float(every.max())}
    for draw in range(DRAWS):
        random = analysis.run(read, [text.shuffled(draw) for text in unseen])
        figures[f"random {draw}"] = random.of((layer, head))
        figures[f"mean {draw}"] = float(torch.cat(list(random.values.values())).mean())
    return figures


def edges_are_not_followed(found: Figures) -> Finding:
    """The head chosen on other graphs is within the range of shuffled ones, and so is the mean of all heads."""
    random, means = ([found.one(f"{what} {draw}") for draw in range(DRAWS)] for what in ("random", "mean"))
    best, mean = found.one("best"), found.one("mean")
    figure = (
        f"SmolLM2's head that follows edges most has a correlation of {best:.2f} on other graphs, "
        f"{listed(random, '.2f')} with their nodes exchanged; all heads {mean:.3f} and {listed(means, '.3f')}"
    )
    return Finding.of(figure, best <= max(random), mean <= max(means))


CLASSES, MEMBERS, WORDS, LINKS = 4, 12, 4, 2
"""Of the graphs that a model is trained on: classes, nodes, words of a node's text, of which each is one of its class
by a half, and neighbours that it names."""
FIRST_WORD, FIRST_NAME = CLASSES, CLASSES + 6 * CLASSES
TOKENS = FIRST_NAME + MEMBERS


def classed(draw: torch.Generator) -> tuple[GraphText, int]:
    """A graph whose neighbours are mostly of one class, told node by node, and the class of the node named last.

    A node's text is its name, words of which half tell its class, and the names of nodes that it is joined to; the text
    ends with the name of the node that is asked for.
    """

    def below(most: int) -> int:
        return int(torch.randint(most, (1,), generator=draw))

    kinds = torch.arange(MEMBERS).remainder(CLASSES)[torch.randperm(MEMBERS, generator=draw)].tolist()
    ids, nodes, edges = [], [[] for _ in range(MEMBERS)], []
    for node in torch.randperm(MEMBERS, generator=draw).tolist():
        same = [other for other in range(MEMBERS) if other != node and kinds[other] == kinds[node]]
        others = [other for other in range(MEMBERS) if kinds[other] != kinds[node]]
        linked = [(others if below(10) == 0 else same) for _ in range(LINKS)]
        linked = [group[below(len(group))] for group in linked]
        told = [kinds[node] if below(2) else below(CLASSES) for _ in range(WORDS)]
        nodes[node] += range(len(ids), len(ids) + 1 + WORDS + LINKS)
        ids += [
            FIRST_NAME + node,
            *(FIRST_WORD + 6 * kind + below(6) for kind in told),
            *(FIRST_NAME + x for x in linked),
        ]
        edges += [(node, other) for other in linked]
    asked = below(MEMBERS)
    nodes[asked].append(len(ids))
    return GraphText(torch.tensor([*ids, FIRST_NAME + asked]), tuple(map(tuple, nodes)), tuple(edges)), kinds[asked]


def batch_of(count: int, seed: int, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Texts ``(b, n)``, their classes ``(b,)``, their windows ``(b, n, n)``."""
    draw = torch.Generator().manual_seed(seed)
    found = [classed(draw) for _ in range(count)]
    windows = torch.stack([hop_window(text, most) for text, _ in found])
    return torch.stack([text.ids for text, _ in found]), torch.tensor([kind for _, kind in found]), windows


def logits_of(model: Any, ids: Tensor, windows: Tensor | None) -> Tensor:
    """``(b, classes)``."""
    with attach(model, edits=[] if windows is None else [HopWindow(windows)]):
        return model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1, :CLASSES]


@quick(most=[1], seed=[0], steps=[10])
@measured(most=(0, 1, 2, MEMBERS), seed=range(2), steps=[300])
def trained(most: int, seed: int, steps: int) -> dict[str, float]:
    """The share of right classes of a model that was trained with a window of so many hops, read with it and with all.

    A window of as many hops as there are nodes is none.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: Any = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=TOKENS, **sizes))
    pool = batch_of(64 * 24, 100 + seed, most)

    def windows_of(which: Tensor) -> Tensor | None:
        return None if most >= MEMBERS else pool[2][which]

    def loss(ready: Any, generator: torch.Generator) -> Tensor:
        which = torch.randint(len(pool[0]), (24,), generator=generator)
        return cross_entropy(logits_of(ready, pool[0][which], windows_of(which)), pool[1][which])

    fit(model, loss, Recipe(steps, 3e-3, seed=seed))
    ids, kinds, windows = batch_of(512, 7, most)
    with torch.no_grad():
        own = logits_of(model, ids, None if most >= MEMBERS else windows).argmax(1) == kinds
        whole = logits_of(model, ids, None).argmax(1) == kinds
    return {"own": float(own.double().mean()), "all": float(whole.double().mean())}


def windows_train(found: Figures) -> Finding:
    """Trained and read with a window of one hop, ten points more in every seed than with all."""
    plain, own = found("all", most=MEMBERS), found("own", most=1)
    figure = f"right classes with windows of one hop {listed(own, '.0%')}, with all {listed(plain, '.0%')}"
    return Finding.of(figure, min(own) - max(plain) >= 0.1)


def windows_help(found: Figures) -> Finding:
    """On average over seeds, by more than the seeds of training with all differ."""
    plain, mixed = found("all", most=MEMBERS), found("all", most=1)
    told = ", ".join(
        f"{most} hops {listed(found('own', most=most), '.0%')} and {listed(found('all', most=most), '.0%')}"
        for most in (0, 1, 2)
    )
    figure = (
        f"right classes read with the window of training and with all: {told}; trained with all {listed(plain, '.0%')}"
    )
    gain = sum(mixed) / len(mixed) - sum(plain) / len(plain)
    return Finding.of(figure, gain > max(plain) - min(plain))
