"""Attention as cascades of extended einsums: how often each must pass over the keys, and what an array makes of it."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.errors import wrong

REDUCTIONS: dict[str, Callable[..., Tensor]] = {"sum": torch.sum, "max": torch.amax}
UNARY: dict[str, Callable[[Tensor], Tensor]] = {"exp": torch.exp}
PAIRS: dict[type, Callable[[Tensor, Tensor], Tensor]] = {
    ast.Mult: torch.mul,
    ast.Div: torch.div,
    ast.Add: torch.add,
    ast.Sub: torch.sub,
}


@dataclass(frozen=True)
class Ranked:
    """A tensor whose axes have names."""

    data: Tensor
    ranks: tuple[str, ...]

    def over(self, ranks: Sequence[str]) -> Tensor:
        """The data with its axes in the order of ``ranks``, those it lacks of size one."""
        order = [self.ranks.index(rank) for rank in ranks if rank in self.ranks]
        shape = [self.data.shape[self.ranks.index(rank)] if rank in self.ranks else 1 for rank in ranks]
        return self.data.permute(order).reshape(shape)


@dataclass(frozen=True)
class Einsum:
    """One step: ``name[ranks] = expression``, parsed.

    The expression is made of ``tensor[ranks]``, ``+ − * /``, ``exp(x)``, ``max(x, y)``, and the reductions
    ``sum(x, rank, …)`` and ``max(x, rank, …)``. A rank ``m1 + 1`` on the left makes m1 a rank of iteration: the step
    for m1 gives what the next one reads; ``tensor[M1]`` is what the last step left.
    """

    name: str
    ranks: tuple[str, ...]
    step: str | None
    expression: ast.expr

    @classmethod
    def parse(cls, text: str) -> Einsum:
        """From one line.

        Raises:
            ValueError: it is no such line.
        """
        try:
            statement = ast.parse(text.strip()).body[0]
            assert isinstance(statement, ast.Assign)
            assert isinstance(statement.targets[0], ast.Subscript)
            name, ranks = subscript(statement.targets[0])
        except (SyntaxError, AssertionError, IndexError) as error:
            raise wrong("einsum", repr(text), "a line such as 'GM[p] = max(QK[m, p], m)'") from error
        step = next((rank[:-2] for rank in ranks if rank.endswith("+1")), None)
        return cls(name, ranks, step, statement.value)

    @property
    def reads(self) -> list[tuple[str, tuple[str, ...]]]:
        """Every tensor that is read, with its ranks as written."""
        return [subscript(node) for node in ast.walk(self.expression) if isinstance(node, ast.Subscript)]


def subscript(node: ast.Subscript) -> tuple[str, tuple[str, ...]]:
    """``(name, ranks)`` of ``name[ranks]``."""
    inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    return ast.unparse(node.value), tuple(ast.unparse(part).replace(" ", "") for part in inner)


@published(
    "fusemax",
    family="parallel",
    kind="study",
    row=267,
    title="FuseMax: Leveraging Extended Einsums to Optimize Attention Accelerator Design",
    arxiv="2406.10491",
    year=2024,
    aliases=("einsum_cascade",),
    fidelity="authors' code",
    claim=(
        Claim(
            (
                "naive, deferred and running softmax pass three times, twice and once over the keys, and are "
                "one function"
            ),
            cells="planning.passes",
            holds="planning.are_three_two_one",
        ),
        Claim(
            "the one-pass cascade keeps a two-dimensional array busy with buffers that do not grow",
            cells="planning.array",
            holds="planning.stays_busy",
        ),
        Claim(
            "it is 6.7 times as fast as FLAT in attention, and 5.3 times in whole networks, on average",
            cells="planning.beside_flat",
            holds="planning.is_faster_by_as_much",
        ),
    ),
)
class Cascade:
    """Einsums in order, which can be run and analysed.

    Paper: Nayak et al., arXiv 2406.10491 (MICRO 2024). How fast FLAT and FuseMax are, `regard.studies.flat` says.

    Args:
        text: one einsum a line, see `Einsum`. name: what it is called.
    """

    def __init__(self, text: str, name: str = "") -> None:
        self.name, self.text = name, text
        self.steps = [Einsum.parse(line) for line in text.strip().splitlines() if line.strip()]

    def passes(self, rank: str) -> int:
        """How often a full fiber of ``rank`` must be gone through.

        A step that runs over the rank and needs what was reduced over all of it can only begin when that pass has
        ended. ``rank`` may be split: ``m`` stands for m, m0, m1 … alike; what keeps one of them is no full reduction.
        """

        def runs(ranks: Sequence[str]) -> bool:
            return any(r.removesuffix("+1").rstrip("0123456789") == rank for r in ranks)

        ready: dict[str, int] = {}  # the pass in which a tensor is made, or after which a reduced one is known
        for step in self.steps:
            needs = [(ready.get(name, 1), runs(ranks)) for name, ranks in step.reads if name in ready or runs(ranks)]
            walks = runs(step.ranks) or any(along for _, along in needs)
            ready[step.name] = max([count + (walks and not along) for count, along in needs], default=0)
        return max(ready.values())

    def run(self, **inputs: Ranked) -> dict[str, Ranked]:
        """Every tensor of the cascade; consecutive steps of one rank of iteration, and those between, run as a loop."""
        known, sizes = dict(inputs), {}
        for tensor in inputs.values():
            sizes |= dict(zip(tensor.ranks, tensor.data.shape, strict=True))
        stepped = [i for i, step in enumerate(self.steps) if step.step]
        if not stepped:
            for step in self.steps:
                known[step.name] = evaluate(step, known, None)
            return known
        first, last, along = stepped[0], stepped[-1], self.steps[stepped[0]].step
        assert along is not None
        for step in self.steps[:first]:
            known[step.name] = evaluate(step, known, None)
        for i in range(sizes[along]):
            for step in self.steps[first : last + 1]:
                known[step.name if not step.step else f"{step.name}'"] = evaluate(step, known, (along, i))
            for step in self.steps[first : last + 1]:
                if step.step:
                    known[step.name] = known[f"{step.name}'"]
        for step in self.steps[last + 1 :]:
            known[step.name] = evaluate(step, known, (along, sizes[along]))
        return known


def evaluate(step: Einsum, known: Mapping[str, Ranked], at: tuple[str, int] | None) -> Ranked:
    """One step; inside of a loop at ``(rank, index)``."""
    along = None if at is None else at[0]

    def value(node: ast.expr) -> Ranked:
        if isinstance(node, ast.Subscript):
            name, ranks = subscript(node)
            following = any(rank.endswith("+1") for rank in ranks)
            found = known[f"{name}'"] if following else known[name]
            if at is not None and along in found.ranks:
                place = found.ranks.index(at[0])
                return Ranked(found.data.select(place, at[1]), tuple(rank for rank in found.ranks if rank != along))
            return found
        if isinstance(node, ast.BinOp):
            return joined(PAIRS[type(node.op)], value(node.left), value(node.right))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name, first = node.func.id, value(node.args[0])
            if name in UNARY:
                return Ranked(UNARY[name](first.data), first.ranks)
            if all(isinstance(rank, ast.Name) for rank in node.args[1:]):
                gone = [ast.unparse(rank) for rank in node.args[1:]]
                kept = tuple(rank for rank in first.ranks if rank not in gone)
                return Ranked(REDUCTIONS[name](first.data, [first.ranks.index(r) for r in gone]), kept)
            return joined(torch.maximum, first, value(node.args[1]))
        raise wrong("expression", ast.unparse(node), "tensors, + − * /, exp, max and sum")

    found = value(step.expression)
    wanted = tuple(rank for rank in step.ranks if rank.removesuffix("+1") != along)
    return Ranked(found.over(wanted), wanted)


def joined(function: Callable[[Tensor, Tensor], Tensor], a: Ranked, b: Ranked) -> Ranked:
    """Both over the ranks of both."""
    ranks = (*a.ranks, *(rank for rank in b.ranks if rank not in a.ranks))
    return Ranked(function(a.over(ranks), b.over(ranks)), ranks)


NAIVE = Cascade(
    """
    QK[m, p] = sum(Q[e, p] * K[e, m], e)
    GM[p] = max(QK[m, p], m)
    SN[m, p] = exp(QK[m, p] - GM[p])
    SD[p] = sum(SN[m, p], m)
    A[m, p] = SN[m, p] / SD[p]
    AV[f, p] = sum(A[m, p] * V[f, m], m)
    """,
    "naive",
)
DEFERRED = Cascade(
    """
    QK[m, p] = sum(Q[e, p] * K[e, m], e)
    GM[p] = max(QK[m, p], m)
    SN[m, p] = exp(QK[m, p] - GM[p])
    SD[p] = sum(SN[m, p], m)
    SNV[f, p] = sum(SN[m, p] * V[f, m], m)
    AV[f, p] = SNV[f, p] / SD[p]
    """,
    "deferred division",
)
RUNNING = Cascade(
    """
    BQK[m1, m0, p] = sum(Q[e, p] * BK[e, m1, m0], e)
    LM[m1, p] = max(BQK[m1, m0, p], m0)
    RM[m1+1, p] = max(RM[m1, p], LM[m1, p])
    SLN[m1, m0, p] = exp(BQK[m1, m0, p] - RM[m1+1, p])
    PRM[m1, p] = exp(RM[m1, p] - RM[m1+1, p])
    SLD[m1, p] = sum(SLN[m1, m0, p], m0)
    RD[m1+1, p] = RD[m1, p] * PRM[m1, p] + SLD[m1, p]
    SLNV[f, m1, p] = sum(SLN[m1, m0, p] * BV[f, m1, m0], m0)
    RNV[f, m1+1, p] = RNV[f, m1, p] * PRM[m1, p] + SLNV[f, m1, p]
    AV[f, p] = RNV[f, M1, p] / RD[M1, p]
    """,
    "running maximum",
)


def attention_by(cascade: Cascade, q: Tensor, k: Tensor, v: Tensor, block: int = 16) -> Tensor:
    """``(p, f)`` from ``q (p, e)``, already scaled, ``k (m, e)``, ``v (m, f)``; block divides m."""
    inputs = {"Q": Ranked(q.mT, ("e", "p")), "K": Ranked(k.mT, ("e", "m")), "V": Ranked(v.mT, ("f", "m"))}
    if "BK" in cascade.text:
        if k.shape[0] % block:
            raise wrong("block", str(block), f"a divisor of the {k.shape[0]} keys")
        names = ("m1", "m0")
        inputs = {
            "Q": inputs["Q"],
            "BK": Ranked(k.mT.unflatten(1, (-1, block)), ("e", *names)),
            "BV": Ranked(v.mT.unflatten(1, (-1, block)), ("f", *names)),
            "RM": Ranked(q.new_full((q.shape[0],), -torch.inf), ("p",)),
            "RD": Ranked(q.new_zeros(q.shape[0]), ("p",)),
            "RNV": Ranked(q.new_zeros(v.shape[1], q.shape[0]), ("f", "p")),
        }
    return cascade.run(**inputs)["AV"].over(("p", "f"))


@dataclass(frozen=True)
class Modelled:
    """What the array model says of one head.

    Args:
        cycles: all. utilisation: share of the cycles in which the two-dimensional array works. buffer: numbers kept on
            chip. traffic: numbers moved to and from memory. energy: joules.
    """

    cycles: float
    utilisation: float
    buffer: int
    traffic: int
    energy: float


@dataclass(frozen=True)
class Array:
    """A two-dimensional array of multiply-add elements beside a row of vector elements.

    Each element of the array holds one score; for it the array spends e cycles on q·k, one on the maximum,
    ``exp_macs`` on the exponential, one on its sum and f on the values. The row spends one cycle on the running
    maximum, ``exp_macs`` on the correction, two on the sum and f on the corrected values of each query and block. A
    cascade of several passes leaves the exponential to the row, as the accelerators before FuseMax do.

    Args:
        rows, columns: keys and queries of a block. vectors: elements of the row. exp_macs: multiply-adds of an
            exponential (6). mac_pj, chip_pj, memory_pj: picojoules of a multiply-add and of a number moved on chip and
            to memory, in 16 bits; the defaults are Horowitz's (ISSCC 2014) for 45 nm.
    """

    rows: int = 256
    columns: int = 256
    vectors: int = 256
    exp_macs: int = 6
    mac_pj: float = 1.5
    chip_pj: float = 2.5
    memory_pj: float = 325.0

    def model(self, cascade: Cascade, n: int, m: int, e: int, f: int) -> Modelled:
        """Of ``n`` queries and ``m`` keys of dimensions e and f."""
        passes = cascade.passes("m")
        blocks, sweeps = math.ceil(m / self.rows), math.ceil(n / self.columns)
        fill = self.rows + self.columns
        per_column = self.columns / self.vectors
        if passes == 1:
            array, row = e + f + 2 + self.exp_macs, (f + 3 + self.exp_macs) * per_column
            buffer = self.columns * (e + 2 * f + 4) + 2 * self.rows * (e + f) + self.rows * self.columns
        else:
            array, row = e + f, self.rows * (self.exp_macs + passes) * per_column
            buffer = self.columns * (e + f + 2 + m) + 2 * self.rows * (e + f)
        cycles = sweeps * (blocks * max(array, row) + fill)
        traffic = sweeps * m * (e + f) + n * (e + f)
        macs = n * m * (e + f + self.exp_macs)
        energy = 1e-12 * (macs * self.mac_pj + 2 * macs / self.rows * self.chip_pj + traffic * self.memory_pj)
        return Modelled(cycles, sweeps * blocks * array / cycles, buffer, traffic, energy)
