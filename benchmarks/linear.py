"""The scan: its precision under weak and strong decays, its time for each token at growing lengths, and Mamba's.

    python benchmarks/linear.py precision
    python benchmarks/linear.py growth                  # --no-kept: pages go back to the system, as they do by default
    python benchmarks/linear.py mixers                  # one thread: Mamba beside that of Transformers

Each prints a table of docs/benchmarks.md.
"""

from __future__ import annotations

import os
import statistics
import sys
from functools import partial
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer

import regard
from regard.core.layout import Layout
from regard.experiments.timing import clock, interleaved

CAUSAL = Layout(causal=True)
KINDS = ("lightning", "linear", "retnet", "gla", "deltanet", "gated_deltanet", "mamba2", "mamba", "rwkv6")
STRENGTHS = {"weak": 1e-4, "strong": 3.0}
"""Mean decay of a token: exp(−1e-4) and exp(−3)."""

LEARNED = 256
"""Tokens up to which mixers are timed with gradients: those of Transformers take as the square of the tokens."""

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


@app.command()
def mixers(
    lengths: Annotated[str, typer.Option(help="tokens")] = "64,256,1024,4096",
    width: Annotated[int, typer.Option(min=1)] = 768,
    seconds: Annotated[float, typer.Option(min=1)] = 20.0,
) -> None:
    """A whole Mamba mixer of so many channels and 16 states, on the weights of Transformers' and beside it."""
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    torch.set_num_threads(1)
    config = MambaConfig(hidden_size=width, state_size=16, num_hidden_layers=1)
    theirs: Any = MambaMixer(config, 0).eval()
    scan: Any = regard.build("mamba", heads=theirs.intermediate_size, head_dim=16)
    with torch.no_grad():
        scan.log_rate.copy_(theirs.A_log)

    def mine(x: torch.Tensor) -> torch.Tensor:
        """Everything but the scan as in Transformers' own mixer."""
        hidden, gate = theirs.in_proj(x).mT.chunk(2, dim=1)
        hidden = F.silu(theirs.conv1d(hidden)[..., : x.shape[1]])
        sizes = [theirs.time_step_rank, theirs.ssm_state_size, theirs.ssm_state_size]
        step, keys, queries = theirs.x_proj(hidden.mT).split(sizes, dim=-1)
        step = F.softplus(theirs.dt_proj(step)).mT
        queries, keys = (each[:, None].expand(-1, theirs.intermediate_size, -1, -1) for each in (queries, keys))
        out = scan(queries, keys, hidden[..., None], CAUSAL, step=step)[..., 0] + hidden * theirs.D[:, None]
        return theirs.out_proj((out * F.silu(gate)).mT)

    def learned(mixer: Any, x: torch.Tensor) -> None:
        mixer(x).square().sum().backward()

    print("| tokens | forward ms | Transformers ms | ratio | with gradients ms | Transformers ms | ratio |")
    print(f"|{'---|' * 7}")
    for n in map(int, lengths.split(",")):
        x, cells = torch.randn(1, n, width, generator=torch.Generator().manual_seed(n)), []
        assert (mine(x) - theirs(x)).abs().max() <= 1e-3 * theirs(x).abs().max(), "another function"
        works = (torch.no_grad()(lambda mixer, x: mixer(x)), learned)
        for work in works[: 2 if n <= LEARNED else 1]:
            found = interleaved(partial(work, mine, x), partial(work, theirs, x), torch.device("cpu"), seconds)
            cells += [f"{1e3 * found.seconds:.1f}", f"{1e3 * found.baseline:.1f}", f"{found.median:.2f}"]
        print(f"| {n:,} | {' | '.join((cells + ['–'] * 3)[:6])} |", flush=True)


if __name__ == "__main__":
    app()
