"""Training stages as data: what is practised, how long the sequences are, when the stage is over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from regard.core.errors import wrong


@dataclass(frozen=True)
class Stage:
    """One stage of a curriculum.

    name: how the log calls it.
    mixture: name of a source (a task, or "text") → its share of the rows of a batch.
    lengths: length in tokens → its share of the batches.
    share: part of the budget that it may use, relative to the stages that are still to come.
    symbols: how many different ids the tasks on random ids use.
    tokens: tokens in a batch.
    rate: learning rate at its beginning and at its end, linear in between.
    until: running share of right answers that ends it early; None to use the whole share.
    """

    name: str
    mixture: Mapping[str, float]
    lengths: Mapping[int, float]
    share: float
    symbols: int
    tokens: int = 4096
    rate: tuple[float, float] = (3e-3, 3e-3)
    until: float | None = None

    def __post_init__(self) -> None:
        for argument, shares in (("mixture", self.mixture), ("lengths", self.lengths)):
            if not shares or min(shares.values()) < 0 or sum(shares.values()) <= 0:
                raise wrong(f"Stage {self.name!r}: {argument}", f"{dict(shares)}", "shares >= 0 with a sum > 0")
        if max(self.lengths) > self.tokens:
            raise wrong(
                f"Stage {self.name!r}: tokens", f"{self.tokens}", f"at least its longest length {max(self.lengths)}"
            )


def _copying(symbols: int) -> Stage:
    """Random blocks of `symbols` different ids, repeated within 48 tokens, until they are copied."""
    return Stage(f"copy {symbols}", {"copy": 1}, {48: 1}, share=0.2, symbols=symbols, tokens=64 * 48, until=0.9)


RECALLING = {"copy": 0.15, "long copy": 0.15, "recall": 0.4, "text recall": 0.2, "text": 0.1}
MIXTURE = {
    "text": 0.55, "copy": 0.03, "long copy": 0.06, "recall": 0.1, "text recall": 0.06, "induction": 0.02,
    "passkey": 0.04, "indirect object": 0.04, "coloured objects": 0.04, "few-shot": 0.03, "document question": 0.03,
}  # fmt: skip

TINY = (
    _copying(32),
    _copying(128),
    _copying(512),
    _copying(2047),
    Stage("recall 128", RECALLING, {128: 1}, share=0.06, symbols=2047),
    Stage("recall 512", RECALLING, {256: 0.5, 512: 0.5}, share=0.1, symbols=2047),
    Stage("recall 2048", RECALLING, {512: 0.4, 1024: 0.4, 2048: 0.2}, share=0.1, symbols=2047),
    Stage(
        "mixture",
        MIXTURE,
        {256: 0.35, 512: 0.4, 1024: 0.15, 2048: 0.1},
        share=0.35,
        symbols=2047,
        rate=(3e-3, 1.5e-3),
    ),
    Stage(
        "settle",
        MIXTURE | {"text": 0.4, "recall": 0.22, "text recall": 0.09},
        {256: 0.2, 512: 0.35, 1024: 0.3, 2048: 0.15},
        share=0.35,
        symbols=2047,
        rate=(1.5e-3, 5e-5),
    ),
)
"""The curriculum of `regard-tiny`: copying of few ids first, or no induction head forms (see the model card)."""
