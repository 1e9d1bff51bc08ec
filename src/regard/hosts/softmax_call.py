"""One softmax attention call of a host: its output with the log-sum-exp, then any rows of its A."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.core.mechanism import accumulate_dtype, repeat_heads
from regard.kernels import flash

BLOCK = 1 << 21
"""Entries of A in a block of rows: 8 MiB of float32."""
MOST_ROWS = 256
"""Rows in a block at most: a causal block wastes half of its square on the diagonal."""
GPU_BLOCK, GPU_ROWS = 1 << 26, 2048
"""The same on a GPU, where a block costs the time to launch its kernels: 256 MiB."""
LEAST_ROWS = 16
"""Rows in a block at least, below which the products lose their speed."""


@dataclass(frozen=True)
class SoftmaxCall:
    """A softmax attention call without its values.

        A_ij = exp(s_ij − lse_i) where j may be seen, 0 elsewhere;   s_ij = cap(scaling · q_i·k_j) + bias_ij
        cap(x) = softcap · tanh(x / softcap);   lse_i = log(Σ_j exp s_ij + exp sinks)

    Args:
        q: ``(batch, heads, n, d)``. k: ``(batch, kv_heads, m, d)``; ``kv_heads`` divides ``heads``.
        scaling: of the scores.
        causal: query i sees keys ``<= i``, counted from the first of both.
        window: and only the last ``window`` of them.
        mask: ``(batch or 1, heads or 1, n, m)`` bool, True = may be seen; alone or with ``causal``.
        bias: the same shape, added to the scores after the cap.
        softcap: bound of the scores, None for no cap. sinks: logits that take mass and give nothing, ``(heads,)``, or
            ``(batch or 1, heads, n or 1)`` where each query has its own.
    """

    q: Tensor
    k: Tensor
    scaling: float
    causal: bool = False
    window: int | None = None
    mask: Tensor | None = None
    bias: Tensor | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    def __post_init__(self) -> None:
        if self.window is not None and not self.causal:
            raise wrong("window", f"{self.window} without causal", "causal too, or a mask instead")

    @property
    def device(self) -> torch.device:
        return self.q.device

    @property
    def n(self) -> int:
        return self.q.shape[2]

    @property
    def m(self) -> int:
        return self.k.shape[2]

    def select(self, heads: Tensor) -> SoftmaxCall:
        """The call of some ``heads (h,)`` alone."""

        def of_heads(tensor: Tensor | None) -> Tensor | None:
            return tensor if tensor is None or tensor.shape[1] == 1 else tensor[:, heads]

        sinks = None if self.sinks is None else self.sunk()[:, heads]
        k = self.k[:, heads // (self.q.shape[1] // self.k.shape[1])]
        return replace(self, q=self.q[:, heads], k=k, mask=of_heads(self.mask), bias=of_heads(self.bias), sinks=sinks)

    def sunk(self, rows: Tensor | None = None) -> Tensor:
        """The sinks of ``rows``, or of all of them, ``(batch or 1, heads, rows or 1)`` in the precision of sums."""
        assert self.sinks is not None
        sinks = self.sinks.to(accumulate_dtype(self.q.dtype))
        if sinks.dim() == 1:
            return sinks[None, :, None]
        return sinks if rows is None or sinks.shape[2] == 1 else sinks[:, :, rows]

    def span(self, first: int, last: int, rows: Tensor) -> tuple[int, int]:
        """``(start, stop)`` of the keys that ``rows``, from ``first`` to ``last``, may see; at least one key."""
        start, stop = 0, self.m
        if self.causal:
            stop = min(last + 1, self.m)
            start = max(0, first - self.window + 1) if self.window is not None else 0
        if self.mask is not None:
            some = self.mask[..., rows, start:stop].flatten(0, 2).any(0).nonzero()
            if len(some):
                start, stop = start + int(some[0]), start + int(some[-1]) + 1
        return min(start, stop - 1), stop

    def visible(self, rows: Tensor, start: int, stop: int) -> Tensor | None:
        """``(batch or 1, heads or 1, rows, stop - start)`` bool; None if all may be seen."""
        seen = None
        if self.causal:
            keys = torch.arange(start, stop, device=rows.device)
            seen = (keys <= rows[:, None])[None, None]
            if self.window is not None:
                seen = seen & (keys > rows[:, None] - self.window)
        if self.mask is not None:
            part = self.mask[..., rows, start:stop]
            seen = part if seen is None else seen & part
        return seen

    def scores(self, rows: Tensor, start: int, stop: int) -> Tensor:
        """s, ``(batch, heads, rows, stop - start)``, not yet masked."""
        dtype = accumulate_dtype(self.q.dtype)
        q = self.q[:, :, rows].to(dtype) * self.scaling
        k = self.k[:, :, start:stop].to(dtype)
        return self.shape_scores(grouped(q, k.transpose(2, 3)), rows, start, stop)

    def shape_scores(self, scores: Tensor, rows: Tensor, start: int, stop: int) -> Tensor:
        """The scaled products with cap and bias."""
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        if self.bias is not None:
            scores = scores + self.bias[..., rows, start:stop]
        return scores

    def blocks(self, rows: Tensor | None = None) -> list[Tensor]:
        """The ascending ``rows``, or all of them, in blocks of about `BLOCK` entries of A."""
        places = list(range(self.n)) if rows is None else rows.tolist()
        rows = torch.arange(self.n, device=self.device) if rows is None else rows
        wide, m, found, first = self.q.shape[0] * self.q.shape[1], self.m, [], 0
        entries, most = (BLOCK, MOST_ROWS) if self.device.type == "cpu" else (GPU_BLOCK, GPU_ROWS)
        while first < len(places):
            width = min(places[min(first + most, len(places)) - 1] + 1, m) if self.causal else m
            size = min(most, max(LEAST_ROWS, entries // (wide * width)))
            found.append(rows[first : first + size])
            first += size
        return found


def grouped(q: Tensor, kt: Tensor) -> Tensor:
    """``q (batch, heads, r, d) @ kt (batch, kv_heads, d, w)``: each kv head serves heads / kv_heads query heads."""
    batch, heads, rows, dim = q.shape
    groups = kt.shape[1]
    folded = q.reshape(batch * groups, heads // groups * rows, dim)
    return torch.bmm(folded, kt.reshape(batch * groups, dim, -1)).view(batch, heads, rows, -1)


def attend(call: SoftmaxCall, v: Tensor, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
    """``(A v (batch, heads, n, e), lse (batch, heads, n))``: fused where PyTorch has a fused kernel for the call.

    ``lse`` is −∞ for a query that sees nothing, and is not differentiated; the output is.
    """
    differentiable_sinks = call.sinks is not None and torch.is_grad_enabled()
    if call.softcap is not None or differentiable_sinks:
        return attend_tiled(call, v, dropout)
    out, lse = attend_fused(call, v, dropout)
    if call.sinks is None:
        return out, lse
    total = torch.logaddexp(lse, call.sunk())
    return (out * torch.exp(lse - total)[..., None]).to(out.dtype), total


def attend_fused(call: SoftmaxCall, v: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
    """PyTorch's own attention, without cap and sinks; on a CPU its kernel gives the log-sum-exp too."""
    causal = call.causal and call.window is None and call.mask is None and call.bias is None
    bias = None if causal else additive(call)
    if call.q.device.type == "cpu" and call.q.shape[3] == v.shape[3] and dropout == 0 and bias_is_constant(bias):
        if call.n == 1 and bias is not None:
            return attend_packed(call, v, bias)
        return flash.attend(call.q, call.k, v, causal, bias, call.scaling)
    k, v = (repeat_heads(x, call.q.shape[1]) for x in (call.k, v))
    out = torch.nn.functional.scaled_dot_product_attention(
        call.q, k, v, attn_mask=bias, dropout_p=dropout, is_causal=causal, scale=call.scaling
    )
    return out, log_sum_exp(call)


def attend_packed(call: SoftmaxCall, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A single query of each head, those of heads that share keys as the rows of one: as Transformers, bit by bit."""
    (batch, heads, _, d), g = call.q.shape, call.k.shape[1]

    def packed(x: Tensor) -> Tensor:
        return x if x.shape[1] == 1 else x.reshape(-1, g, heads // g, x.shape[3])

    q = call.q.reshape(batch, g, heads // g, d)
    out, lse = flash.attend(q, call.k, v, False, packed(bias), call.scaling)
    return out.reshape(batch, heads, 1, d), lse.reshape(batch, heads, 1)


def bias_is_constant(bias: Tensor | None) -> bool:
    """Whether no gradient is wanted for the bias, which the CPU's fused kernel would not give."""
    return bias is None or not (torch.is_grad_enabled() and bias.requires_grad)


def additive(call: SoftmaxCall) -> Tensor | None:
    """Mask and bias as one bias in the dtype of q; None where there is neither."""
    every = torch.arange(call.n, device=call.q.device)
    seen = call.visible(every, 0, call.m)
    if seen is None:
        return None if call.bias is None else call.bias.to(call.q.dtype)
    bias = (
        torch.zeros((), dtype=call.q.dtype, device=call.q.device) if call.bias is None else call.bias.to(call.q.dtype)
    )
    return torch.where(seen, bias, -torch.inf)


@torch.no_grad()
def log_sum_exp(call: SoftmaxCall) -> Tensor:
    """lse ``(batch, heads, n)`` without sinks, by blocks of rows."""
    blocks = [(rows, *call.span(int(rows[0]), int(rows[-1]), rows)) for rows in call.blocks()]
    return torch.cat([masked_scores(call, *block).logsumexp(3) for block in blocks], dim=2)


def masked_scores(call: SoftmaxCall, rows: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
    """s of rows over the keys ``start … stop − 1``, or over all, −∞ where hidden."""
    stop = call.m if stop is None else stop
    scores, seen = call.scores(rows, start, stop), call.visible(rows, start, stop)
    return scores if seen is None else scores.masked_fill(~seen, -torch.inf)


def attend_tiled(call: SoftmaxCall, v: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
    """The definition, by blocks of rows: what cap and sinks need."""
    outs, sums = [], []
    for rows in call.blocks():
        start, stop = call.span(int(rows[0]), int(rows[-1]), rows)
        scores = masked_scores(call, rows, start, stop)
        lse = scores.logsumexp(3)
        if call.sinks is not None:
            lse = torch.logaddexp(lse, call.sunk(rows))
        weights = torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0)[..., None])
        weights = torch.nn.functional.dropout(weights, dropout) if dropout else weights
        outs.append(grouped(weights, v[:, :, start:stop].to(weights.dtype)).to(v.dtype))
        sums.append(lse.detach())
    return torch.cat(outs, dim=2), torch.cat(sums, dim=2)


def dense(call: SoftmaxCall) -> Tensor:
    """A ``(batch, heads, n, m)`` whole, with its gradient, as a model returns it that is asked for its weights."""
    blocks = []
    for rows in call.blocks():
        scores = masked_scores(call, rows)
        if call.sinks is not None:
            sinks = call.sunk(rows)[..., None].expand(*scores.shape[:3], 1)
            scores = torch.cat([scores, sinks], dim=3)
        blocks.append(torch.softmax(scores, dim=3)[..., : call.m].nan_to_num(0.0))
    return torch.cat(blocks, dim=2)


@dataclass(frozen=True)
class AttentionRows:
    """Some rows of A over the keys ``start …``: fields as in `core.tile.Tile`."""

    weights: Tensor
    log_weights: Tensor
    start: int
    visible: Tensor | None


@dataclass(frozen=True)
class AttentionMap:
    """A of a call whose log-sum-exp is known: any rows of it, without the rest.

    The sum −lse goes into the product itself: with q' = [scaling · q, −lse] and k' = [k, 1], log A = q' k'ᵀ.
    """

    call: SoftmaxCall
    lse: Tensor

    @property
    def bytes(self) -> int:
        """What q, k and lse take in float32."""
        return 4 * (self.call.q.numel() + self.call.k.numel() + self.lse.numel())

    @cached_property
    def keys(self) -> Tensor:
        """k'ᵀ ``(batch, kv_heads, d + 1, m)``, stored key by key."""
        k = self.call.k.to(accumulate_dtype(self.call.k.dtype))
        return torch.cat([k, k.new_ones(*k.shape[:3], 1)], dim=3).transpose(2, 3)

    @torch.no_grad()
    def strip(self, rows: Tensor) -> AttentionRows:
        """The ``rows`` (ascending) of A, over the keys that any of them may see; rounding lifts none above one."""
        first, last = int(rows[0]), int(rows[-1])
        start, stop = self.call.span(first, last, rows)
        logs = self.log_weights(rows, start, stop).clamp_(max=0)
        weights = logs.exp()
        plain = self.call.mask is None and self.call.window is None
        free = min(max(first + 1, start), stop) if plain and self.call.causal else start
        visible = self.call.visible(rows, free, stop)
        if visible is not None:
            for entries in (weights, logs):
                entries[..., free - start :].masked_fill_(~visible, 0)
        return AttentionRows(weights, logs, start, None if plain else visible)

    def log_weights(self, rows: Tensor, start: int, stop: int) -> Tensor:
        """s − lse, not yet masked."""
        if self.call.softcap is None and self.call.bias is None:
            return grouped(self.queries(rows), self.keys[..., start:stop])
        return self.call.scores(rows, start, stop) + self.queries(rows)[..., -1:]

    def queries(self, rows: Tensor) -> Tensor:
        """q' ``(batch, heads, rows, d + 1)``; a query that sees nothing gets lse 0."""
        dtype = accumulate_dtype(self.call.q.dtype)
        lse = self.lse[:, :, rows].to(dtype).nan_to_num(0.0, 0.0, 0.0)
        return torch.cat([self.call.q[:, :, rows].to(dtype) * self.call.scaling, -lse[..., None]], dim=3)
