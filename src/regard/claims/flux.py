"""Layers that a router of the prompt sends to all keys or to a window: both ends, and what routers learn."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Generator, Tensor

from regard.claims.cells import measured
from regard.claims.extend import model_and_texts
from regard.claims.figures import Figures, Finding
from regard.core.layout import Layout
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.sparse.flux import SURE, Flux
from regard.mechanisms.sparse.window import SlidingWindow
from regard.tasks import Recall, batch, plain_encoder, word_ids
from regard.train.fit import Recipe
from regard.train.routers import Routed, Sparing, routers

CAUSAL = Layout(causal=True)
LENGTH, SIZE = 256, 4
SPARING = Sparing(0.5, window=24, sinks=4, pool=32)


@measured(full=(True, False))
def both_ends(full: bool) -> dict[str, float]:
    """How far a layer that is sent to all keys, or to the window, is from that mechanism, over 83 tokens."""
    torch.manual_seed(0)
    flux = Flux(8, 7, 2).double()
    with torch.no_grad():
        last: Any = flux.router[-1]
        last.bias[1] = SURE if full else -SURE
        q, k, v = torch.randn(3, 2, 4, 83, 8, dtype=torch.float64)
        want = (Softmax() if full else SlidingWindow(7, 2))(q, k, v, CAUSAL)
        state, outs = flux.start(2), []
        for part in zip(*(x.split([60, 1, 22], 2) for x in (q, k, v)), strict=True):
            out, state = flux.extend(*part, state)
            outs.append(out)
        return {"apart": max((x - want).abs().max().item() for x in (flux(q, k, v, CAUSAL), torch.cat(outs, 2)))}


@cache
def drawn() -> tuple[Any, dict[str, Any]]:
    """The shipped model, and what draws its text and its recall."""
    from regard.hosts import small

    model, stream, _ = model_and_texts()
    tokenizer = small.load("tiny")[1]
    encode = plain_encoder(tokenizer)
    task = Recall(word_ids(tokenizer), 8, 0.5, tuple(encode(" =")), tuple(encode("\n")), tokenizer.bos_token_id)

    def text(generator: Generator) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(stream) - LENGTH, (SIZE, 1), generator=generator)
        ids = stream[starts + torch.arange(LENGTH)]
        return ids, ids

    def recall(generator: Generator) -> tuple[Tensor, Tensor]:
        ids, answers = batch(task, generator, SIZE, LENGTH)
        return ids, ids.masked_fill(~answers, -100)

    return model, {"text": text, "recall": recall}


@torch.no_grad()
def recalled(model: Any, draw: Any) -> float:
    """The share of answers that are right, in 16 batches."""
    right = []
    for seed in range(16):
        ids, targets = draw(Generator().manual_seed(7_919 + seed))
        asked = targets[:, 1:] != -100
        right.append((model(input_ids=ids, use_cache=False).logits[:, :-1].argmax(-1) == ids[:, 1:])[asked].float())
    return torch.cat(right).mean().item()


@measured(steps=[200], seed=[0])
def routed_by(steps: int, seed: int) -> dict[str, float]:
    """The layers that trained routers send to all keys, of recall and of text, and what is recalled of what was."""
    model, draws = drawn()
    found: Routed = routers(model, draws, SPARING, Recipe(steps, 3e-3, seed=seed), report=lambda *told: None)
    shares = {name: share(found, draw) for name, draw in draws.items()}
    before = recalled(model, draws["recall"])
    with found:
        after = recalled(model, draws["recall"])
    return {"recall": shares["recall"], "text": shares["text"], "kept": after / max(before, 1e-9), "right": before}


def share(found: Routed, draw: Any) -> float:
    """The layers that a task is sent to all keys in, of all, over 16 batches."""
    shares = [found.shares(draw(Generator().manual_seed(7_919 + seed))[0]) for seed in range(16)]
    return sum(map(sum, shares)) / (len(shares) * len(found.layers))


def spares_half(found: Figures) -> Finding:
    """98% of recall with half of the layers, which recall needs more of than text does."""
    recall, text, kept, right = (found.mean(name) for name in ("recall", "text", "kept", "right"))
    figure = f"{recall:.0%} of layers in full for recall, {text:.0%} for text; {kept:.1%} of {right:.1%} recall kept"
    return Finding.of(figure, recall <= 0.5, kept >= 0.98, recall > text)
