"""The shipped model tuned for four times its length: full attention, S² groups and SF groups."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.compare.swap_report import text_loss
from regard.hosts import small
from regard.train.extend import Extension, extend
from regard.train.fit import Recipe
from regard.train.tiny.corpus import read_corpus
from regard.train.tiny.make import token_stream

LENGTH, TESTED = 8192, 65536
ARMS = {
    "full": None,
    "S²": f"sinklora(heads=8, size={LENGTH // 4}, shifted=0.5, sinks=0)",
    "SF": f"sinklora(heads=8, size={LENGTH // 4}, shifted=0.25, sinks=4)",
}


@cache
def model_and_texts() -> tuple[Any, Tensor, Tensor]:
    """The shipped model, and the tokens of the files to tune on and of those held out."""
    model, tokenizer = small.load("tiny")
    corpus = read_corpus(0)
    stream, held = (token_stream(documents, tokenizer) for documents in (corpus.train, corpus.held_out))
    return model, stream, held[:TESTED]


@measured(arm=("shipped", *ARMS), steps=[60])
def tuned(arm: str, steps: int) -> dict[str, float]:
    """Nats a token at 8,192 tokens with full attention, as shipped or after tuning with this attention."""
    model, stream, held = model_and_texts()
    if arm != "shipped":
        recipe = Recipe(steps, 1e-3, decay=0.0)
        model = extend(model, stream, Extension(1, LENGTH, ARMS[arm]), recipe, None, report=lambda *told: None)
    return {"loss": text_loss(model, held, LENGTH, None)}


def keeps_more(found: Figures) -> Finding:
    """SF groups keep a larger share of full attention's gain than S² groups."""
    loss = {arm: found.one("loss", arm=arm) for arm in ("shipped", *ARMS)}
    share = {arm: (loss["shipped"] - loss[arm]) / (loss["shipped"] - loss["full"]) for arm in ("S²", "SF")}
    figure = f"tuned for 8,192 tokens, SF groups keep {share['SF']:.0%} of the gain, S² groups {share['S²']:.0%}"
    return Finding.of(figure, share["SF"] > share["S²"])
