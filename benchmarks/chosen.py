"""Softmax attention to 256 keys chosen for each query, in blocks of four sizes, beside dense attention.

    python benchmarks/chosen.py 8192 16384

Processor seconds of one thread, in turn: one sequence, 8 heads of 64, float32, forward without gradients, causal, the
choice by mean keys included. ``--groups 2`` has two heads of keys and values in the place of eight.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import torch
import typer

from regard.core.layout import Layout
from regard.experiments.timing import medians
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.sparse.routed import Routed
from regard.routers.blocks import Mean

HEADS, DIM, KEYS = 8, 64, 256
BLOCKS = 64, 32, 16, 8


@torch.no_grad()
def main(lengths: list[int], groups: int = HEADS, rounds: Annotated[int, typer.Option(min=1)] = 3) -> None:
    """Prints a row of medians for each length."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = {"dense": Softmax()} | {f"{block} × {KEYS // block}": Routed(Mean(block, KEYS // block)) for block in BLOCKS}
    print(f"| tokens | {' | '.join(made)} |\n|---:|{'---:|' * len(made)}")
    for length in lengths:
        q = torch.randn(1, HEADS, length, DIM)
        k, v = torch.randn(2, 1, groups, length, DIM)
        work = {name: partial(mechanism, q, k, v, Layout(causal=True)) for name, mechanism in made.items()}
        shown = [f"{seconds:.2f}" for seconds in medians(work, rounds).values()]
        print(f"| {length:,} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
