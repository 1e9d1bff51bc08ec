"""Memories that learn while they read: weights that take a gradient step for every token, in chunks of matrix
products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from regard.kernels.scan.decays import Sums

WINDOW = 2048
"""Tokens after which the backward pass starts from a kept state, and computes what lies between again."""
EPSILON = 0.1
"""Added to the variance that a memory's output is normed by. The gradients of what is normed are as the inverse of its
size, so that with a thousandth of this a rounding error becomes one of the whole within some hundred tokens."""

through_gelu = torch.ops.aten.gelu_backward
"""A derivative by GELU's value and GELU's argument, to the one by the argument."""

Some = TypeVar("Some", bound=Any)

Factors = tuple[Tensor, Tensor]
"""``(x_t, δ_t)`` of every token of a chunk, whose outer products are the gradients of one layer."""


@dataclass(frozen=True)
class Inputs:
    """What a memory reads of each token.

    Args:
        q, k: ``(b, h, n, d)``. v: ``(b, h, n, e)``.
        step: ``(b, h, n)``, θ, what its gradient is multiplied with; ``(b, h, n, c)`` for one of each channel, see
            `Channels`. log_decay: likewise log(1 − α), −inf to 0.
        log_momentum: ``(b, h, n)``, log η, None for no momentum. threshold: as ``step``, where a rule has one.
        real: ``(b, h, n)``, 0 for what is no token, whose step and logs are 0; None for all 1. The step of another adds
            the momentum to the sums even where θ = 0 and η = 1.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    step: Tensor
    log_decay: Tensor
    log_momentum: Tensor | None = None
    threshold: Tensor | None = None
    real: Tensor | None = None

    @property
    def of_channels(self) -> bool:
        """Each channel has its own step and decay."""
        return self.step.dim() == self.q.dim()

    @property
    def limit(self) -> Tensor | None:
        """The threshold as it compares with errors, ``(b, h, n, 1)`` or one of each channel."""
        return self.threshold if self.threshold is None or self.of_channels else self.threshold[..., None]

    @property
    def tensors(self) -> list[Tensor]:
        return present(self)

    def like(self, tensors: Sequence[Tensor]) -> Inputs:
        """The same with other tensors in the place of `tensors`."""
        return exchanged(self, tensors)

    def each(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """Every tensor changed alike."""
        return self.like([change(x) for x in self.tensors])


@dataclass(frozen=True)
class Weights:
    """A memory between two tokens: for each of its layers a tensor ``(b, h, i, o)``.

    Args:
        sums: A, what the steps add up in. momentum: S, empty without.
        anchor: the weights at the start of the chunk, whose gradients its tokens take.
        reading: what a rule keeps of the chunk's first token, empty where it keeps nothing.
    """

    sums: tuple[Tensor, ...]
    momentum: tuple[Tensor, ...]
    anchor: tuple[Tensor, ...]
    reading: tuple[Tensor, ...] = ()

    @property
    def tensors(self) -> list[Tensor]:
        return [x for f in fields(self) for x in getattr(self, f.name)]

    def like(self, tensors: list[Tensor]) -> Weights:
        """The same with other tensors in the place of `tensors`."""
        left = iter(tensors)
        return Weights(*(tuple(next(left) for _ in getattr(self, f.name)) for f in fields(self)))

    def where(self, chosen: Tensor, other: Weights) -> Weights:
        """This memory of the sequences ``chosen (b,)``, the other's of the rest."""
        at = chosen[:, None, None, None]
        pairs = zip(self.tensors, other.tensors, strict=True)
        return self.like([torch.where(at, mine, theirs) for mine, theirs in pairs])


def present(given: Any) -> list[Tensor]:
    """The tensors among the fields."""
    return [x for f in fields(given) if (x := getattr(given, f.name)) is not None]


def exchanged(given: Some, tensors: Sequence[Tensor]) -> Some:
    """Other tensors in the place of those among the fields."""
    left, named = iter(tensors), {f.name: getattr(given, f.name) for f in fields(given)}
    return type(given)(**{name: None if x is None else next(left) for name, x in named.items()})


def unbound(given: Some) -> list[Some]:
    """One for each chunk, all of which stand in the axis after the heads."""
    parts = [x.unbind(2) for x in present(given)]
    return [exchanged(given, each) for each in zip(*parts, strict=True)]


class Rule:
    """What a memory learns by: the loss of a token, and how its weights follow from the sums of its gradients.

    The memory is ``M(x) = σ(… σ(x W_1) …) W_L`` with GELU as σ, or ``x + LN(…)`` of it. The loss is ``‖M(k) − v‖²``,
    and the weights are the sums themselves, W_t = A_t; a subclass changes that.

    Args:
        residual: x + LN(·), without learned scales. current: a token reads the sums of its own time, and not only what
            `kept` kept at the start of its chunk. summed: one step for each chunk, as of `summed`.
    """

    residual: bool = False
    current: bool = True
    summed: bool = False

    def slope(self, error: Tensor, threshold: Tensor | None) -> Tensor:
        """The derivative of the loss by M(k), of ``error = M(k) − v (…, n, e)``; ``threshold`` as `Inputs.limit`."""
        return 2 * error

    def loss(self, error: Tensor, threshold: Tensor | None) -> Tensor:
        """The loss of each token ``(…, n)``, of which `slope` is the derivative."""
        return error.square().sum(-1)

    def kept_size(self, sizes: list[tuple[int, int]]) -> int:
        """How many numbers `kept` keeps of layers of these sizes."""
        return 0

    def kept(self, first: Tensor) -> Tensor | None:
        """What is kept of one layer's sums after the first token of a chunk; None where weights are the sums."""
        return None

    def weights(self, sums: Tensor, kept: Tensor) -> Tensor:
        """One layer's weights from its sums and what was kept."""
        return sums

    def product(self, read: Callable[[], Tensor], x: Tensor, kept: Tensor) -> Tensor:
        """x times the weights of each token's own time; ``read`` gives x times the sums."""
        return read()

    def initial(self, weights: Tensor) -> Tensor:
        """The sums whose weights are ``weights``, before the first token."""
        return weights

    def begun(self, sums: tuple[Tensor, ...], momentum: bool) -> Weights:
        """The memory before any token, of its learned weights."""
        first = tuple(self.initial(x) for x in sums)
        kept = [self.kept(x) for x in first]
        reading = tuple(x for x in kept if x is not None)
        nothing = tuple(torch.zeros_like(x) for x in first) if momentum else ()
        return Weights(first, nothing, self.present(first, reading), reading)

    def present(self, sums: tuple[Tensor, ...], reading: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The weights of all layers."""
        return tuple(map(self.weights, sums, reading)) if reading else sums

    def output(self, y: Tensor, x: Tensor) -> Tensor:
        """M(x) from the last layer's product y."""
        return x + F.layer_norm(y, y.shape[-1:], eps=EPSILON) if self.residual else y

    def through(self, slope: Tensor, y: Tensor) -> Tensor:
        """The derivative by y from the one by M(x)."""
        if not self.residual:
            return slope
        variance, mean = torch.var_mean(y, -1, correction=0, keepdim=True)
        scale = (variance + EPSILON).rsqrt()
        normed = (y - mean) * scale
        return scale * (slope - slope.mean(-1, keepdim=True) - normed * (slope * normed).mean(-1, keepdim=True))


def recall(rule: Rule, weights: tuple[Tensor, ...], x: Tensor) -> Tensor:
    """M(x) with these weights for all of ``x (b, h, n, d)``."""
    y = x @ weights[0]
    for layer in weights[1:]:
        y = F.gelu(y) @ layer
    return rule.output(y, x)


def gradients(rule: Rule, weights: tuple[Tensor, ...], x: Inputs) -> list[Factors]:
    """Of each layer the factors ``(x_t, δ_t)`` of every token's gradient ``x_t δ_tᵀ``, at these weights."""
    read, products = [x.k], [x.k @ weights[0]]
    for layer in weights[1:]:
        read.append(F.gelu(products[-1]))
        products.append(read[-1] @ layer)
    error = rule.output(products[-1], x.k) - x.v
    slopes = [rule.through(rule.slope(error, x.limit), products[-1])]
    for layer, product in zip(reversed(weights[1:]), reversed(products[:-1]), strict=True):
        slopes.append(through_gelu(slopes[-1] @ layer.mT, product))
    return list(zip(read, reversed(slopes), strict=True))


@dataclass(frozen=True)
class Ways:
    """How gradients and states reach each token of a chunk, and its end."""

    @property
    def tensors(self) -> list[Tensor]:
        return present(self)

    def like(self, tensors: Sequence[Tensor]) -> Self:
        """The same with other tensors in the place of `tensors`."""
        return exchanged(self, tensors)

    def read(self, x: Tensor, place: int, factors: Factors, w: Weights) -> Tensor:
        """Each token times a layer's sums of its own time."""
        raise NotImplementedError

    def first(self, place: int, factors: Factors, w: Weights) -> Tensor:
        """One layer's sums behind the chunk's first token."""
        raise NotImplementedError

    def moved(self, place: int, factors: Factors, w: Weights) -> tuple[Tensor, Tensor | None]:
        """One layer's sums and momentum behind the chunk."""
        raise NotImplementedError


@dataclass(frozen=True)
class Spread(Ways):
    """Gates of each head, with momentum or without, over a chunk of C.

    Args:
        pairs: ``(b, h, C, C)``, what token t's sums hold of the gradient of token s. sums, momentum: ``(b, h, C,
            1)``, what they hold of the sums and the momentum before the chunk; momentum None without.
        last, still: ``(b, h, C, 1)``, what the end's sums and the end's momentum hold of each gradient.
        left: ``(b, h, 1, 1)``, what the end's momentum holds of the one before.
    """

    pairs: Tensor
    sums: Tensor
    momentum: Tensor | None
    last: Tensor
    still: Tensor | None
    left: Tensor | None

    def read(self, x: Tensor, place: int, factors: Factors, w: Weights) -> Tensor:
        read, slope = factors
        within = (self.pairs * (x @ read.mT)) @ slope
        if self.momentum is None:
            return self.sums * (x @ w.sums[place]) - within
        return self.sums * (x @ w.sums[place]) + self.momentum * (x @ w.momentum[place]) - within

    def first(self, place: int, factors: Factors, w: Weights) -> Tensor:
        (read, slope), sums = factors, w.sums[place] * self.sums[..., :1, :]
        if self.momentum is not None:
            sums = sums + w.momentum[place] * self.momentum[..., :1, :]
        return sums - read[..., :1, :].mT * (slope[..., :1, :] * self.pairs[..., :1, :1])

    def moved(self, place: int, factors: Factors, w: Weights) -> tuple[Tensor, Tensor | None]:
        (read, slope), sums = factors, w.sums[place]
        new = read.mT @ (slope * -self.last)
        if self.momentum is None or self.still is None or self.left is None:
            return torch.addcmul(new, sums, self.sums[..., -1:, :]), None
        momentum, carried = w.momentum[place], read.mT @ (slope * -self.still)
        new = torch.addcmul(torch.addcmul(new, sums, self.sums[..., -1:, :]), momentum, self.momentum[..., -1:, :])
        return new, torch.addcmul(carried, momentum, self.left)


@dataclass(frozen=True)
class Channels(Ways):
    """Gates of each channel, without momentum: of the channels that the last layer writes, and the first of two reads.

        A_t = A_{t−1} diag(a_t) − x_t (θ_t ⊙ δ_t)ᵀ   in the last layer
        A_t = diag(a_t) A_{t−1} − (θ_t ⊙ x_t) δ_tᵀ   in the first of two

    A product of decays between two tokens is a quotient of those since the chunk's start, so that channels are scaled
    before and after the products of matrices. It is exact while the decays of a chunk can be told from zero.

    Args:
        rising: ``(b, h, C, c)``, ``∏_{u ≤ t} a_u``. falling: θ_t over it.
    """

    rising: Tensor
    falling: Tensor

    def read(self, x: Tensor, place: int, factors: Factors, w: Weights) -> Tensor:
        (read, slope), sums = factors, w.sums[place]
        if place < len(w.sums) - 1:
            x = x * self.rising
            return x @ sums - (x @ (read * self.falling).mT).tril() @ slope
        return self.rising * (x @ sums - (x @ read.mT).tril() @ (slope * self.falling))

    def first(self, place: int, factors: Factors, w: Weights) -> Tensor:
        read, slope, rising, falling = (x[..., :1, :] for x in (*factors, self.rising, self.falling))
        if place < len(w.sums) - 1:
            return rising.mT * (w.sums[place] - (read * falling).mT * slope)
        return rising * (w.sums[place] - read.mT * (slope * falling))

    def moved(self, place: int, factors: Factors, w: Weights) -> tuple[Tensor, None]:
        (read, slope), end = factors, self.rising[..., -1:, :]
        if place < len(w.sums) - 1:
            return end.mT * (w.sums[place] - (read * self.falling).mT @ slope), None
        return end * (w.sums[place] - read.mT @ (slope * self.falling)), None


def ways_of(x: Inputs) -> Spread | Channels:
    """How gradients spread in all chunks; ``x`` has tokens as ``(chunks, C)``."""
    if x.of_channels:
        since = Sums.of(x.log_decay, x.log_decay.dim() - 2).total
        return Channels(since.exp(), x.step * (-since).exp())
    return spread(x)


def spread(x: Inputs) -> Spread:
    """`Spread` of all chunks."""
    decayed, since = reached(x.log_decay)
    if x.log_momentum is None:
        pairs = decayed * x.step[..., None, :]
        return Spread(pairs, since[..., None], None, pairs[..., -1, :, None], None, None)
    moved, moving = reached(x.log_momentum)
    moved = moved * x.step[..., None, :]
    decayed = decayed if x.real is None else decayed * x.real[..., None, :]
    pairs, momentum = decayed @ moved, decayed @ moving[..., None]
    ends = (pairs[..., -1, :, None], moved[..., -1, :, None], moving[..., -1:, None])
    return Spread(pairs, since[..., None], momentum, *ends)


def reached(log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """``∏_{s < u ≤ t}`` of each pair of tokens, 0 above the diagonal, and ``∏_{u ≤ t}``: ``(…, C, C)``, ``(…, C)``."""
    sums, size = Sums.of(log_decay, log_decay.dim() - 1), log_decay.shape[-1]
    later = torch.ones(size, size, dtype=torch.bool, device=log_decay.device).triu(1)
    apart = (sums[..., :, None] - sums[..., None, :]).masked_fill(later, -torch.inf)
    return apart.exp(), sums.total.exp()


def step_chunk(rule: Rule, x: Inputs, ways: Ways, w: Weights, opening: Tensor | None) -> tuple[Tensor, Weights]:
    """One chunk: its outputs and the memory behind its last token, whose anchor is still the chunk's.

    ``opening (b,)`` says of which sequences the chunk begins here, and not in an earlier call; None: of all.
    """
    found, reading = gradients(rule, w.anchor, x), w.reading
    if reading:
        kept = [rule.kept(ways.first(place, factors, w)) for place, factors in enumerate(found)]
        at = True if opening is None else opening[:, None, None, None]
        pairs = zip(kept, reading, strict=True)
        reading = tuple(new if at is True else torch.where(at, new, old) for new, old in pairs if new is not None)
    y = x.q
    for place, factors in enumerate(found):
        y = product(rule, F.gelu(y) if place else y, place, factors, ways, w, reading)
    sums, momentum = zip(*(ways.moved(place, factors, w) for place, factors in enumerate(found)), strict=True)
    return rule.output(y, x.q), Weights(sums, momentum if w.momentum else (), w.anchor, reading)


def product(
    rule: Rule, x: Tensor, place: int, factors: Factors, ways: Ways, w: Weights, reading: tuple[Tensor, ...]
) -> Tensor:
    """Each token times a layer's weights of its own time."""

    def sums() -> Tensor:
        return ways.read(x, place, factors, w)

    return rule.product(sums, x, reading[place]) if reading else sums()


@dataclass(frozen=True)
class Course:
    """Where chunks begin and end in each sequence, each ``(b, chunks)`` bool.

    Args:
        opening: the chunk's first token is here, and not in an earlier call. closing: its last token is here.
        active: it has any token here. fresh: the memory is the initial one before it; None: nowhere.
    """

    opening: Tensor
    closing: Tensor
    active: Tensor
    fresh: Tensor | None = None

    def part(self, start: int, stop: int) -> Course:
        """Some consecutive chunks."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return Course(**cast(Any, {name: None if x is None else x[:, start:stop] for name, x in given.items()}))


def chunked(
    rule: Rule,
    x: Inputs,
    w: Weights,
    course: Course | None = None,
    new: Weights | None = None,
    way: Callable[[Rule, Inputs, Weights, Course | None, Weights | None], tuple[Tensor, Weights]] | None = None,
) -> tuple[Tensor, Weights]:
    """A memory over chunks of tokens.

        S_t = η_t S_{t−1} − θ_t ∇ℓ_t(W_c),   A_t = (1 − α_t) A_{t−1} + S_t,   o_t = M(q_t; W_t)

    W_c are the weights at the start of t's chunk, so that a chunk's gradients are outer products ``x_t δ_tᵀ``, and all
    that is between its tokens is matrix products: no token's weights are formed. Without momentum S_t is the step
    alone.

    Shapes: `Inputs` with tokens as ``(chunks, C)`` -> ``(b, h, chunks, C, e)`` and the memory after them.
    Args: ``course``: None where every chunk begins and ends here; ``new``: the initial memory, for what is fresh.
        ``way``: what is done with the chunks between two kept memories, `window` if None.
    Cost: `online_flops`; the backward pass keeps a memory every `WINDOW` tokens and computes the rest again.

    Paper: gradients at the start of a chunk: Sun et al., arXiv 2407.04620.
    """
    count, size = x.q.shape[2:4]
    per, outs = max(WINDOW // max(size, 1), 1), []
    for start in range(0, count, per):
        part = x.each(lambda t, start=start: t[:, :, start : start + per])
        some = None if course is None else course.part(start, start + per)

        def run(*tensors: Tensor, part: Inputs = part, some: Course | None = some, w: Weights = w) -> list[Tensor]:
            out, after = (way or window)(rule, part, w.like(list(tensors)), some, new)
            return [out, *after.tensors]

        again = count > per and torch.is_grad_enabled()
        out, *after = cast(Any, checkpoint(run, *w.tensors, use_reentrant=False)) if again else run(*w.tensors)
        outs, w = [*outs, out], w.like(after)
    return (torch.cat(outs, 2) if len(outs) > 1 else outs[0]) if outs else x.v, w


def window(rule: Rule, x: Inputs, w: Weights, course: Course | None, new: Weights | None) -> tuple[Tensor, Weights]:
    """Some chunks, one after the other."""
    outs = []
    for chunk, (own, ways) in enumerate(zip(unbound(x), unbound(ways_of(x)), strict=True)):
        here = None if course is None else course.part(chunk, chunk + 1)
        if here is not None and here.fresh is not None and new is not None:
            w = new.where(here.fresh[:, 0], w)
        out, after = step_chunk(rule, own, ways, w, None if here is None else here.opening[:, 0])
        ended = replace(after, anchor=rule.present(after.sums, after.reading))
        w = ended if here is None else ended.where(here.closing[:, 0], after).where(here.active[:, 0], w)
        outs.append(out)
    return torch.stack(outs, 2), w


def online_flops(n: int, chunk: int, sizes: list[tuple[int, int]], momentum: bool, current: bool = True) -> int:
    """FLOPs of the matrix products over n tokens of one head, in chunks; ``sizes (i, o)`` of the memory's layers."""
    size = min(n, chunk)
    slots = -(-n // size) * size if n else 0
    both = 2 if momentum else 1
    read = both if current else 1
    layers = sum(i * o * (1 + read + both + (place > 0)) for place, (i, o) in enumerate(sizes))
    layers += size * sum(i + o for i, o in sizes) if current else 0
    return 2 * slots * (layers + (size * (size + 1) if momentum else 0))
