"""What SmolLM2's heads do by their weights, beside what they do in texts; the page that shows them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from regard.analysis.head_maps import HeadMaps, outputs
from regard.analysis.induction_heads import repeats
from regard.analysis.retrieval_heads import manual
from regard.analysis.sweep import heads_of
from regard.analysis.weights import head_weights, unembedding
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.claims.heads import saved, spearman
from regard.claims.testbeds.key_values import smollm2
from regard.edits.trace import Trace
from regard.hosts.attach import attach
from regard.records.record import record

SOURCES, OFF, DRAWS = 32, 13, range(5)


@torch.no_grad()
def in_context(model: Any, ids: Tensor) -> Tensor:
    """``(heads,)``: the share of a text's tokens that each head would say were its weight on that token alone."""
    trace, found = Trace("resid"), []
    with attach(model, edits=[trace]):
        model(input_ids=ids[None], use_cache=False)
    rows, copying = unembedding(model), HeadMaps(top=1)
    for layer, of in enumerate(head_weights(model)):
        states = of.norm(trace.get("resid", layer)[0])
        found += [copying.hits(head, rows, ids).mean() for head in outputs(of, states)]
    return torch.stack(found)


@measured()
def copying() -> dict[str, float]:
    """Copying scores of all heads, by weights and in a text of random tokens, and what the best are worth."""
    model, _ = smollm2()
    ids = torch.randint(49_000, (SOURCES,), generator=torch.Generator().manual_seed(0))
    scores = HeadMaps(top=1).run(model, [(int(token), int(token)) for token in ids])
    by_weights = torch.cat(list(scores.values.values()))
    there = in_context(model, ids)
    best = [(layer, head) for layer, head, _ in scores.ranked()[:OFF]]
    texts = repeats(49_000, 41, 3, seed=1)
    whole = saved(model, texts, []).mean()
    figures = {"spearman": spearman(by_weights, there), "copying": int((by_weights >= 0.5).sum())}
    figures["lost"] = float(1 - saved(model, texts, best).mean() / whole)
    for draw in DRAWS:
        random = Random(draw).sample([head for head in heads_of(model) if head not in best], OFF)
        figures[f"random {draw}"] = float(1 - saved(model, texts, random).mean() / whole)
    return figures


def weights_tell(found: Figures) -> Finding:
    """A rank correlation of 0.5 or more over all heads."""
    value = found.one("spearman")
    figure = f"Spearman {value:.2f} over SmolLM2's 270 heads, {found.one('copying')} of which copy half of the tokens"
    return Finding.of(figure, value >= 0.5)


def copying_heads_matter(found: Figures) -> Finding:
    """More is lost than with any random draw."""
    lost, random = found.one("lost"), [found.one(f"random {draw}") for draw in DRAWS]
    figure = f"without the {OFF} best {lost:.0%} of what a repetition saves is lost, without random ones"
    return Finding.of(f"{figure} {listed(random, '.0%')}", lost > max(random))


@measured()
def page() -> dict[str, float]:
    """Bytes of the page of SmolLM2's 270 heads on 512 tokens."""
    model, tokenizer = smollm2()
    seen = record(model, tokenizer, tokenizer(manual()).input_ids[:512], keep=False)
    page = import_module("regard.web.page")  # a room above this one
    with TemporaryDirectory() as folder:
        seen.write(Path(folder))
        return {"bytes": len(page.page_html(Path(folder)).encode())}


def page_is_small(found: Figures) -> Finding:
    """2% of 829 MiB at most, which BertViz 1.4 took."""
    size, most = found.one("bytes"), 0.02 * 829 * 2**20
    return Finding.of(f"{size / 2**20:.1f} MiB, where BertViz 1.4 took 829 MiB", size <= most)
