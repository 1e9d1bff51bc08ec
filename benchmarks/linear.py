"""The scan: its precision under weak and strong decays, and its time for each token at growing lengths.

    python benchmarks/linear.py precision
    python benchmarks/linear.py growth                  # --no-kept: pages go back to the system, as they do by default

Each prints a table of docs/benchmarks.md.
"""

from __future__ import annotations

import os
import statistics
import sys
from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
import typer

import regard
from regard.core.layout import Layout
from regard.experiments.timing import clock

CAUSAL = Layout(causal=True)
KINDS = ("lightning", "linear", "retnet", "gla", "deltanet", "gated_deltanet", "mamba2", "mamba", "rwkv6")
STRENGTHS = {"weak": 1e-4, "strong": 3.0}
"""Mean decay of a token: exp(−1e-4) and exp(−3)."""

KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""The environment in which glibc keeps the pages of freed tensors; else each new tensor's are zeroed again."""

app = typer.Typer(add_completion=False, help=__doc__)


def subject(kind: str, heads: int, n: int, dim: int, strength: float = 0.05):
    """The mechanism and its inputs in float64."""
    generator = torch.Generator().manual_seed(n)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    sizes = {"heads": heads} if kind == "mamba2" else {"heads": heads, "head_dim": dim}
    mechanism = regard.build(kind, **(sizes if kind in ("mamba2", "mamba", "rwkv6") else {})).double()
    inputs = {"q": normal(1, heads, n, dim), "k": F.normalize(normal(1, heads, n, dim), dim=-1)}
    inputs["v"] = normal(1, heads, n, dim)
    for name, spec in mechanism.signals.items():
        noise = normal(1, heads, n, *spec.size(dim, dim))
        inputs[name] = {"beta": noise.sigmoid(), "step": noise.abs() * strength}.get(name, -noise.abs() * strength)
    return mechanism, inputs


def cast(inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: x.to(dtype) for name, x in inputs.items()}


@app.command()
@torch.no_grad()
def precision(length: Annotated[int, typer.Option(min=1)] = 65536) -> None:
    """Largest error of float32 and bfloat16 over the largest float64 output of the same rounded inputs."""
    heads = " | ".join(f"{name} decay, {kind}" for name in STRENGTHS for kind in ("float32", "bfloat16"))
    print(f"| mechanism | {heads} |\n|---|---|---|---|---|")
    for kind in KINDS:
        cells = []
        for strength in STRENGTHS.values():
            mechanism, inputs = subject(kind, 1, length, 64, strength)
            for dtype in (torch.float32, torch.bfloat16):
                rounded = cast(inputs, dtype)
                want = mechanism.double()(**cast(rounded, torch.float64), layout=CAUSAL)
                got = mechanism.to(torch.float32)(**rounded, layout=CAUSAL).double()
                assert got.isfinite().all(), f"{kind} at {dtype}: not finite"
                cells.append(f"{((got - want).abs().max() / want.abs().max()).item():.0e}")
        print(f"| `{kind}` | {' | '.join(cells)} |", flush=True)


@app.command()
@torch.no_grad()
def growth(
    lengths: Annotated[str, typer.Option(help="tokens")] = "1024,2048,8192,32768,65536",
    threads: Annotated[int, typer.Option(min=1)] = 1,
    rounds: Annotated[int, typer.Option(min=1)] = 7,
    kept: Annotated[bool, typer.Option(help="whether the allocator keeps its pages")] = True,
) -> None:
    """Microseconds for each token of 8 heads of 64, forward in float32."""
    if kept and not KEPT.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEPT)
    torch.set_num_threads(threads)
    sizes = [int(n) for n in lengths.split(",")]
    print(f"| mechanism | {' | '.join(f'{n:,}' for n in sizes)} |\n|---|{'---|' * len(sizes)}")
    for kind in KINDS:
        cells = []
        for n in sizes:
            mechanism, inputs = subject(kind, 8, n, 64)
            mechanism, inputs = mechanism.float(), cast(inputs, torch.float32)
            work = partial(mechanism, **inputs, layout=CAUSAL)
            times = [clock(work, torch.device("cpu")) for _ in range(rounds + 1)]
            cells.append(f"{statistics.median(times[1:]) / n * 1e6:.1f}")
        print(f"| `{kind}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    app()
