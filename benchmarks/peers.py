"""regard beside the libraries that a user would otherwise pick, each checked to compute the same function first.

    make peers            # installs them into .peers, beside the project and no part of it
    python benchmarks/peers.py --length 4096 --threads 2 --markdown

Times are of one interleaved run on one sequence of 8 heads of 64 dimensions, forward without gradients in float32.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

import regard
from regard.experiments.timing import Ratio, interleaved

PEERS = Path(__file__).parents[1] / ".peers"
HEADS, DIM = 8, 64
CAUSAL = regard.Layout(causal=True)
Work = Callable[[], Tensor]


@dataclass(frozen=True)
class Pair:
    """The same function twice.

    Args:
        what: the function. peer: whose. mine, theirs: both calls, giving ``(b, h, n, e)``.
    """

    what: str
    peer: str
    mine: Work
    theirs: Work


def alone(path: str) -> ModuleType:
    """One file of a peer's package, without the package: its own imports may want a GPU."""
    spec = importlib.util.spec_from_file_location(Path(path).stem + "_of_peer", PEERS / path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def softmax(q: Tensor, k: Tensor, v: Tensor, flash: bool = False) -> Pair:
    from x_transformers.attend import Attend

    mine, theirs = regard.build("softmax"), Attend(causal=True, flash=flash)
    peer = f"x-transformers, flash={flash}"
    return Pair("causal softmax", peer, lambda: mine(q, k, v, CAUSAL), lambda: theirs(q, k, v)[0])


def local(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    from local_attention import LocalAttention

    theirs = LocalAttention(
        window_size=256, causal=True, look_backward=1, exact_windowsize=True, use_rotary_pos_emb=False, autopad=True
    )
    mine = regard.build("window", size=257)  # theirs counts the tokens before the query
    return Pair("causal window 257", "local-attention", lambda: mine(q, k, v, CAUSAL), lambda: theirs(q, k, v))


def flex(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def near(batch, head, i, j):
        return (i >= j) & (i - j < 256)

    mask = create_block_mask(near, None, None, q.shape[2], k.shape[2], device="cpu")
    compiled, mine = torch.compile(flex_attention), regard.build("window", size=256)

    def theirs() -> Tensor:
        return compiled(q, k, v, block_mask=mask)

    return Pair("causal window 256", "FlexAttention, compiled", lambda: mine(q, k, v, CAUSAL), theirs)


def efficient(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    from linear_attention_transformer.linear_attention_transformer import linear_attn

    mine, scale = regard.build("efficient"), DIM**-0.5  # theirs divides by the root once more
    return Pair(
        "efficient attention",
        "linear-attention-transformer",
        lambda: mine(q, k, v),
        lambda: linear_attn(q, k, v) / scale,
    )


def gated_delta(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """Inputs of the gated delta rule."""
    generator = torch.Generator().manual_seed(1)
    decay = -torch.rand(1, HEADS, q.shape[2], generator=generator) * 0.2
    beta = torch.rand(1, HEADS, q.shape[2], generator=generator)
    return {"q": q, "k": F.normalize(k, dim=-1), "v": v, "log_decay": decay, "beta": beta}


def delta_fla(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    theirs = alone("fla/ops/gated_delta_rule/naive.py").naive_chunk_gated_delta_rule
    mine, x = regard.build("gated_deltanet"), gated_delta(q, k, v)
    turned = {name: tensor.transpose(1, 2).contiguous() for name, tensor in x.items()}
    turned["g"] = turned.pop("log_decay")
    return Pair(
        "gated delta rule",
        "flash-linear-attention, naive chunks",
        lambda: mine(**x, layout=CAUSAL),
        lambda: theirs(**turned)[0].transpose(1, 2),
    )


def delta_gym(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    from attn_gym.linear.gdn.api import chunk_gdn

    mine, x = regard.build("gated_deltanet"), gated_delta(q, k, v)
    turned = {name: tensor.transpose(1, 2).contiguous() for name, tensor in x.items()}
    turned["gate"] = turned.pop("log_decay")
    return Pair(
        "gated delta rule",
        "attention-gym, reference",
        lambda: mine(**x, layout=CAUSAL),
        lambda: chunk_gdn(**turned, impl="reference")[0].transpose(1, 2),
    )


def gla(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    theirs = alone("fla/ops/gla/naive.py").naive_recurrent_gla
    decay = -torch.rand(q.shape, generator=torch.Generator().manual_seed(1)) * 0.2
    mine, turned = regard.build("gla"), [x.transpose(1, 2).contiguous() for x in (q, k, v, decay)]
    return Pair(
        "gated linear attention",
        "flash-linear-attention, naive",
        lambda: mine(q, k, v, CAUSAL, log_decay=decay),
        lambda: theirs(*turned)[0].transpose(1, 2),
    )


def neighborhood(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    from natten import na2d

    side = math.isqrt(q.shape[2])
    mine, layout = regard.build("neighborhood", window=7), regard.Layout(grid=(side, side))
    cells = [x.view(1, HEADS, side, side, DIM).permute(0, 2, 3, 1, 4).contiguous() for x in (q, k, v)]
    return Pair(
        "neighbourhood of 7 × 7",
        "natten",
        lambda: mine(q, k, v, layout),
        lambda: na2d(*cells, kernel_size=7).permute(0, 3, 1, 2, 4).flatten(2, 3),
    )


PAIRS = (softmax, partial(softmax, flash=True), local, flex, neighborhood, efficient, delta_fla, delta_gym, gla)


@torch.no_grad()
def measure(make: Callable[[Tensor, Tensor, Tensor], Pair], length: int) -> tuple[Pair, Ratio]:
    """The pair, and its times in one run.

    Raises:
        RuntimeError: the two compute different functions.
    """
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, length, DIM, generator=generator) for _ in range(3))
    pair = make(q, k, v)
    mine, theirs = pair.mine(), pair.theirs()
    error = ((mine - theirs).abs().max() / theirs.abs().max()).item()
    if not error < 1e-3:
        raise RuntimeError(f"{pair.what} of {pair.peer} is another function: relative difference {error:.1e}")
    return pair, interleaved(pair.mine, pair.theirs, torch.device("cpu"), seconds=6)


def main(
    length: Annotated[int, typer.Option(min=1)] = 4096,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    markdown: Annotated[bool, typer.Option(help="print a table for the docs")] = False,
) -> None:
    if not PEERS.is_dir():
        raise SystemExit("the peers are not installed: run `make peers`")
    if math.isqrt(length) ** 2 != length:
        raise SystemExit(f"--length: got {length}, want a square for the neighbourhoods")
    sys.path.append(str(PEERS))
    torch.set_num_threads(threads)
    print(
        "| function | peer | regard ms | peer ms | ratio | quartiles |\n|---|---|---|---|---|---|" if markdown else ""
    )
    for make in PAIRS:
        pair, found = measure(make, length)
        figures = [f"{found.seconds * 1e3:.1f}", f"{found.baseline * 1e3:.1f}", f"{found.median:.2f}"]
        line = [pair.what, pair.peer, *figures, f"{found.low:.2f}–{found.high:.2f}"]
        print("| " + " | ".join(line) + " |" if markdown else "  ".join(line), flush=True)


if __name__ == "__main__":
    typer.run(main)
