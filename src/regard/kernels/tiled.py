"""``A v`` tile by tile: any score, any normaliser, memory that grows with the lengths and not with their product."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample, shown_by
from regard.core.layout import Layout
from regard.core.mechanism import accumulate_dtype, repeat_heads
from regard.core.reduction import Partial
from regard.kernels import packing
from regard.kernels.base import Whole

ROWS = 256  # of a tile: causality wastes half of each square on the diagonal
ENTRIES = 1 << 19  # of the tiles of all heads together: few steps, and a head's tile stays in its core's cache
LEAST, MOST = 256, 512  # columns of a tile; the least in the backward pass, which holds several at a time


@dataclass(frozen=True)
class Span:
    """Where a tile lies in A: its ``rows`` among the queries, its ``cols`` among the keys."""

    rows: slice
    cols: slice


class Score(Protocol):
    """How well a query and a key match. ``parameters`` lists the tensors beside q and k that it needs gradients for.

    A score of neighbours has ``halo = (above, left, right)`` too: so many rows before the tile's and columns before and
    behind them come with q and k, zeros beyond the ends.
    """

    @property
    def parameters(self) -> tuple[Tensor, ...]: ...

    def __call__(self, q: Tensor, k: Tensor, span: Span) -> Tensor:
        """Scores ``(b, h, rows, cols)`` of ``q (b, h, rows, d)`` and ``k (b, h, cols, d)``; differentiable."""
        ...


class Pointwise(Protocol):
    """A normaliser that turns each score into a weight by itself, so that rows need no statistics."""

    def __call__(self, scores: Tensor, span: Span) -> Tensor:
        """Weights of the same shape; differentiable. Scores without gradient are the normaliser's to overwrite."""
        ...


@dataclass(frozen=True)
class Dot:
    """``s = c tanh(x / c)`` of ``x = scale q·k``, with c the ``softcap``; None leaves x as it is."""

    scale: float
    softcap: float | None = None
    parameters: tuple[Tensor, ...] = ()

    def __call__(self, q: Tensor, k: Tensor, span: Span) -> Tensor:
        if self.softcap is None:
            return (q if self.scale == 1 else q * self.scale) @ k.mT
        products = (q * (self.scale / self.softcap)) @ k.mT
        return self.softcap * torch.tanh(products) if products.requires_grad else products.tanh_().mul_(self.softcap)


@dataclass(frozen=True)
class Raised:
    """``s_ij + b_ij`` with the ``bias`` b ``(b or 1, h or 1, n, m)``."""

    score: Score
    bias: Tensor

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return *self.score.parameters, self.bias

    @property
    def halo(self) -> tuple[int, int, int]:
        return halo(self.score)

    def __call__(self, q: Tensor, k: Tensor, span: Span) -> Tensor:
        return self.score(q, k, span) + self.bias[:, :, span.rows, span.cols].to(q.dtype)


@dataclass(frozen=True)
class Softmax:
    """``p_ij = exp(s_ij) / (exp(sink) + Σ_j exp(s_ij))``; ``sink (heads,)`` is a logit without value, None for none.

    ``signed``: ``p_ij = sign(s_ij) exp(|s_ij|) / (… Σ_j exp(|s_ij|))``; the log-sum-exp is that of the |s|.
    """

    sink: Tensor | None = None
    signed: bool = False


@dataclass(frozen=True)
class Sigmoid:
    """``p_ij = 1 / (1 + exp(-s_ij - b_i))`` with ``bias`` b a number or ``(b or 1, h or 1, n)``, one for each query."""

    bias: float | Tensor

    def __call__(self, scores: Tensor, span: Span) -> Tensor:
        bias = self.bias[:, :, span.rows, None] if isinstance(self.bias, Tensor) else self.bias
        return torch.sigmoid(scores + bias) if scores.requires_grad else scores.add_(bias).sigmoid_()

    @staticmethod
    def slopes(weights: Tensor, upstream: Tensor) -> Tensor:
        """``upstream p (1 − p)``, in place."""
        return torch.ops.aten.sigmoid_backward.grad_input(upstream, weights, grad_input=upstream)


def examples() -> list[Sample]:
    """What the laws of kernels examine."""
    return [Sample("softmax", Whole(attend))]


@shown_by(examples)
@published(
    "memory_efficient",
    family="kernels",
    kind="kernel",
    row=96,
    title="Self-attention Does Not Need O(n²) Memory",
    arxiv="2112.05682",
    year=2021,
    aliases=("tiled", "online_softmax"),
    fidelity="hand values",
    claim=(
        Claim("exact forward and gradients", cells="layers.tiles", holds="common.within(most=1e-5)"),
        Claim(
            "in memory linear in the length: at 16,384 tokens a thirtieth of the matrix",
            cells="layers.peak",
            holds="layers.is_a_thirtieth",
        ),
    ),
)
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout = Layout(),
    score: Score | None = None,
    normaliser: Softmax | Pointwise = Softmax(),
) -> Tensor:
    """Attention under any score and normaliser, computed and differentiated in tiles that are never kept.

        o_i = Σ_j p_ij v_j,   p = normaliser(score(q_i, k_j)),   p_ij = 0 where ``layout`` hides j from i

    Softmax keeps a running maximum and sum for each row (online normalisation); a pointwise normaliser keeps nothing.
    The backward pass recomputes each tile and differentiates the score by autograd on that tile alone.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``.
    Cost: 2 ``cells`` (d + e) FLOPs a head forward; memory O((n + m)(d + e)) and a tile. Half precision runs in float32.

    Paper: Rabe and Staats, arXiv 2112.05682. Its outer loop over queries is here parallel over batch and heads.
    """
    return run(q, k, v, layout, score, normaliser)[0]


def attend_lse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout = Layout(),
    score: Score | None = None,
    normaliser: Softmax = Softmax(),
) -> Partial:
    """``attend`` under softmax, with the log-sum-exp of each row (sink included); both are differentiable."""
    return Partial(*run(q, k, v, layout, score, normaliser))


def cells(n: int, m: int, causal: bool) -> int:
    """How many scores the tiles hold: all n m, or, causal, those of the row blocks up to their last visible key."""
    return sum((rows.stop - rows.start) * visible(rows, n, m, causal) for rows in split(0, n, ROWS))


def run(q: Tensor, k: Tensor, v: Tensor, layout: Layout, score: Score | None, normaliser: Any) -> tuple[Tensor, Tensor]:
    """``(out, lse)`` in the dtypes of ``q`` and of its sums; under a pointwise normaliser ``lse`` is empty."""
    score = Dot(q.shape[-1] ** -0.5) if score is None else score
    if layout.bias is not None:
        score, layout = Raised(score, layout.bias), replace(layout, bias=None)
    wide = accumulate_dtype(q.dtype)
    q_wide, k_wide, v_wide = (
        by_rows(x.to(wide)) for x in (q, repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1]))
    )
    above, left, right = halo(score)
    if above or left or right:
        q_wide, k_wide = F.pad(q_wide, (0, 0, above, 0)), F.pad(k_wide, (0, 0, left, right))
    if isinstance(score, Dot):  # scale the queries once, not each tile
        q_wide, score = q_wide * score.scale, Dot(1, score.softcap)
    sink = normaliser.sink.to(wide) if isinstance(normaliser, Softmax) and normaliser.sink is not None else None
    learned = [parameter for parameter in score.parameters if parameter.requires_grad]
    out, lse = cast(Any, Tiled.apply)(q_wide, k_wide, v_wide, sink, layout, score, normaliser, *learned)
    return out.to(q.dtype), lse


def by_rows(x: Tensor) -> Tensor:
    """``x``, copied only if a head's rows do not follow each other: a cache with room behind them stays as it is."""
    return x if x.stride(3) == 1 and x.stride(2) == x.shape[3] else x.contiguous()


class Tiled(torch.autograd.Function):
    """The tiles, forward and backward; kept between the two: the inputs, the output, one number a row for softmax."""

    @staticmethod
    def forward(ctx, q, k, v, sink, layout, score, normaliser, *parameters):
        online, n, m = isinstance(normaliser, Softmax), q.shape[2] - halo(score)[0], v.shape[2]
        out = q.new_zeros(*q.shape[:2], n, v.shape[3])
        lse = q.new_full(out.shape[:3], -torch.inf) if online else q.new_empty(0)
        blocks = list(split(0, n, ROWS))
        for rows, seen in zip(blocks, packing.reach(layout, n, m, blocks), strict=True):
            total = Online() if online else Sum()
            for span in spans(rows, seen, width(q.shape[0] * q.shape[1])):
                mask, near = hidden(layout, n, m, span, q.device), around(span, score)
                scores = score(q[:, :, near.rows], k[:, :, near.cols], span)
                total.add(scores, mask, v[:, :, span.cols], normaliser, span)
            total.write(out[:, :, rows], lse[:, :, rows] if online else lse)
        if sink is not None:
            out, lse = drain(out, lse, sink)
        ctx.save_for_backward(q, k, v, sink, out, lse)
        ctx.layout, ctx.score, ctx.normaliser, ctx.learned = layout, score, normaliser, parameters
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, grad_lse):
        q, k, v, sink, out, lse = ctx.saved_tensors
        online, n, m = isinstance(ctx.normaliser, Softmax), out.shape[2], v.shape[2]
        grad = torch.zeros_like(out) if grad is None else grad
        delta = row_delta(grad, out, grad_lse) if online else None
        finite = lse.masked_fill(lse == -torch.inf, 0)
        sums = Gradients(q, k, v, ctx.learned)
        blocks = list(split(0, n, ROWS))
        for rows, seen in zip(blocks, packing.reach(ctx.layout, n, m, blocks), strict=True):
            for span in spans(rows, seen, LEAST):
                mask, near = hidden(ctx.layout, n, m, span, q.device), around(span, ctx.score)
                if isinstance(ctx.score, Dot) and (online or isinstance(ctx.normaliser, Sigmoid)):
                    own = finite[:, :, rows] if online else None
                    row = None if delta is None else delta[:, :, rows, None]
                    by_hand(sums, q, k, v, grad, own, row, mask, ctx.score, ctx.normaliser, span)
                    continue
                with torch.enable_grad():
                    q_tile = q[:, :, near.rows].detach().requires_grad_()
                    k_tile = k[:, :, near.cols].detach().requires_grad_()
                    scores = ctx.score(q_tile, k_tile, span)
                    weights = weigh(scores, mask, finite[:, :, rows] if online else None, ctx.normaliser, span)
                part = grad[:, :, rows]
                sums.v[:, :, span.cols] += weights.detach().mT @ part
                upstream = part @ v[:, :, span.cols].mT
                if delta is not None:
                    upstream -= along(delta[:, :, rows, None], weights.detach(), ctx.normaliser)
                leaves = (q_tile, k_tile, *ctx.learned)
                sums.add(near, torch.autograd.grad(weights, leaves, upstream, allow_unused=True))
        grad_sink = None if sink is None or delta is None else sink_gradient(sink, lse, delta)
        return sums.q, sums.k, sums.v, grad_sink, None, None, None, *sums.parameters


def by_hand(
    sums: Gradients,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor,
    lse: Tensor | None,
    delta: Tensor | None,
    mask: Tensor | None,
    score: Dot,
    normaliser: Any,
    span: Span,
) -> None:
    """A tile of products without autograd: ``ds = dp/ds (do vᵀ − δ)``, ``dq = ds k``, ``dk = dsᵀ q``."""
    queries, keys, upstream = q[:, :, span.rows], k[:, :, span.cols], grad[:, :, span.rows]
    scores = score(queries, keys, span)
    capped = None if score.softcap is None else 1 - (scores / score.softcap).square_()
    weights = weigh(scores, mask, lse, normaliser, span)
    sums.v[:, :, span.cols] += weights.mT @ upstream
    slopes = upstream @ v[:, :, span.cols].mT
    if delta is None:
        slopes = normaliser.slopes(weights, slopes)
    else:
        slopes = slopes.sub_(along(delta, weights, normaliser)).mul_(weights.abs_() if normaliser.signed else weights)
    slopes = slopes if capped is None else slopes.mul_(capped)
    sums.q[:, :, span.rows] += slopes @ keys
    sums.k[:, :, span.cols] += slopes.mT @ queries


class Online:
    """The softmax of some rows over the tiles so far: running maximum, sum of exponentials, weighted values."""

    def __init__(self) -> None:
        self.peak: Tensor | None = None

    def add(self, scores: Tensor, mask: Tensor | None, v: Tensor, normaliser: Softmax, span: Span) -> None:
        """Takes in one tile."""
        signs = scores.sign() if normaliser.signed else None
        scores = scores if signs is None else scores.abs_()
        scores = scores if mask is None else scores.masked_fill_(mask, -torch.inf)
        peak = scores.amax(-1)
        peak = peak if self.peak is None else torch.maximum(peak, self.peak)
        anchor = peak.masked_fill(peak == -torch.inf, 0)
        weights = scores.sub_(anchor[..., None]).exp_()
        mass = weights.sum(-1)
        weights = weights if signs is None else weights.mul_(signs)
        if self.peak is None:
            self.mass, self.out = mass, weights @ v
        else:
            shrink = torch.exp(self.peak - anchor)
            self.mass = self.mass.mul_(shrink).add_(mass)
            self.out = add_product(self.out.mul_(shrink[..., None]), weights, v)
        self.peak = peak

    def write(self, out: Tensor, lse: Tensor) -> None:
        """Puts the rows where they belong; rows that saw nothing stay as they are."""
        if self.peak is not None:
            out.copy_(self.out / self.mass.masked_fill(self.mass == 0, 1)[..., None])
            lse.copy_(self.peak + self.mass.log())


def add_product(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``total + left @ right`` in place, over four axes."""
    flat = total.flatten(0, 1)
    torch.baddbmm(flat, left.flatten(0, 1), right.flatten(0, 1), out=flat)  # PyTorch's FLOP counter misses baddbmm_
    return total


class Sum:
    """The weighted sum of values of some rows over the tiles so far, where each weight stands alone."""

    def __init__(self) -> None:
        self.out: Tensor | None = None

    def add(self, scores: Tensor, mask: Tensor | None, v: Tensor, normaliser: Pointwise, span: Span) -> None:
        """Takes in one tile."""
        weights = weigh(scores, mask, None, normaliser, span)
        self.out = weights @ v if self.out is None else add_product(self.out, weights, v)

    def write(self, out: Tensor, lse: Tensor) -> None:
        """Puts the rows where they belong."""
        if self.out is not None:
            out.copy_(self.out)


class Gradients:
    """The sums of the tiles' gradients, in the order in which autograd wants them."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, parameters: tuple[Tensor, ...]) -> None:
        self.q, self.k, self.v = (torch.zeros_like(x) for x in (q, k, v))
        self.parameters = [torch.zeros_like(x) for x in parameters]

    def add(self, span: Span, found: tuple[Tensor | None, ...]) -> None:
        """Adds one tile's gradients of q, k and the parameters; None where a score does not depend on one."""
        targets = (self.q[:, :, span.rows], self.k[:, :, span.cols], *self.parameters)
        for target, gradient in zip(targets, found, strict=True):
            if gradient is not None:
                target += gradient


def weigh(scores: Tensor, mask: Tensor | None, lse: Tensor | None, normaliser: Any, span: Span) -> Tensor:
    """A tile of A from its scores: ``exp(s - lse)`` under softmax, else the normaliser's; zero where ``mask``."""
    if lse is None:
        weights = normaliser(scores, span)
        if mask is None:
            return weights
        return torch.where(mask, 0, weights) if weights.requires_grad else weights.masked_fill_(mask, 0)
    # Masked before the exponential: what is hidden may exceed all that is seen, and an infinity has no gradient.
    if scores.requires_grad or normaliser.signed:
        shares = (scores.abs() if normaliser.signed else scores) - lse[..., None]
        weights = torch.exp(shares if mask is None else shares.masked_fill(mask, -torch.inf))
        return weights * scores.sign() if normaliser.signed else weights
    shares = scores.sub_(lse[..., None])
    return (shares if mask is None else shares.masked_fill_(mask, -torch.inf)).exp_()


def along(delta: Tensor, weights: Tensor, normaliser: Any) -> Tensor:
    """δ as the upstream gradient of a tile has it: with the sign of each weight where they have signs."""
    return delta * weights.sign() if normaliser.signed else delta


def row_delta(grad: Tensor, out: Tensor, grad_lse: Tensor | None) -> Tensor:
    """``δ_i = do_i · o_i - dlse_i``: what softmax's gradient ``ds_ij = p_ij (do_i · v_j - δ_i)`` needs of each row."""
    delta = (grad * out).sum(-1)
    return delta if grad_lse is None else delta - grad_lse


def drain(out: Tensor, lse: Tensor, sink: Tensor) -> tuple[Tensor, Tensor]:
    """``out`` and ``lse`` once the logit ``sink (heads,)``, which has no value, takes its share."""
    total = torch.logaddexp(lse, sink[:, None].to(lse.dtype))
    return out * torch.exp(lse - total)[..., None].to(out.dtype), total


def sink_gradient(sink: Tensor, lse: Tensor, delta: Tensor) -> Tensor:
    """The gradient of the sink logit, whose value is zero: ``-Σ p_sink δ``."""
    return -(torch.exp(sink[:, None] - lse) * delta).sum((0, 2)).to(sink.dtype)


def split(start: int, stop: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most ``size``."""
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


def visible(rows: slice, n: int, m: int, causal: bool) -> int:
    """How many leading keys the last of ``rows`` may see at most."""
    return min(max(rows.stop + m - n, 0), m) if causal else m


def width(maps: int) -> int:
    """Columns of a tile in the forward pass of so many matrices, heads times batch: the fewer, the more."""
    return min(max(ENTRIES // (maps * ROWS), LEAST), MOST)


def halo(score: Score) -> tuple[int, int, int]:
    """Rows above a tile and columns left and right of it that the score needs."""
    return getattr(score, "halo", (0, 0, 0))


def around(span: Span, score: Score) -> Span:
    """The tile with its halo, where it lies in queries and keys that are padded by one."""
    above, left, right = halo(score)
    last = span.rows.stop + above, span.cols.stop + left + right
    return Span(slice(span.rows.start, last[0]), slice(span.cols.start, last[1]))


def spans(rows: slice, seen: tuple[int, int], columns: int) -> Iterator[Span]:
    """The tiles of a row block over the keys that some of its rows may see."""
    for cols in split(*seen, columns):
        yield Span(rows, cols)


def hidden(layout: Layout, n: int, m: int, span: Span, device: torch.device) -> Tensor | None:
    """``(b or 1, h or 1, rows, cols)`` bool of what the tile must not see, or None if it may see all."""
    rows, cols, shift = span.rows, span.cols, m - n
    mask = None
    if layout.causal and cols.stop - 1 > rows.start + shift:
        queries = torch.arange(rows.start + shift, rows.stop + shift, device=device)
        mask = (torch.arange(cols.start, cols.stop, device=device) > queries[:, None])[None, None]
    if layout.key_mask is not None:
        padding = ~layout.key_mask[:, None, None, cols]
        mask = padding if mask is None else mask | padding
    if layout.segments is not None:
        own = layout.segments[:, None, rows.start + shift : rows.stop + shift, None]
        foreign = own != layout.segments[:, None, None, cols]
        mask = foreign if mask is None else mask | foreign
    if layout.mask is not None:
        given = ~layout.mask[:, :, rows, cols]
        mask = given if mask is None else mask | given
    return mask
