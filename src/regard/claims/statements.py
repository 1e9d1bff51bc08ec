"""True and false statements about countries: by an MLP on each, and over a graph of those that are alike."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regard.claims.cells import measured, null, quick
from regard.claims.figures import Figures, Finding, listed
from regard.hosts import small
from regard.studies.statement_graph import StatementGraph, agreement, bits_of, macro_f1, shuffled

COUNTRIES = """France Paris French Europe|Japan Tokyo Japanese Asia|Egypt Cairo Arabic Africa|Peru Lima Spanish America
Germany Berlin German Europe|China Beijing Chinese Asia|Kenya Nairobi Swahili Africa|Brazil Brasilia Portuguese America
Italy Rome Italian Europe|Thailand Bangkok Thai Asia|Ghana Accra English Africa|Chile Santiago Spanish America
Poland Warsaw Polish Europe|Turkey Ankara Turkish Asia|Angola Luanda Portuguese Africa|Cuba Havana Spanish America
Sweden Stockholm Swedish Europe|Iran Tehran Persian Asia|Morocco Rabat Arabic Africa|Canada Ottawa English America"""
FACTS = [line.split() for line in COUNTRIES.replace("\n", "|").split("|")]
TEMPLATES = (
    "The capital of {0} is {1}, its people speak {2}, and it lies in {3}.",
    "{0} lies in {3}; {2} is spoken there and {1} is its capital.",
    "In {0}, whose capital is {1}, one speaks {2}. It is a part of {3}.",
    "{1} is the capital of {0}, a country in {3} where {2} is spoken.",
)
LEVELS, SEEN = 4, 3
"""Of truth: none to three wrong facts. Templates that are trained on; the last is held out."""


@cache
def statements() -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings ``(n, 384)`` by MiniLM, how many facts are right, and the template."""
    model, tokenizer = small.load("minilm")
    generator, texts, level, template = Generator().manual_seed(0), [], [], []
    for which, text in enumerate(TEMPLATES):
        for facts in FACTS:
            for right in range(LEVELS):
                wrong = torch.randperm(3, generator=generator)[: 3 - right].tolist()
                told = list(facts)
                for place in wrong:
                    others = [other[place + 1] for other in FACTS if other[place + 1] != facts[place + 1]]
                    told[place + 1] = others[int(torch.randint(len(others), (1,), generator=generator))]
                texts.append(text.format(*told))
                level.append(right)
                template.append(which)
    given = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        states, mask = model(**given).last_hidden_state, given.attention_mask[..., None]
    return F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1), torch.tensor(level), torch.tensor(template)


CLOSES = (0.8, 0.85, 0.9, 0.95, 0.98)
"""Cosines above which statements are joined; one is chosen by a template that is neither trained on nor told."""


def over_the_graph(study: StatementGraph, h: Tensor, joined: Tensor, known: Tensor, tested: Tensor) -> float:
    """Macro-F1 of tested statements by graph attention that is trained along the edges between known ones."""
    _, level, _ = statements()
    inside = joined[:, known[joined[0]] & known[joined[1]]]
    reader, target = study.reader(LEVELS), bits_of(level, LEVELS)
    study.descend(reader, lambda: F.binary_cross_entropy_with_logits(reader(h, inside)[known], target[known]))
    with torch.no_grad():
        told = (reader(h, joined) > 0).sum(-1)
    return macro_f1(told[tested], level[tested], LEVELS)


def validated(study: StatementGraph) -> float:
    """The cosine that is best for the last of the templates that are trained on, learned without it."""
    x, level, template = statements()
    known, tested = template < SEEN - 1, template == SEEN - 1
    h = study.contrast(x[known], level[known])(x).detach()
    shown = known | tested
    found = {}
    for close in CLOSES:
        joined = study.edges(h, close)
        joined = joined[:, shown[joined[0]] & shown[joined[1]]]
        found[close] = over_the_graph(study, h, joined, known, tested)
    return max(found, key=found.__getitem__)


@quick(seed=[0], steps=[30])
@null(joins=["random"])
@measured(joins=["alike"], seed=range(5), steps=[200])
def told(joins: str, seed: int, steps: int) -> dict[str, float]:
    """Macro-F1 of held-out statements: the graph's and an MLP's of the same stage one; edges that agree, and before."""
    x, level, template = statements()
    known, study = template < SEEN, StatementGraph(steps=steps, seed=seed)
    mlp, close = study.contrast(x[known], level[known]), validated(study)
    h = mlp(x).detach()
    joined = study.edges(h, close)
    before = agreement(study.edges(x), level)
    if joins == "random":
        joined = shuffled(joined, Generator().manual_seed(seed))
    after = agreement(joined, level)
    graph = over_the_graph(study, h, joined, known, ~known)
    target = bits_of(level, LEVELS)
    torch.manual_seed(seed + 1)
    alone = nn.Sequential(nn.Linear(study.width, study.hidden), nn.ELU(), nn.Linear(study.hidden, LEVELS - 1))
    study.descend(alone, lambda: F.binary_cross_entropy_with_logits(alone(h[known]), target[known]))
    with torch.no_grad():
        single = macro_f1((alone(h) > 0).sum(-1)[~known], level[~known], LEVELS)
    figures = {"graph": graph, "alone": single, "before": before, "after": after, "close": close}
    return figures | {"joined": float(joined.shape[1] - len(x))}


def is_better_than_alone(found: Figures) -> Finding:
    """On average over seeds, by 3 points."""
    graph, alone = (found(name) for name in ("graph", "alone"))
    chosen = listed(found("close"), ".2f")
    figure = f"macro-F1 over the graph {listed(graph, '.2f')}, each alone {listed(alone, '.2f')}; cosines {chosen}"
    return Finding.of(figure, sum(graph) - sum(alone) >= 0.03 * len(graph))


def edges_agree(found: Figures) -> Finding:
    """In every seed."""
    before, after = found("before"), found("after")
    figure = f"edges of one level {listed(after, '.0%')}, of plain embeddings {before[0]:.0%}"
    return Finding.of(figure, all(b > a for a, b in zip(before, after, strict=True)))
