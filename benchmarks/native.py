"""Whole layers of native sparse attention beside a public one and beside dense attention, of the same sizes.

    pip install --no-deps --target .peers native-sparse-attention-pytorch==0.2.3 \
        local-attention rotary-embedding-torch einx einops frozendict hyper-connections
    python benchmarks/native.py 1024 2048 4096

Processor seconds of one thread, forward without gradients, in turn: width 512, 8 heads of 64 over 2, blocks of 64, 16
of them with the own one, a window of 512, compressed blocks of 32 every 16 by a network of 2,048 channels. The public
layer is another function: its branches share keys and values, and it adds up the choice's weights otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from regard.blocks.attention import Attention
from regard.core.layout import Layout
from regard.core.mechanism import Mechanism
from regard.core.sizes import Sizes
from regard.experiments.timing import medians
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.sparse.learned_nsa import LearnedNativeSparse
from regard.mechanisms.sparse.nsa import NativeSparse
from regard.projections.base import Grouped

WIDTH, HEADS, GROUPS, DIM = 512, 8, 2, 64
RATIOS = ("public", "nsa"), ("public", "mean_nsa"), ("softmax", "nsa")


def layers() -> dict[str, Callable[[Tensor], Tensor]]:
    """Each of ``x (1, n, 512)``."""
    from native_sparse_attention_pytorch import SparseAttention

    def hosted(mechanism: Mechanism) -> Callable[[Tensor], Tensor]:
        layer = Attention(mechanism, Grouped(Sizes(WIDTH, HEADS, GROUPS, DIM, DIM)))
        return lambda x: layer(x, Layout(causal=True))

    theirs: nn.Module = SparseAttention(
        dim=WIDTH, dim_head=DIM, heads=HEADS, kv_heads=GROUPS, sliding_window_size=512, compress_block_size=32,
        compress_block_sliding_stride=16, selection_block_size=64, num_selected_blocks=15, causal=True,
    )  # fmt: skip
    ours = {"nsa": LearnedNativeSparse(DIM), "mean_nsa": NativeSparse(), "softmax": Softmax()}
    return {name: hosted(mechanism) for name, mechanism in ours.items()} | {"public": theirs}


@torch.no_grad()
def main(lengths: list[int], rounds: Annotated[int, typer.Option(min=1)] = 3) -> None:
    """Prints a row of medians for each length, and how many times as long others take."""
    sys.path.append(str(Path(__file__).parents[1] / ".peers"))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = layers()
    print(f"| tokens | {' | '.join(made)} | public / nsa | public / mean_nsa | softmax / nsa |")
    for length in lengths:
        x = torch.randn(1, length, WIDTH)
        work = {name: partial(layer, x) for name, layer in made.items()}
        of = {name: 1e3 * seconds for name, seconds in medians(work, rounds).items()}
        ratios = " | ".join(f"{of[a] / of[b]:.2f}" for a, b in RATIOS)
        print(f"| {length:,} | {' | '.join(f'{ms:,.0f}' for ms in of.values())} | {ratios} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
