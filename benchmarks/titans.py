"""Memories that learn at test time beside titans-pytorch: forward, and forward and backward, of the same sizes.

    pip install --no-deps --target .peers titans-pytorch==0.5.5 tensordict assoc-scan axial-positional-embedding \
        einops einx hyper-connections x-transformers torch-einops-utils rotary-embedding-torch ema-pytorch \
        cloudpickle frozendict importlib-metadata loguru orjson pyvers zipp
    python benchmarks/titans.py

Processor seconds of one thread, float32, both in turn: 8 heads of 64 whose memories have 256 channels inside. Memories
alone first: what the library has around its own, projections and norms, is taken out, so that both are one network.
Then whole layers of width 512 as they come. The library takes one step a chunk, with gradients at the first weights
throughout, or, where its batches are as long as its chunks, at those of the last one. `titans` writes every token and
takes gradients at the start of each chunk; with ``summed=True`` it does what the library does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from regard.core.layout import Layout
from regard.experiments.timing import Ratio
from regard.mechanisms.memory.titans import Titans
from regard.networks.lm import LM, Config

HEADS, DIM = 8, 64
ROWS = (
    (2048, 16, False, 16, 16, False),
    (2048, 16, False, 16, None, False),
    (512, 4, False, 4, 4, False),
    (512, 4, False, 4, None, False),
    (512, 16, False, 4, 16, False),
    (2048, 64, False, 64, 64, False),
    (2048, 64, True, 64, 64, False),
    (2048, 64, True, 64, None, False),
    (2048, 16, False, 16, None, True),
    (2048, 64, True, 64, 64, True),
    (2048, 64, True, 64, None, True),
)
"""Tokens, our chunk, whether one step is taken for each; the library's chunk, and after how many tokens its gradients
are renewed; whether whole layers are compared."""


def ours(n: int, chunk: int, summed: bool, whole: bool) -> Callable[[], Tensor]:
    """The answers, whose derivatives are by all weights and inputs: queries, keys, values and signals, or a layer's."""
    if whole:
        layer = LM(Config(2, HEADS * DIM, f"titans(chunk={chunk}, summed={summed})", heads=HEADS)).blocks[0].attention
        x = torch.randn(1, n, HEADS * DIM, requires_grad=True)
        return lambda: layer(x, Layout(causal=True))
    made = Titans(HEADS, DIM, chunk=chunk, summed=summed)
    q, k, v = (torch.randn(1, HEADS, n, DIM, requires_grad=True) for _ in range(3))
    most = {"step": made.signals["step"].high, "log_decay": -0.02, "log_momentum": -1.0}
    signals = {name: (size * torch.rand(1, HEADS, n)).requires_grad_() for name, size in most.items()}
    return lambda: made(q, k, v, Layout(causal=True), **signals)


def public(n: int, chunk: int, renewed: int | None, whole: bool) -> Callable[[], Tensor]:
    """The library's, likewise."""
    from titans_pytorch import NeuralMemory

    own = {} if whole else {"pre_rmsnorm": False, "mem_model_norm_add_residual": False}
    made = NeuralMemory(HEADS * DIM, chunk, renewed, dim_head=DIM, heads=HEADS, **own)
    if not whole:
        made.to_queries = made.to_keys = made.to_values = made.combine_heads = nn.Identity()
        made.retrieve_gate = None
    x = (torch.randn(1, n, HEADS * DIM) / DIM**0.5).requires_grad_()
    return lambda: made(x)[0]


def seconds(work: Callable[[], Tensor]) -> tuple[float, float]:
    """Of the forward pass, and with the backward pass."""
    begun = time.process_time()
    out = work()
    between = time.process_time()
    out.sum().backward()
    return between - begun, time.process_time() - begun


def main(rounds: Annotated[int, typer.Option(min=2)] = 3) -> None:
    """Prints a row for each pair: seconds, and how many times as long the library takes, with quartiles."""
    sys.path.append(str(Path(__file__).parents[1] / ".peers"))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    passes = " | ".join(f"{name}, {of}" for of in ("forward", "both") for name in ("titans", "library", "ratio"))
    print(f"| tokens | titans | titans-pytorch | {passes} |\n|{'---|' * 9}")
    for n, chunk, summed, theirs, renewed, whole in ROWS:
        mine, other = ours(n, chunk, summed, whole), public(n, theirs, renewed, whole)
        found = [(seconds(mine), seconds(other)) for _ in range(rounds + 1)][1:]
        cells = []
        for which in (0, 1):
            ratio = Ratio.of([b[which] for _, b in found], [a[which] for a, _ in found])
            quartiles = f"{ratio.median:.1f} ({ratio.low:.1f}–{ratio.high:.1f})"
            cells += [f"{ratio.baseline:.3f}", f"{ratio.seconds:.2f}", quartiles]
        own = f"{'layer, ' if whole else ''}chunks of {chunk}{', one step each' if summed else ''}"
        public_one = f"chunks of {theirs}, {f'renewed every {renewed}' if renewed else 'never renewed'}"
        print(f"| {n:,} | {own} | {public_one} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
