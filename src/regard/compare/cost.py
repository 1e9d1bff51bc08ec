"""What a mechanism costs at one length: time beside fused attention, memory, FLOPs, bytes of state."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from regard.compare.workloads import LEVELS, MechanismWorkload, Sizes, Workload, fused, step
from regard.core.errors import wrong
from regard.experiments.cell import Cell, Report, Scalar
from regard.experiments.timing import Work, ceilings, interleaved, peak

PHASES = ("prefill", "decode", "train")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
ROOM = 256
"""Tokens for which the baseline's cache has room beyond those it holds, as a serving engine would keep."""


@dataclass(frozen=True)
class CostCell(Cell):
    """One mechanism at one length in one phase.

    Args:
        mechanism: its text. phase: "prefill" (one pass), "decode" (one token after ``length``), "train" (forward and
            backward). level: "mechanism" (on given q, k, v), "block" or "lm" (two layers).
        batch, heads, kv_heads, head_dim, dtype, threads, device, seed: of the measurement.
        memory: whether peak memory is measured too, which takes a process of its own on a CPU.
    """

    kind: ClassVar[str] = "cost"
    mechanism: str
    phase: str
    length: int
    level: str = "mechanism"
    batch: int = 1
    heads: int = 8
    kv_heads: int = 8
    head_dim: int = 64
    dtype: str = "float32"
    threads: int = 1
    device: str = "cpu"
    seed: int = 0
    memory: bool = True

    def __post_init__(self) -> None:
        choices = {"phase": PHASES, "level": tuple(LEVELS), "dtype": tuple(DTYPES)}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise wrong(name, repr(getattr(self, name)), f"one of {', '.join(allowed)}")
        for name in ("length", "batch", "heads", "kv_heads", "head_dim", "threads"):
            if getattr(self, name) < 1:
                raise wrong(name, str(getattr(self, name)), "at least 1")
        if self.heads % self.kv_heads:
            raise wrong("kv_heads", str(self.kv_heads), f"a divisor of the {self.heads} heads")

    @property
    def sizes(self) -> Sizes:
        device = torch.device(self.device)
        return Sizes(self.batch, self.heads, self.kv_heads, self.head_dim, DTYPES[self.dtype], device, self.seed)

    def subject(self) -> Workload:
        """What is timed.

        Raises:
            ValueError: a phase that the mechanism does not have.
        """
        found = LEVELS[self.level](self.mechanism, self.sizes)
        if self.phase == "decode" and not found.causal:
            raise wrong("phase", f"decode of {self.mechanism}", "prefill or train: it is bidirectional only")
        return found

    def run(self, report: Report = lambda what: None) -> Mapping[str, Scalar]:
        torch.set_num_threads(self.threads)
        report(f"{self.label}: time")
        subject = self.subject()
        work, baseline = WORKS[self.phase](subject, self.length), baselines(self, subject)
        ratio = interleaved(work, baseline, self.sizes.device)
        cost, counted = subject.cost(self.length), count(work, self.phase)
        roof = ceilings(self.sizes.device, self.sizes.dtype, self.threads)
        floor = roof.floor(*least(self, subject, counted))
        figures: dict[str, Scalar] = {
            "seconds": ratio.seconds,
            "baseline_seconds": ratio.baseline,
            "ratio": ratio.median,
            "ratio_low": ratio.low,
            "ratio_high": ratio.high,
            "rounds": ratio.rounds,
            "flops_counted": counted,
            "flops_formula": None if self.phase == "decode" else cost.flops,
            "bytes_formula": cost.bytes,
            "state_bytes": cost.state_bytes if subject.causal else None,
            "floor_seconds": floor,
            "ceiling_flops": roof.flops,
            "ceiling_bytes": roof.bytes,
            "causal": subject.causal,
            "time_growth": subject.mechanism.traits.time,
            "state_growth": subject.mechanism.traits.state if subject.causal else None,
        }
        if self.memory:
            report(f"{self.label}: memory")
            figures["peak_bytes"] = memory(self, "mine")
            figures["baseline_peak_bytes"] = memory(self, "baseline")
        return figures


def prefill(subject: Workload, n: int) -> Work:
    """One pass without gradients."""
    inputs = subject.inputs(n)

    @torch.no_grad()
    def work() -> object:
        return subject.forward(inputs)

    return work


def train(subject: Workload, n: int) -> Work:
    """Forward and backward."""
    inputs = subject.inputs(n, grad=True)
    leaves = [leaf for leaf in subject.leaves(inputs) if leaf.requires_grad]
    return lambda: step(lambda: subject.forward(inputs), leaves)


def decode(subject: Workload, n: int) -> Work:
    """One token, after ``n`` and those of the calls before: the state goes on."""
    with torch.no_grad():
        held = [subject.extend(subject.inputs(n), subject.start())]
    token = subject.inputs(1)

    @torch.no_grad()
    def work() -> object:
        held[0] = subject.extend(token, held[0])
        return held[0]

    return work


WORKS: dict[str, Callable[[Workload, int], Work]] = {"prefill": prefill, "decode": decode, "train": train}


def baselines(cell: CostCell, subject: Workload) -> Work:
    """The same work with PyTorch's fused attention: directly for a mechanism, as `softmax` in a block or model."""
    if cell.level != "mechanism":
        other = LEVELS[cell.level]("softmax", cell.sizes)
        other.causal = subject.causal
        return WORKS[cell.phase](other, cell.length)
    plain = MechanismWorkload("softmax", cell.sizes)
    if cell.phase == "decode":
        return fused_decode(plain, cell.length)
    inputs = plain.inputs(cell.length, grad=cell.phase == "train")
    if cell.phase == "train":
        return lambda: step(lambda: fused(inputs, subject.causal), list(inputs.values()))
    return torch.no_grad()(lambda: fused(inputs, subject.causal))


def fused_decode(plain: MechanismWorkload, n: int) -> Work:
    """One token over a cache with room: its key and value are put in, then the filled part is attended to."""
    whole, token = plain.inputs(n + ROOM), plain.inputs(1)
    filled = [n]
    group = token["q"].shape[1] != token["k"].shape[1]

    @torch.no_grad()
    def work() -> object:
        place = filled[0] if filled[0] < n + ROOM else n
        whole["k"][:, :, place], whole["v"][:, :, place] = token["k"][:, :, 0], token["v"][:, :, 0]
        filled[0] = place + 1
        k, v = (whole[name][:, :, : place + 1] for name in ("k", "v"))
        return F.scaled_dot_product_attention(token["q"], k, v, enable_gqa=group)

    return work


def count(work: Work, phase: str) -> int | None:
    """FLOPs of the matrix products, as PyTorch counts them; it does not count all of a backward pass."""
    if phase == "train":
        return None
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def least(cell: CostCell, subject: Workload, counted: int | None) -> tuple[int, int]:
    """``(FLOPs, bytes)`` that the phase cannot do without.

    Of a causal quadratic mechanism half of the formula's FLOPs; of a training step three times a pass's; of a decoding
    step what is counted, and the state read once.
    """
    cost = subject.cost(cell.length)
    if cell.phase == "decode":
        return counted or 0, cost.state_bytes
    half = 2 if subject.causal and subject.mechanism.traits.time == "quadratic" and cell.level == "mechanism" else 1
    times = 3 if cell.phase == "train" else 1
    return times * cost.flops // half, times * cost.bytes


def memory(cell: CostCell, which: str) -> int:
    """Peak bytes of the work or its baseline beyond its inputs; on a CPU in a process of its own."""
    if cell.device != "cpu":
        return peak(chosen(cell, which), cell.sizes.device)
    command = [sys.executable, "-m", "regard.compare.memory", json.dumps(cell.fields), which]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"measuring memory of {cell.label} failed: {done.stderr.strip().splitlines()[-1:]}")
    return int(done.stdout)


def chosen(cell: CostCell, which: str) -> Any:
    """The cell's work, or its baseline's."""
    subject = cell.subject()
    return WORKS[cell.phase](subject, cell.length) if which == "mine" else baselines(cell, subject)
