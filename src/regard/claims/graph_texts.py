"""Graphs that SmolLM2 reads as lists of edges: whether its heads follow them from node to node."""

from __future__ import annotations

from random import Random
from typing import Any

import torch

from regard.analysis.base import DenseMaps
from regard.analysis.head_divergence import every_map
from regard.analysis.node_attention import GraphText, NodeAttention
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.claims.testbeds.key_values import smollm2
from regard.tasks.lexicon import NAMES

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


@measured()
def of_smollm2() -> dict[str, float]:
    """The correlation of the head that follows edges most, chosen on some graphs and measured on others; shuffled."""
    model, tokenizer = smollm2()
    seen, unseen = ([graph_text(tokenizer, seed) for seed in range(at, at + TEXTS)] for at in (0, TEXTS))
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
