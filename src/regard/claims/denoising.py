"""Two models of the same size on source code, one that denoises and one that goes from left to right: their sinks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from regard.analysis.base import Prompt
from regard.analysis.moving_sinks import SinkDrift, SinkMask
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.claims.testbeds import source
from regard.hosts.attach import attach
from regard.train.fit import Recipe, fit

LENGTH, MASK, STEPS, TOP = 64, source.VOCABULARY, 8, 2
"""Characters, the code of a mask, steps of denoising, and sinks that are masked."""


def network(way: str, seed: int) -> Any:
    """Two layers of one architecture, which sees everything or what stands before."""
    from transformers import BertConfig, BertForMaskedLM, BertLMHeadModel

    sizes: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 128, "vocab_size": MASK + 1, "max_position_embeddings": LENGTH}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if way == "denoising":
            return BertForMaskedLM(BertConfig(**sizes))
        return BertLMHeadModel(BertConfig(**sizes, is_decoder=True))


def text_loss(model: Any, ids: Tensor, way: str, hidden: Tensor) -> Tensor:
    """Nats a character: of those that are hidden, or of every next one."""
    if way == "denoising":
        return F.cross_entropy(model(input_ids=ids.masked_fill(hidden, MASK)).logits[hidden], ids[hidden])
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def drawn(ids: Tensor, generator: Generator) -> Tensor:
    """Which characters are hidden: of each text another share."""
    hidden = torch.rand(ids.shape, generator=generator) < torch.rand(len(ids), 1, generator=generator)
    hidden[:, 0] |= ~hidden.any(1)
    return hidden


def steps_of(model: Any, ids: Tensor, way: str) -> list[Prompt]:
    """A text as it comes to be, an eighth more of it a step: from masks, or from left to right."""
    if way != "denoising":
        return [Prompt(ids[: LENGTH * (step + 1) // STEPS]) for step in range(STEPS)]
    order, found = torch.randperm(LENGTH, generator=Generator().manual_seed(0)), []
    for step in range(STEPS):
        left = order[LENGTH * step // STEPS :]
        found.append(Prompt(ids.index_fill(0, left, MASK)))
    return found


@measured(way=("denoising", "left to right"), seed=range(2), steps=[400])
def of_characters(way: str, seed: int, steps: int) -> dict[str, float]:
    """How far sinks drift over the steps of eight held-out texts, and what masking the most common ones costs."""
    model, codes = network(way, seed), source.characters(False)

    def loss(ready: Any, generator: Generator) -> Tensor:
        ids = source.windows(codes, 16, LENGTH, generator)
        return text_loss(ready, ids, way, drawn(ids, generator))

    fit(model, loss, Recipe(steps, seed=seed))
    texts = source.windows(source.characters(True), 8, LENGTH, Generator().manual_seed(7))
    found = [SinkDrift(epsilon=0.1).run(model, steps_of(model, ids, way)) for ids in texts]
    drifts = [one.drift for one in found if one.drift == one.drift]
    rises = []
    hidden = drawn(texts, Generator().manual_seed(5))
    with torch.no_grad():
        for one, ids, under in zip(found, texts, hidden, strict=True):
            whole = text_loss(model, ids[None], way, under[None])
            with attach(model, edits=[SinkMask(one.ranked()[:TOP])]):
                rises.append(float(text_loss(model, ids[None], way, under[None]) / whole - 1))
    share = sum(one.share for one in found) / len(found)
    return {"drift": sum(drifts) / max(1, len(drifts)), "share": share, "rise": sum(rises) / len(rises)}


def sinks_move(found: Figures) -> Finding:
    """More than those of the other in every seed; both models have some."""
    moved, still = (found("drift", way=way) for way in ("denoising", "left to right"))
    shares = [found("share", way=way) for way in ("denoising", "left to right")]
    figure = (
        f"sinks of the model that denoises drift by {listed(moved, '.0%')} a step, of the other by "
        f"{listed(still, '.0%')}; {listed(shares[0], '.0%')} and {listed(shares[1], '.0%')} of the heads have one"
    )
    more = all(a > b for a, b in zip(moved, still, strict=True))
    return Finding.of(figure, more, min(map(min, shares)) > 0)


def masking_costs_less(found: Figures) -> Finding:
    """A smaller rise of the loss, in every seed."""
    moved, still = (found("rise", way=way) for way in ("denoising", "left to right"))
    figure = (
        f"without {TOP} sinks the loss rises by {listed(moved, '.1%')} and {listed(still, '.1%')} from left to right"
    )
    return Finding.of(figure, all(a < b for a, b in zip(moved, still, strict=True)))
