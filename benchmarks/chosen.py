"""Softmax attention to 256 keys chosen for each query, in blocks of several sizes, beside dense attention.

    python benchmarks/chosen.py prefill 8192 16384
    python benchmarks/chosen.py decode 8192 32768

One thread, in turn: one sequence, 8 heads of 64, float32, without gradients, causal, the choice by mean keys included.
``--groups 2`` has two heads of keys and values in the place of eight.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Annotated, Any

import torch
import typer

from regard.core.layout import Layout
from regard.experiments.timing import medians
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.sparse.moba import MoBA
from regard.mechanisms.sparse.routed import Routed, RoutedBlocks
from regard.routers.blocks import Mean

HEADS, DIM, KEYS = 8, 64, 256
BLOCKS = 64, 32, 16, 8
app = typer.Typer(pretty_exceptions_enable=False)
Rounds = Annotated[int, typer.Option(min=1)]


def of_blocks() -> dict[str, Routed | Softmax]:
    """Dense attention and 256 keys in blocks of each size."""
    return {"dense": Softmax()} | {f"{block} × {KEYS // block}": Routed(Mean(block, KEYS // block)) for block in BLOCKS}


def head(made: Collection[str]) -> None:
    """The first two rows of a table."""
    print(f"| tokens | {' | '.join(made)} |\n|---:|{'---:|' * len(made)}")


@app.command()
@torch.no_grad()
def prefill(lengths: list[int], groups: int = HEADS, rounds: Rounds = 3) -> None:
    """Prints a row of medians for each length: processor seconds of a whole prompt."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = of_blocks()
    head(made)
    for length in lengths:
        q = torch.randn(1, HEADS, length, DIM)
        k, v = torch.randn(2, 1, groups, length, DIM)
        work = {name: partial(mechanism, q, k, v, Layout(causal=True)) for name, mechanism in made.items()}
        shown = [f"{seconds:.2f}" for seconds in medians(work, rounds).values()]
        print(f"| {length:,} | {' | '.join(shown)} |", flush=True)


@app.command()
@torch.no_grad()
def decode(lengths: list[int], groups: int = HEADS, tokens: int = 8, rounds: Rounds = 15) -> None:
    """Prints a row for each length: processor ms a token, ``tokens`` in a row with each, and how often faster it is.

    A step is all that `extend` does: it appends the token to the cache, chooses, and attends.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = of_blocks() | {"bounds, 16 × 16": RoutedBlocks("bound", 16, 16), "MoBA, 256 × 3": MoBA(256, 3)}
    head(made)
    for length in lengths:
        states = {name: filled(mechanism, length, groups) for name, mechanism in made.items()}

        def some(name: str, states: dict[str, Any] = states) -> None:
            q, k, v = (torch.randn(tokens, 1, many, 1, DIM) for many in (HEADS, groups, groups))
            for step in zip(q, k, v, strict=True):
                states[name] = made[name].extend(*step, states[name])[1]

        found = medians({name: partial(some, name) for name in made}, rounds)
        shown = [f"{each / tokens * 1e3:.2f} ({found['dense'] / each:.1f})" for each in found.values()]
        print(f"| {length:,} | {' | '.join(shown)} |", flush=True)


def filled(mechanism: Routed | Softmax, length: int, groups: int) -> Any:
    """The state after ``length`` tokens of normal numbers."""
    k, v = torch.randn(2, 1, groups, length, DIM)
    state: Any = mechanism.start(1)
    return mechanism.grown(k, v, state, None)[0] if isinstance(mechanism, Routed) else state.append(k, v, None)


if __name__ == "__main__":
    app()
