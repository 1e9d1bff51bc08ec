"""How time, memory and the machine's ceilings are measured."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

Work = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """How a piece of work compares with its baseline, measured turn by turn.

    Args:
        seconds, baseline: median of one run. median, low, high: of the ratio of neighbouring runs, with its quartiles.
        rounds: how many pairs.
    """

    seconds: float
    baseline: float
    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, mine: Sequence[float], theirs: Sequence[float]) -> Ratio:
        """From the times of neighbouring runs."""
        ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        seconds, baseline, middle = (statistics.median(x) for x in (mine, theirs, ratios))
        return cls(seconds, baseline, middle, low, high, len(ratios))


def interleaved(work: Work, baseline: Work, device: torch.device, seconds: float = 2.0, rounds: int = 15) -> Ratio:
    """Both in turn, once to warm up and then for ``rounds`` pairs or about ``seconds``, at least three pairs."""
    for first in (work, baseline):
        clock(first, device)
    mine, theirs, begun = [], [], time.perf_counter()
    while len(mine) < rounds and (len(mine) < 3 or time.perf_counter() - begun < seconds):
        mine.append(clock(work, device))
        theirs.append(clock(baseline, device))
    return Ratio.of(mine, theirs)


def clock(work: Work, device: torch.device) -> float:
    """Seconds of one call, waiting for the GPU where there is one."""
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def medians(work: Mapping[str, Work], rounds: int = 3) -> dict[str, float]:
    """Processor seconds of each, all in turn, once to warm up and then ``rounds`` times: the medians by name."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, one in work.items():
            begun = time.process_time()
            one()
            times[name] += [time.process_time() - begun] * bool(turn)
    return {name: statistics.median(each) for name, each in times.items()}


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(work: Work, device: torch.device) -> int:
    """Bytes by which one call raises the memory in use at most.

    On a GPU PyTorch's own account; on a CPU the process's resident memory, which tells the truth only in a process that
    has done little else: see `compare.memory`.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = resident("VmRSS")
    work()
    return max(resident("VmHWM") - before, 0)


def resident(field: str) -> int:
    """Bytes of a field of Linux's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


@dataclass(frozen=True)
class Ceilings:
    """What the machine does at most, measured: ``flops`` in FLOP/s of a large matrix product, ``bytes`` in byte/s of a
    copy, reading and writing counted."""

    flops: float
    bytes: float

    def floor(self, flops: int, moved: int) -> float:
        """Seconds below which work of so many FLOPs and bytes cannot be done here."""
        return max(flops / self.flops, moved / self.bytes)


@cache
def ceilings(device: torch.device, dtype: torch.dtype, threads: int) -> Ceilings:
    """Measured once in a process for each device, dtype and number of threads: the best of several runs."""
    size, numbers = (1536, 1 << 24) if device.type == "cpu" else (8192, 1 << 28)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    x = torch.zeros(numbers, device=device, dtype=dtype)
    y = torch.empty_like(x)
    product = min(clock(lambda: a @ b, device) for _ in range(6))
    copy = min(clock(lambda: y.copy_(x), device) for _ in range(6))
    return Ceilings(2 * size**3 / product, 2 * numbers * x.element_size() / copy)
