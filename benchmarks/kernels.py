"""Time and memory of the kernels, as ratios to PyTorch's fused attention measured in the same interleaved rounds.

    python benchmarks/kernels.py speed --length 4096 --heads 8 --threads 1
    python benchmarks/kernels.py growth --lengths 1024,4096,16384,65536
    python benchmarks/kernels.py memory --length 16384
    python benchmarks/kernels.py packed --documents 16,64,512
    python benchmarks/kernels.py lengths --around 40,130,200,300,500,700,1000,4000

Each line of ``speed`` gives the median time, its ratio to the fused kernel (median and spread over the rounds), and the
floor: the FLOPs counted in one forward pass and the bytes of reading the inputs and writing the output once. ``packed``
and ``lengths`` compare processor time on one thread with dense causal attention, so that a busy machine can be used.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import regard.mechanisms  # noqa: F401  registers what `build` finds
from regard.core.build import build
from regard.core.cost import Shape
from regard.core.layout import Layout
from regard.kernels import dense, tiled

CAUSAL = Layout(causal=True)
HEAD_DIM = 64
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]

app = typer.Typer(add_completion=False, help=__doc__)


def kernels(window: int) -> dict[str, Kernel]:
    """What is compared; the first is the baseline."""
    fused = torch.nn.functional.scaled_dot_product_attention
    sigmoid, lightning = build("sigmoid"), build("lightning")
    local, sunk = build("window", size=window), build("window", size=window, sinks=4)
    return {
        "fused (PyTorch)": lambda q, k, v: fused(q, k, v, is_causal=True),
        "dense": lambda q, k, v: dense.attend(q, k, v, CAUSAL),
        "tiled softmax": lambda q, k, v: tiled.attend(q, k, v, CAUSAL),
        "sigmoid": lambda q, k, v: sigmoid(q, k, v, CAUSAL),
        f"window {window}": lambda q, k, v: local(q, k, v, CAUSAL),
        f"window {window}, 4 sinks": lambda q, k, v: sunk(q, k, v, CAUSAL),
        "lightning": lambda q, k, v: lightning(q, k, v, CAUSAL),
    }


def inputs(length: int, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random q, k, v of one sequence."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, length, HEAD_DIM, generator=generator) for _ in range(3))
    return q, k, v


def clock(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def forward(kernel: Kernel, tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    with torch.no_grad():
        kernel(*tensors)


def step(kernel: Kernel, tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    """Forward and backward."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    torch.autograd.grad(kernel(*leaves).sum(), leaves)


@app.command()
def speed(
    length: int = 4096, heads: int = 8, window: int = 256, rounds: int = 7, threads: Annotated[int, typer.Option()] = 1
) -> None:
    """Forward and training-step times."""
    torch.set_num_threads(threads)
    tensors = inputs(length, heads)
    floor = Shape(length, heads=heads, head_dim=HEAD_DIM).io_bytes
    print(f"n={length} heads={heads} d={HEAD_DIM} float32, {threads} thread(s), {rounds} rounds")
    print(f"inputs and output: {floor / 2**20:.0f} MiB")
    for what, run in (("forward", forward), ("forward + backward", step)):
        candidates = kernels(window)
        times: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(rounds + 1):
            for name, kernel in candidates.items():
                times[name].append(clock(lambda kernel=kernel, run=run: run(kernel, tensors)))
        print(f"\n{what:<24}{'ms':>9}{'ratio':>8}{'spread':>14}{'GFLOP':>9}")
        baseline = next(iter(times.values()))[1:]
        for name, found in times.items():
            ratios = sorted(mine / base for mine, base in zip(found[1:], baseline, strict=True))
            with FlopCounterMode(display=False) as counter:
                forward(candidates[name], tensors)
            print(
                f"{name:<24}{1e3 * statistics.median(found[1:]):>9.1f}{statistics.median(ratios):>8.2f}"
                f"{f'{ratios[0]:.2f} … {ratios[-1]:.2f}':>14}{counter.get_total_flops() / 1e9:>9.2f}"
            )


def repeat(kernel: Kernel, tensors: tuple[Tensor, Tensor, Tensor], times: int) -> None:
    """Several forward passes."""
    for _ in range(times):
        forward(kernel, tensors)


@app.command()
def growth(
    lengths: str = "1024,4096,16384,65536", heads: int = 8, rounds: int = 5, threads: int = 1, name: str = "lightning"
) -> None:
    """Forward time per token at several lengths, interleaved; each round reads as many tokens at every length."""
    torch.set_num_threads(threads)
    sizes = [int(length) for length in lengths.split(",")]
    mechanism, batches = build(name), {n: inputs(n, heads) for n in sizes}

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return mechanism(q, k, v, CAUSAL)

    times: dict[int, list[float]] = {n: [] for n in sizes}
    for _ in range(rounds + 1):
        for n in sizes:
            repeats = max(sizes) // n
            seconds = clock(lambda n=n, times=repeats: repeat(kernel, batches[n], times))
            times[n].append(seconds / (repeats * n))
    for n, found in times.items():
        ratios = [mine / base for mine, base in zip(found[1:], times[sizes[0]][1:], strict=True)]
        micros = 1e6 * statistics.median(found[1:])
        print(f"{n:>8} tokens {micros:>8.2f} µs a token, ×{statistics.median(ratios):.3f} of {sizes[0]}")


def work(kernel: Callable[[], object]) -> float:
    """Processor seconds of one call."""
    start = time.process_time()
    kernel()
    return time.process_time() - start


@app.command()
def packed(documents: str = "16,64,512", length: int = 4096, heads: int = 4, rounds: int = 5) -> None:
    """Packed documents, forward and with gradients, as ratios to dense causal attention over all tokens."""
    torch.set_num_threads(1)
    tensors = inputs(length, heads)
    softmax, alibi, pattern = build("softmax"), build("alibi"), build("pattern", of=f"Window({length})")
    for size in map(int, documents.split(",")):
        layout = Layout(causal=True, segments=(torch.arange(length) // size)[None])
        calls: dict[str, Kernel] = {"dense": lambda q, k, v: softmax(q, k, v, CAUSAL)}
        for name, mechanism in (("softmax", softmax), ("alibi", alibi), ("pattern", pattern)):
            calls[name] = lambda q, k, v, mechanism=mechanism, layout=layout: mechanism(q, k, v, layout)
        for what, run in (("forward", forward), ("forward + backward", step)):
            found = [
                {name: work(lambda k=k, run=run: run(k, tensors)) for name, k in calls.items()}
                for _ in range(rounds + 1)
            ]
            ratios = {name: statistics.median(x[name] / x["dense"] for x in found[1:]) for name in calls}
            print(f"documents of {size:>5}, {what:<20}" + "".join(f"{name} {x:.2f}  " for name, x in ratios.items()))


@app.command()
def lengths(
    around: str = "40,130,200,300,500,700,1000,4000", heads: int = 4, of: str = "Window(64) | Sinks(4)"
) -> None:
    """A pattern at lengths that it has not seen, as ratios to dense causal attention: 16 lengths from each on."""
    torch.set_num_threads(1)
    softmax, pattern = build("softmax"), build("pattern", of=of)
    for first in map(int, around.split(",")):
        new, again = [], []
        for n in range(first, first + 32, 2):
            tensors = inputs(n, heads)
            base = work(lambda tensors=tensors: softmax(*tensors, CAUSAL))
            new.append(work(lambda tensors=tensors: pattern(*tensors, CAUSAL)) / base)
            again.append(work(lambda tensors=tensors: pattern(*tensors, CAUSAL)) / base)
        middle, mean, later = statistics.median(new), statistics.mean(new), statistics.median(again)
        print(f"{first:>6} … {first + 30:<6} new {middle:.2f}, mean {mean:.2f}, again {later:.2f}")


@app.command()
def memory(length: int = 16384, heads: int = 1) -> None:
    """Peak memory beyond the inputs, each in a process of its own, beside the dense matrix's."""
    matrix = heads * length**2 * 4
    print(f"n={length} heads={heads}: the dense matrix takes {matrix / 2**20:.0f} MiB")
    for name in kernels(256):
        for what in ("forward", "step"):
            command = [sys.executable, __file__, "peak", name, what, "--length", str(length), "--heads", str(heads)]
            peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"{name:<24}{what:<9}{peak / 2**20:>8.1f} MiB   1/{matrix / max(peak, 1):.0f} of the matrix")


@app.command(hidden=True)
def peak(name: str, what: str, length: int = 16384, heads: int = 1) -> None:
    """Prints by how many bytes one call raises the process's peak resident memory, after a short one to warm up."""
    torch.set_num_threads(1)
    kernel, run = kernels(256)[name], {"forward": forward, "step": step}[what]
    run(kernel, inputs(700, heads))
    tensors = inputs(length, heads)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = resident("VmRSS")
    run(kernel, tensors)
    print(resident("VmHWM") - before)


def resident(field: str) -> int:
    """Bytes of a field of Linux's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


if __name__ == "__main__":
    app()
