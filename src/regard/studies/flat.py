"""Attention on FLAT and on FuseMax: seconds and bytes by the cycles of an array, its buffer and its memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from regard.core.errors import wrong

BYTES = 2
"""Of a number."""
SOFTMAX = 4
"""Vector operations of FLAT for a score: maximum, exponential, sum and division, each a pass over the scores."""
PASSES = 7
"""How often FLAT's buffer is written or read for a score: it once and twice, exponential and share once and once."""
ROWS = (256, 512, 1024)
"""Queries whose scores FLAT makes together, beside whole heads."""


@dataclass(frozen=True)
class Attention:
    """Bidirectional self-attention of a batch.

    Args:
        heads, n, e: heads, tokens, and dimension of keys and values. batch: sequences. inner: channels inside of the
            network of two layers that stands beside it in a block.
    """

    heads: int
    n: int
    e: int
    batch: int = 64
    inner: int = 0

    @property
    def scores(self) -> int:
        """How many there are."""
        return self.batch * self.heads * self.n**2


@dataclass(frozen=True)
class Chip:
    """An array of ``side²`` multiply-add elements beside ``side`` vector elements, a buffer and a memory.

    Args:
        side: elements. clock: cycles in a second. bandwidth: bytes in a second. buffer: bytes. exponential: cycles of
            one on the array of FuseMax, of multiply-adds; FLAT's vector elements take one.
    """

    side: int = 256
    clock: float = 940e6
    bandwidth: float = 400 * 2**30
    buffer: int = 32 * 2**20
    exponential: int = 6

    def blocks(self, task: Attention) -> int:
        """Of ``side`` queries and as many keys, of all heads.

        Raises:
            ValueError: the tokens are no multiple of the side.
        """
        if task.n % self.side:
            raise wrong("n", str(task.n), f"a multiple of the array's {self.side} elements")
        return task.batch * task.heads * (task.n // self.side) ** 2

    def linear(self, task: Attention) -> float:
        """Seconds of the four projections and the network beside the attention: multiply-adds, all elements busy."""
        width = task.heads * task.e
        return task.batch * task.n * width * (4 * width + 2 * task.inner) / self.side**2 / self.clock


FLAT = Chip()
FUSEMAX = Chip(buffer=16 * 2**20)


@dataclass(frozen=True)
class Dataflow:
    """How FLAT goes through the scores of a head.

    Args:
        rows: queries whose scores are made together. fused: their scores stay on chip between the two products and the
            softmax; what does not fit there spills. Without, all scores go to memory, are fetched a row at a time for
            the softmax, and go there again. kept: of q, k and v, what is buffered whole instead of in blocks; without
            fusion q is, and the output.
    """

    rows: int
    fused: bool = True
    kept: frozenset[str] = frozenset()

    def spilled(self, chip: Chip, task: Attention) -> float:
        """The share of the scores of ``rows`` queries that the buffer has no place for, as all else is there twice."""
        if not self.fused:
            return 0.0
        sizes = {"q": self.rows, "k": task.n, "v": task.n}
        beside = sum(sizes[of] if of in self.kept else chip.side for of in sizes) + chip.side
        return max(1 - chip.buffer / BYTES / (self.rows * task.n + 2 * beside * task.e), 0.0)

    def traffic(self, chip: Chip, task: Attention) -> float:
        """Bytes to and from memory.

        Of a score, with the share s spilled: 14 s of the scores; of the output 2e/n; of each of q, k and v 2e/side, as
        every block fetches it, and (1 − s) 2e/n + s 2e/side of one that is kept. Unfused: 8 of the scores, which are
        written and read twice, 2 · 2e/rows of keys and values, and 2 · 2e/n of queries and outputs.
        """
        once, block = BYTES * task.e / task.n, BYTES * task.e / chip.side
        if not self.fused:
            return task.scores * (4 * BYTES + 2 * BYTES * task.e / self.rows + 2 * once)
        share = self.spilled(chip, task)
        fetched = sum((1 - share) * once + share * block if of in self.kept else block for of in "qkv")
        return task.scores * (fetched + once + PASSES * BYTES * share)

    def seconds(self, chip: Chip, task: Attention) -> float:
        """The longest of what the memory, the array and the vector elements take, which work at once.

        Fused, a block of scores takes the array e cycles for each product; without, keys and values stay in the array
        and side cycles go by for each.
        """
        each = 2 * task.e if self.fused else 2 * chip.side * math.ceil(task.e / chip.side)
        cycles = chip.blocks(task) * max(each, SOFTMAX * chip.side)
        return max(cycles / chip.clock, self.traffic(chip, task) / chip.bandwidth)


def dataflows(chip: Chip, task: Attention) -> Iterator[Dataflow]:
    """All that FLAT chooses from: those without fusion whose queries and outputs, and a row of scores, fit."""
    for rows in sorted({min(rows, task.n) for rows in (*ROWS, task.n)}):
        for count in range(4):
            yield from (Dataflow(rows, kept=frozenset(kept)) for kept in itertools.combinations("qkv", count))
        if rows in ROWS and BYTES * (2 * 2 * rows * task.e + task.n) <= chip.buffer:
            yield Dataflow(rows, fused=False)


def flat(task: Attention, chip: Chip = FLAT) -> Dataflow:
    """The dataflow of FLAT that is fastest, and of those the one that moves least.

    FLAT's own search, by a cost model of its own, ends at other ones where several take as long; and at 128k tokens of
    64 dimensions stays fused, which here takes 3% longer than not to.
    """
    return min(dataflows(chip, task), key=lambda of: (of.seconds(chip, task), of.traffic(chip, task)))


def sweeps(task: Attention, chip: Chip = FUSEMAX) -> int:
    """How often FuseMax fetches the keys: as many blocks of queries as divide theirs, and fit, are together."""
    blocks = task.n // chip.side
    fit = (chip.buffer - 2 * BYTES * chip.side * task.e) // (BYTES * chip.side * 2 * (task.e + 1))
    return next((blocks // count for count in range(min(fit, blocks), 0, -1) if blocks % count == 0), 0)


def fusemax(task: Attention, chip: Chip = FUSEMAX) -> tuple[float, float]:
    """Seconds and bytes of FuseMax: one pass over the keys, the softmax on the array, one block made behind another.

    A block takes e + 1 + e · side / n cycles in which the array makes products and maxima and the row, which is slower,
    sums outputs of the last one and divides; one for the running maximum; an exponential and two more on both; and e
    for products with values and corrections. Queries and outputs are moved once, keys and values `sweeps` times.

    Raises:
        ValueError: no block of queries fits, or the tokens are no multiple of the side.
    """
    blocks, times, e = chip.blocks(task), sweeps(task, chip), task.e
    if not times:
        raise wrong("buffer", f"{chip.buffer} bytes", f"room for {chip.side} queries and keys of {e} dimensions")
    cycles = e + 1 + e * chip.side / task.n + 1 + chip.exponential + 2 + e
    traffic = task.batch * task.heads * task.n * BYTES * 2 * e * (1 + times)
    return max(blocks * cycles / chip.clock, traffic / chip.bandwidth), traffic


def published(name: str, n: int) -> Attention:
    """The attention of BERT-Base, TrXL-wt103, T5-small or XLM in batches of 64, at some length.

    Raises:
        ValueError: another name.
    """
    if name not in MODELS:
        raise wrong("name", repr(name), ", ".join(MODELS))
    heads, e, inner = MODELS[name]
    return Attention(heads, n, e, inner=inner)


MODELS = {"BERT": (12, 64, 3072), "TrXL": (16, 64, 4096), "T5": (8, 64, 2048), "XLM": (16, 128, 8192)}
"""Heads, dimension of each, and channels inside of the network beside them, of the models of the comparison."""
