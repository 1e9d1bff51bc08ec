"""Linear attention over shards: what goes from rank to rank is a matrix, whatever the length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.build import build_text
from regard.core.cost import Shape
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.core.mechanism import Signal
from regard.kernels.base import KernelTraits
from regard.kernels.scan import Segment, segment
from regard.mechanisms.linear.base import Recurrent
from regard.parallel.base import CHECK, Call, Sharded
from regard.parallel.plan import Plan


@published(
    "lasp2",
    family="kernels",
    kind="kernel",
    row=172,
    title="LASP-2: Rethinking Sequence Parallelism for Linear Attention and Its Hybrid",
    arxiv="2502.07563",
    year=2025,
    aliases=("lasp_2", "linear_sequence_parallelism"),
    fidelity="hand values",
    claim=(
        Claim(
            "one collective forward and one backward, of as many bytes at any length",
            cells="parallel.state_bytes",
            holds="parallel.is_one_collective",
        ),
        Claim(
            "trains a hybrid of linear and softmax layers as one process does",
            cells="parallel.hybrid",
            holds="parallel.trains_alike",
        ),
    ),
)
class States(Sharded):
    """Each rank sums up its tokens as what they do to a state, all gather these, and each scans on from its own start.

        S before a range = the segments before it, merged;   segment: S ↦ A S + B,   B = Σ_t (decayed) k_t v_tᵀ

    One collective forward, of the segments, one backward, of the gradients of the states that ranges began with. A is
    one number a head or channel, or a matrix under the delta rule; without decays it is 1. Bidirectional, the state of
    a document is the sum of all its segments.

    Args:
        mechanism: a `Recurrent` one or a text of the atlas, "linear" for instance.

    Shapes on rank r: ``q (b, h, n_r, d)``, ``k (b, g, n_r, d)``, ``v (b, g, n_r, e)``, signals by token ->
    ``(b, h, n_r, e)``.
    Cost: two scans of a rank's tokens, three with a delta rule; P R d e numbers a head gathered, of R ranges a rank.

    Raises:
        ValueError: a mechanism whose past is no matrix alone.

    Paper: Sun et al., LASP-2, arXiv 2502.07563, which has no decays, packing or ranges in zigzag. Layers of softmax
    attention between gather keys and values: `Gather`.
    """

    how = "state"

    def __init__(self, mechanism: Any = "linear") -> None:
        found = build_text(mechanism) if isinstance(mechanism, str) else mechanism
        if not isinstance(found, Recurrent):
            what = f"{type(found).__name__}, whose past is no matrix alone"
            raise wrong("mechanism", what, "a recurrence over a matrix, such as linear, gla or gated_deltanet")
        self.mechanism: Recurrent = found
        traits = self.mechanism.traits
        self.signals: Mapping[str, Signal] = self.mechanism.signals
        self.traits = KernelTraits(causal=traits.causal, bidirectional=traits.bidirectional, cross=False, sharded=True)

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        return self.mechanism.weights(q, k, layout, **signals)

    def check(self, q: Tensor, k: Tensor, v: Tensor, call: Call, signals: dict[str, Tensor]) -> None:
        super().check(q, k, v, call, signals)
        if call.scale is not None:
            raise wrong("scale", str(call.scale), "None: features of a linear mechanism are its own")
        self.mechanism.check(q, k, v, Layout(causal=call.causal), signals)

    def run(self, q: Tensor, k: Tensor, v: Tensor, call: Call, **signals: Tensor) -> Tensor:
        return (self.causal if call.causal else self.bidirectional)(q, k, v, call, signals)

    def causal(self, q: Tensor, k: Tensor, v: Tensor, call: Call, signals: Mapping[str, Tensor]) -> Tensor:
        """Every range scanned from the state before it."""
        links, inputs = ranges(call.keys), []
        for link in links[call.rank]:
            signal = {name: x[:, :, link.place] for name, x in signals.items()}
            asks, keys, values = (x[:, :, link.place] for x in (q, k, v))
            resets = opened(call.keys, link, k)
            inputs.append(self.mechanism.scan_inputs(asks, keys, values, None, resets, signal))
        found = [segment(x) for x in inputs]
        whole = [tensor for own in found for tensor in (own.transition, own.state)]
        before = cast(Any, Before.apply)(call, links, *whole)
        outs = [self.mechanism.run(x, state)[0] for x, state in zip(inputs, before, strict=True)]
        return torch.cat([self.mechanism.finish(out, q.dtype) for out in outs], 2)

    def bidirectional(self, q: Tensor, k: Tensor, v: Tensor, call: Call, signals: Mapping[str, Tensor]) -> Tensor:
        """Every part of a document reads the sum of all parts of it."""
        links, inputs = parts(call.keys), []
        for link in links[call.rank]:
            signal = {name: x[:, :, link.place] for name, x in signals.items()}
            asks, keys, values = (x[:, :, link.place] for x in (q, k, v))
            inputs.append(self.mechanism.scan_inputs(asks, keys, values, None, None, signal))
        sums = cast(Any, Together.apply)(call, links, *(x.k.mT @ x.v for x in inputs))
        outs = [self.mechanism.finish(x.q @ kv, q.dtype) for x, kv in zip(inputs, sums, strict=True)]
        return torch.cat(outs, 2)

    def traffic(
        self, plan: Plan, shape: Shape, *, causal: bool = True, backward: bool = False, check: bool = True, **given
    ) -> list[int]:
        """A rank gives each other one what its ranges, or parts of documents, do to a state; no number of tokens."""
        d, e = self.mechanism.feature_dim(shape.head_dim), shape.values + self.mechanism.normalised
        matrix = self.mechanism.kind != "plain"
        transition = d * d if matrix else d if self.mechanism.by_channel else 1
        numbers = d * e + (transition if causal and not backward else 0)
        links = [len(own) for own in (ranges if causal else parts)(plan)]
        each = shape.batch * shape.heads * numbers * max(shape.itemsize, 4)
        return [(plan.ranks - 1) * (own * each + CHECK * (check and not backward)) for own in links]

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [
            Sample("linear", cls("linear")),
            Sample("gla", cls("gla")),
            Sample("gated_deltanet", cls("gated_deltanet")),
        ]


@dataclass(frozen=True)
class Link:
    """Some tokens that are summed up as one.

    Args:
        place: in the rank's memory. first: token; behind all for a rank that holds none. document: theirs.
    """

    place: slice
    first: int
    document: int = 0


def ranges(plan: Plan) -> list[list[Link]]:
    """For each rank its ranges, at least one, which may be empty."""
    found = []
    for held in plan.shards:
        ends = [0]
        for first, last in held:
            ends.append(ends[-1] + last - first)
        own = [Link(slice(a, b), first) for a, b, (first, _) in zip(ends, ends[1:], held, strict=False)]
        found.append(own or [Link(slice(0, 0), plan.length)])
    return found


def parts(plan: Plan) -> list[list[Link]]:
    """For each rank the parts of documents that it holds, at least one, which may be empty and of no document."""
    found = []
    for rank in range(plan.ranks):
        pieces = plan.pieces(rank)
        own = [Link(slice(at, at + last - first), first, document) for document, at, (first, last) in pieces]
        found.append(own or [Link(slice(0, 0), plan.length, -1)])
    return found


def opened(plan: Plan, link: Link, like: Tensor) -> Tensor | None:
    """``(b, tokens)`` bool: before which tokens of a range a packed document begins; None where none is packed."""
    if len(plan.borders) == 1:
        return None
    tokens = torch.arange(link.first, link.first + link.place.stop - link.place.start)
    opens = torch.isin(tokens, torch.tensor(plan.borders)).to(like.device)
    return opens.expand(like.shape[0], -1)


def collect(own: Tensor, links: list[list[Link]], call: Call) -> list[list[Tensor]]:
    """Of every rank what it has for each of its links, where this one has ``own (links, b, h, numbers)``."""
    every = call.group.gather(own, [(len(theirs), *own.shape[1:]) for theirs in links])
    return [list(part.unbind(0)) for part in every]


class Before(torch.autograd.Function):
    """The state before each of a rank's ranges, of the segments of all; the first begins with zero."""

    @staticmethod
    def forward(ctx, call, links, *given):
        transitions, states = given[::2], given[1::2]
        own = torch.stack(
            [torch.cat([a.flatten(2), b.flatten(2)], 2) for a, b in zip(transitions, states, strict=True)]
        )
        split, (a, b) = transitions[0][0, 0].numel(), (transitions[0].shape, states[0].shape)
        every = collect(own, links, call)
        segments = [[Segment(x[..., :split].view(a), x[..., split:].view(b)) for x in theirs] for theirs in every]
        state, before, order = torch.zeros_like(states[0]), [torch.zeros_like(x) for x in states], in_order(links)
        for rank, place in order:
            if rank == call.rank:
                before[place] = state
            state = segments[rank][place].after(state)
        ctx.save_for_backward(*before, *(x.transition for theirs in segments for x in theirs))
        ctx.call, ctx.links = call, links
        return tuple(x.clone() for x in before)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):
        call, links, count = ctx.call, ctx.links, len(grads)
        before, flat = ctx.saved_tensors[:count], iter(ctx.saved_tensors[count:])
        transitions = [[next(flat) for _ in theirs] for theirs in links]
        slopes = collect(torch.stack([grad.flatten(2) for grad in grads]), links, call)
        later, found = torch.zeros_like(before[0]), [before[0]] * (2 * count)
        for rank, place in reversed(in_order(links)):  # `later` is the gradient of the state behind this link
            transition = transitions[rank][place]
            if rank == call.rank:
                found[2 * place] = slope_of(transition, later, before[place])
                found[2 * place + 1] = later
            carried = transition * later if transition.shape[-1] == 1 else transition.mT @ later
            later = slopes[rank][place].view_as(later) + carried
        return None, None, *found


def slope_of(transition: Tensor, later: Tensor, before: Tensor) -> Tensor:
    """The gradient of a transition, of that of the state behind it and the state before it."""
    if transition.shape[-1] > 1:
        return later @ before.mT
    rows = (later * before).sum(-1, keepdim=True)
    return rows if transition.shape[2] > 1 else rows.sum(2, keepdim=True)


class Together(torch.autograd.Function):
    """For each part of a document that a rank holds the sum over all parts of it; backward the same of gradients."""

    @staticmethod
    def forward(ctx, call, links, *own):
        ctx.call, ctx.links = call, links
        return together(call, links, own)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):
        return None, None, *together(ctx.call, ctx.links, grads)


def together(call: Call, links: list[list[Link]], own: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """For each of a rank's links the sum over all links of its document."""
    every = collect(torch.stack(list(own)), links, call)
    sums: dict[int, Tensor] = {}
    for theirs, tensors in zip(links, every, strict=True):
        for link, x in zip(theirs, tensors, strict=True):
            sums[link.document] = sums[link.document] + x if link.document in sums else x
    return tuple(sums[link.document].clone() for link in links[call.rank])


def in_order(links: list[list[Link]]) -> list[tuple[int, int]]:
    """``(rank, place among its links)`` by the first token."""
    every = [(link.first, rank, place) for rank, own in enumerate(links) for place, link in enumerate(own)]
    return [(rank, place) for _, rank, place in sorted(every)]
