"""The laws of kernels: what computes ``A v`` gives the definition's outputs and gradients, whoever holds the tokens.

Kernels of ranks are run by threads of this process, each with its own part of the tokens. What examples are ``given``:
``heads``, ``kv_heads``, ``head_dim`` and ``value_dim`` of what they compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from regard.core.cost import Shape
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.core.mechanism import repeat_heads
from regard.kernels.base import Kernel
from regard.laws.finding import Broken, Unclaimed, same
from regard.parallel.base import Call, Sharded, Shards
from regard.parallel.group import Group, simulate
from regard.parallel.plan import Plan

N, M, BATCH = 23, 31, 2
BORDERS = (0, 5, 6, 17)
WIDE = torch.float64
SINGLE = (torch.float32, 1e-5)
WAIT = 0.5
"""Seconds that a rank waits where another one fails on purpose."""


class Computed:
    """A kernel under examination.

    Args:
        sample: the kernel. device: where it computes.
    """

    def __init__(self, sample: Sample, device: str = "cpu") -> None:
        self.kernel: Kernel = sample.thing
        self.device = device
        given = {"heads": 4, "kv_heads": 2, "head_dim": 5, "value_dim": 7, **sample.given}
        self.heads, self.groups = given["heads"], given["kv_heads"]
        self.dim, self.values = given["head_dim"], given["value_dim"]

    @property
    def directions(self) -> list[bool]:
        """Causal and not, as far as the kernel takes either."""
        traits = self.kernel.traits
        return [causal for causal in (True, False) if (traits.causal if causal else traits.bidirectional)]

    def draw(self, n: int, m: int, dtype: torch.dtype = WIDE, large: float = 1.0) -> list[Tensor]:
        """q, k, v and the kernel's signals."""
        noise = torch.Generator().manual_seed(7)
        sizes = [(self.heads, n, self.dim), (self.groups, m, self.dim), (self.groups, m, self.values)]
        found = [torch.randn(BATCH, *size, generator=noise, dtype=WIDE) for size in sizes]
        found[0] *= large
        for signal in self.kernel.signals.values():
            rows, size = signal.rows(self.heads, self.groups), signal.size(self.dim, self.values)
            found.append(signal.within(torch.randn(BATCH, rows, m, *size, generator=noise, dtype=WIDE)))
        return [x.to(self.device, dtype) for x in found]

    def plans(self, m: int, borders: tuple[int, ...] = (0,)) -> list[Plan]:
        """One rank, and several in even, ragged and zigzag shards, one of them empty; None of these for one process."""
        if not self.kernel.traits.sharded:
            return [Plan.even(m, 1, borders)]
        ragged = Plan.sized([m - 11, 0, 4, 7], borders) if m >= 11 else Plan.sized([0, m], borders)
        return [Plan.even(m, 1, borders), Plan.even(m, 3, borders), ragged, Plan.zigzag(m, 2, borders)]

    def queries(self, n: int, keys: Plan) -> Plan:
        """Who holds n queries over keys of a plan."""
        if self.kernel.traits.everywhere:
            return Plan.replicated(n, keys.ranks)
        return keys if n == keys.length else Plan.even(n, keys.ranks)

    def signals(self, given: list[Tensor]) -> dict[str, Tensor]:
        """Those of what was drawn, by name."""
        return dict(zip(self.kernel.signals, given[3:], strict=True))

    def wanted(self, given: list[Tensor], keys: Plan, causal: bool) -> Tensor:
        """``A v`` by the definition."""
        segments = torch.searchsorted(torch.tensor(keys.borders), torch.arange(keys.length), right=True)
        packed = segments.expand(BATCH, -1).to(self.device) if len(keys.borders) > 1 else None
        a = self.kernel.weights(given[0], given[1], Layout(causal=causal, segments=packed), **self.signals(given))
        return a @ repeat_heads(given[2], self.heads)

    def ran(self, given: list[Tensor], keys: Plan, causal: bool, upstream: Tensor | None = None) -> Ran:
        """What the kernel gives of whole tensors, and its gradients by ``upstream``."""
        queries = self.queries(given[0].shape[2], keys)
        plans = [queries, *[keys] * (len(given) - 1)]
        kernel: Any = self.kernel

        def work(group: Group) -> Ran:
            whole = not isinstance(kernel, Sharded)
            own = [x if whole or p.everywhere else p.split(x, 2, group.rank) for x, p in zip(given, plans, strict=True)]
            leaves = [x.detach().clone().requires_grad_(upstream is not None) for x in own]
            call = Call(keys, queries, group, causal)
            out = self.call(leaves, call)
            sent, slopes = group.sent, []
            if upstream is not None:
                mine = upstream if whole or queries.everywhere else queries.split(upstream, 2, group.rank)
                slopes = list(torch.autograd.grad(out, leaves, mine))
            return Ran(out.detach(), slopes, [sent], [group.sent - sent], group.collectives)

        found = simulate(keys.ranks, work)
        outs, slopes = [x.out for x in found], zip(*(x.slopes for x in found), strict=True)
        return Ran(
            queries.join(outs, 2),
            [plan.join(list(x), 2) for plan, x in zip(plans, slopes, strict=False)],
            [x.sent[0] for x in found],
            [x.sent_back[0] for x in found],
            found[0].collectives,
        )

    def call(self, given: list[Tensor], call: Call) -> Tensor:
        """One rank's call, or that of the whole."""
        kernel: Any = self.kernel
        if isinstance(kernel, Sharded):
            return kernel.attend(*given[:3], call=call, **self.signals(given))
        keys = call.keys
        segments = torch.searchsorted(torch.tensor(keys.borders), torch.arange(keys.length), right=True)
        packed = segments.expand(BATCH, -1).to(self.device) if len(keys.borders) > 1 else None
        return kernel(*given[:3], Layout(causal=call.causal, segments=packed))

    def demand_ranks(self) -> Sharded:
        """Unclaimed unless ranks compute together."""
        if not isinstance(self.kernel, Sharded):
            raise Unclaimed("one process")
        return self.kernel


class Ran:
    """What came of a run: the output and gradients of the whole, bytes that each rank sent, its collectives."""

    def __init__(
        self, out: Tensor, slopes: list[Tensor], sent: list[int], sent_back: list[int], collectives: int
    ) -> None:
        self.out, self.slopes, self.sent, self.sent_back, self.collectives = out, slopes, sent, sent_back, collectives


def lengths(subject: Computed) -> Iterator[tuple[int, int, bool]]:
    """``(n, m, causal)`` of all kinds of calls."""
    for causal in subject.directions:
        for n, m in ((N, N), (1, 1), *(((3, M), (1, M)) if subject.kernel.traits.cross else ())):
            yield n, m, causal


def definition(subject: Computed) -> str:
    """``A v`` as the definition has it, in float64 to 1e-10 and in float32 to 1e-5, of one token and of n ≠ m too."""
    worst = 0.0
    for n, m, causal in lengths(subject):
        plan = subject.plans(m)[-1 if m > 1 else 0]
        for dtype, tolerance in ((WIDE, 1e-10), SINGLE):
            given = subject.draw(n, m, dtype)
            want = subject.wanted([x.to(WIDE) for x in given], plan, causal)
            where = f"{n} over {m}, causal={causal}, {dtype}"
            worst = max(worst, same(subject.ran(given, plan, causal).out, want, tolerance, where) * (dtype == WIDE))
    return f"{worst:.0e}"


def gradients(subject: Computed) -> str:
    """The gradients of all inputs are those of the definition."""
    worst = 0.0
    for causal in subject.directions:
        given, plan = subject.draw(N, N), subject.plans(N)[-1]
        leaves = [x.clone().requires_grad_() for x in given]
        want = subject.wanted(leaves, plan, causal)
        upstream = torch.randn(want.shape, generator=torch.Generator().manual_seed(3), dtype=WIDE).to(want.device)
        slopes = torch.autograd.grad(want, leaves, upstream)
        found = subject.ran(given, plan, causal, upstream)
        for name, got, slope in zip(("q", "k", "v", *subject.kernel.signals), found.slopes, slopes, strict=True):
            worst = max(worst, same(got, slope, 1e-9, f"of {name}, causal={causal}"))
    return f"{worst:.0e}"


def packed(subject: Computed) -> str:
    """Packed documents do not see each other, wherever their borders lie; nor in the gradients."""
    if not subject.kernel.traits.packed:
        raise Unclaimed("one document")
    worst = 0.0
    for causal in subject.directions:
        given = subject.draw(N, N)
        for plan in subject.plans(N, BORDERS):
            leaves = [x.clone().requires_grad_() for x in given]
            want = subject.wanted(leaves, plan, causal)
            found = subject.ran(given, plan, causal, torch.ones_like(want))
            where = f"causal={causal}, {plan.shards}"
            worst = max(worst, same(found.out, want, 1e-10, where))
            slopes = torch.autograd.grad(want.sum(), leaves)
            for got, slope in zip(found.slopes, slopes, strict=True):
                worst = max(worst, same(got, slope, 1e-9, f"gradients, {where}"))
    return f"{worst:.0e}"


def half(subject: Computed) -> str:
    """In bfloat16 the error is that of rounding, however many ranks, with large scores too."""
    worst, causal = 0.0, subject.directions[0]
    for large in (1.0, 30.0):
        given = subject.draw(N, N, torch.bfloat16, large)
        for plan in [subject.plans(N)[0], Plan.even(N, 8)] if subject.kernel.traits.sharded else subject.plans(N):
            want = subject.wanted([x.to(WIDE) for x in given], plan, causal)
            worst = max(worst, same(subject.ran(given, plan, causal).out, want, 1.2e-2, f"{plan.ranks} ranks"))
    return f"{worst:.0e}"


def shards(subject: Computed) -> str:
    """Shards of any sizes, empty, in zigzag and in any order give what one process does, and so do their gradients."""
    subject.demand_ranks()
    worst = 0.0
    shuffled = Plan((((4, 9), (0, 2)), ((2, 4), (19, N)), ((9, 19),)))
    for causal in subject.directions:
        given = subject.draw(N, N)
        leaves = [x.clone().requires_grad_() for x in given]
        want = subject.wanted(leaves, shuffled, causal)
        slopes = torch.autograd.grad(want.sum(), leaves)
        for plan in (*subject.plans(N), shuffled):
            found = subject.ran(given, plan, causal, torch.ones_like(want))
            worst = max(worst, same(found.out, want, 1e-10, f"causal={causal}, {plan.shards}"))
            for got, slope in zip(found.slopes, slopes, strict=True):
                worst = max(worst, same(got, slope, 1e-9, f"gradients, causal={causal}, {plan.shards}"))
    return f"{worst:.0e}"


def traffic(subject: Computed) -> str:
    """Bytes that each rank sends equal the formula, forward and backward: no padding is sent, nothing twice."""
    kernel = subject.demand_ranks()
    total = 0
    for causal in subject.directions:
        for dtype in (WIDE, torch.bfloat16):
            given = subject.draw(N, N, dtype)
            for plan in subject.plans(N):
                upstream = torch.ones(BATCH, subject.heads, N, subject.values, dtype=dtype, device=subject.device)
                found = subject.ran(given, plan, causal, upstream)
                shape = Shape(
                    N, N, BATCH, subject.heads, subject.groups, subject.dim, subject.values, given[0].element_size()
                )
                for backward, sent in ((False, found.sent), (True, found.sent_back)):
                    told = kernel.traffic(plan, shape, causal=causal, backward=backward)
                    if sent != told:
                        raise Broken(f"{plan.shards}, backward={backward}: sent {sent} bytes, the formula has {told}")
                    total += sum(sent)
    return f"{total} bytes"


def decoding(subject: Computed) -> str:
    """Shards that grow by new tokens, several at a time or one, give what one causal call does."""
    kernel = subject.demand_ranks()
    if not kernel.traits.growing:
        raise Unclaimed("whole calls")
    given = subject.draw(N, N)
    want = subject.wanted(given, Plan.even(N, 1), True)

    def work(group: Group) -> tuple[Tensor, list[int]]:
        nothing, seen = given[1].new_zeros(BATCH, 0, 0, 0), torch.zeros(BATCH, dtype=torch.int64)
        state, outs, start = Shards(seen, nothing, nothing, Plan(((),) * group.size)), [], 0
        for new in (1, 11, 1, 1, 2, 7):
            part = slice(start, start + new)
            out, state = kernel.decode(*(x[:, :, part] for x in given[:3]), state=state, group=group)
            outs.append(out)
            start += new
        return torch.cat(outs, 2), state.plan.sizes

    worst = 0.0
    for ranks in (1, 3, 4):
        found = simulate(ranks, work)
        for rank, (out, sizes) in enumerate(found):
            worst = max(worst, same(out, want, 1e-10, f"rank {rank} of {ranks}"))
            if max(sizes) - min(sizes) > 1:
                raise Broken(f"ranks hold {sizes} tokens")
    return f"{worst:.0e}"


def failure(subject: Computed) -> str:
    """Where one rank's call does not fit, or it fails in the middle, no rank gives an output, none waits for ever."""
    kernel = subject.demand_ranks()
    given, plan, causal = subject.draw(N, N), Plan.even(N, 3), subject.directions[0]
    queries = subject.queries(N, plan)

    def outcome(group: Group, fault: str) -> str:
        own = [
            x if p.everywhere else p.split(x, 2, group.rank)
            for x, p in zip(given, [queries] + [plan] * 9, strict=False)
        ]
        if group.rank == 1 and fault == "shape":
            own[1] = own[1][:, :, 1:]
        if group.rank == 1 and fault == "another call":
            return ended(
                lambda: kernel.attend(*own[:3], call=replace(call_of(group), causal=not causal), **subject.signals(own))
            )
        if group.rank == 1 and fault == "in the middle":
            lose(group)
        return ended(lambda: kernel.attend(*own[:3], call=call_of(group), **subject.signals(own)))

    def call_of(group: Group) -> Call:
        return Call(plan, queries, group, causal)

    for fault in ("shape", "in the middle", *(("another call",) if len(subject.directions) > 1 else ())):
        ends = simulate(3, lambda group, fault=fault: outcome(group, fault), WAIT)
        if "" in ends:
            raise Broken(f"{fault}: rank {ends.index('')} gave an output")
    return "all ranks raise"


def ended(run: Callable[[], Tensor]) -> str:
    """The error that a call ended with; nothing where it gave an output."""
    try:
        run()
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def lose(group: Any) -> None:
    """Makes a rank fail in what it says after it has told that its call fits."""
    first, told = group.exchanging, []

    def failing(*given: Any) -> Any:
        told.append(given)
        if len(told) > 1 or isinstance(given[1], str):
            raise RuntimeError("connection lost")
        return first(*given)

    group.exchanging = group.reducing = failing


LAWS: dict[str, Callable[[Computed], str]] = {
    law.__name__: law for law in (definition, gradients, packed, half, shards, traffic, decoding, failure)
}
subject = Computed


def example(thing: Kernel, **given: Any) -> Sample:
    """A kernel as it is, and the sizes of its calls, as in the head of this module."""
    return Sample(type(thing).__name__, thing, given)
