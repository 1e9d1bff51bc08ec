"""Queries that are routed in a frozen model: how few need everything, by how far the others see."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, Tensor

from regard.claims.cells import measured, quick
from regard.claims.figures import Figures, Finding
from regard.compare.swap_report import text_loss
from regard.hosts import small
from regard.train.fit import Recipe
from regard.train.tiny.corpus import read_corpus
from regard.train.tiny.make import token_stream
from regard.train.token_routers import Thrift, token_routers

LENGTH, SIZE, TESTED = 256, 2, 4096
WINDOWS = (16, 32, 128)


@cache
def model_and_texts(name: str) -> tuple[Any, Tensor, Tensor]:
    """A model, the tokens of files of the standard library to train on, and of some held out."""
    model, tokenizer = small.load(name)
    corpus = read_corpus(0)
    stream, held = (token_stream(documents, tokenizer) for documents in (corpus.train, corpus.held_out))
    return model, stream, held[:TESTED]


@quick(model=["tiny"], steps=[1])
@measured(window=WINDOWS, model=["smollm2"], steps=[300], price=[0.1])
def routed(window: int, model: str, steps: int, price: float) -> dict[str, float]:
    """Nats a token with routers trained on a frozen model and without, and the share of queries that see everything."""
    host, stream, held = model_and_texts(model)

    def draw(generator: Generator) -> Tensor:
        starts = torch.randint(len(stream) - LENGTH, (SIZE, 1), generator=generator)
        return stream[starts + torch.arange(LENGTH)]

    found = token_routers(host, draw, Thrift(price, window), Recipe(steps, 1e-2, decay=0.0))
    with torch.no_grad():
        before = text_loss(host, held, LENGTH, None)
        with found:
            after = text_loss(host, held, LENGTH, None)
    return {"before": before, "after": after, "share": found.share(held[: 8 * LENGTH].view(8, LENGTH))}


def most_need_little(found: Figures) -> Finding:
    """At a window of 32 a fifth at most, within 1% of the loss; the further the others see, the fewer."""
    shares = [found.one("share", window=window) for window in WINDOWS]
    losses = [found.one("after", window=window) / found.one("before", window=window) - 1 for window in WINDOWS]
    told = ", ".join(f"{w} {s:.1%} ({x:+.1%})" for w, s, x in zip(WINDOWS, shares, losses, strict=True))
    place = WINDOWS.index(32)
    falls = all(a > b for a, b in pairwise(shares))
    figure = f"queries that see everything, by window, and the loss: {told}"
    return Finding.of(figure, shares[place] <= 0.2, losses[place] <= 0.01, falls)
