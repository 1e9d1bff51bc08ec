"""How the scores of a row become its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Signal, Traits, accumulate_dtype, masked_softmax, repeat_heads
from regard.kernels import dense, packing, tiled
from regard.kernels.tiled import Pointwise, Score, Span
from regard.mechanisms.scored.parts.tile_scores import Gaussian, Power, Shifted, Swapped


class Normaliser(nn.Module):
    """Weights from scores: ``weigh`` by definition, ``attend`` in tiles. The base is for those that look at one score.

    `traits` says what a row sums to, its sign, and whether it may be causal.
    """

    traits = Traits(sign="nonnegative")
    signals: Mapping[str, Signal] = MappingProxyType({})

    def kernel(self, n: int, m: int, layout: Layout, like: Tensor) -> tiled.Softmax | Pointwise:
        """The normaliser of `kernels.tiled` for n queries and m keys."""
        raise NotImplementedError

    def weigh(self, scores: Tensor, n: int, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        """Some ``rows`` of A from theirs of the scores, dense."""
        m = scores.shape[3]
        kernel, seen = self.kernel(n, m, layout, scores), layout.allowed(n, m, scores.device, rows)
        if isinstance(kernel, tiled.Softmax):
            return masked_softmax(scores, seen, kernel.sink)
        return kernel(scores, Span(rows, slice(0, m))).masked_fill(~seen, 0)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, score: Score, **signals: Tensor) -> Tensor:
        """``A v``."""
        return tiled.attend(q, k, v, layout, score, self.kernel(q.shape[2], k.shape[2], layout, q))

    def check(self, q: Tensor) -> None:
        """Raises an error that names what does not fit."""

    def products(self, n: int, m: int, causal: bool, each: int, values: int) -> int:
        """Multiplications of a head whose scores take ``each``."""
        return tiled.cells(n, m, causal) * (each + values)


class Softmax(Normaliser):
    """``exp(s_ij) / (exp(sink_h) + Σ_j exp(s_ij))``; with ``sinks`` a logit is learned for each of ``heads``."""

    traits = Traits(rows="one", sign="nonnegative")

    def __init__(self, heads: int = 4, sinks: bool = False) -> None:
        super().__init__()
        self.sink = nn.Parameter(torch.zeros(heads)) if sinks else None
        if sinks:
            self.traits = Traits(rows="at most one", sign="nonnegative")

    def kernel(self, n: int, m: int, layout: Layout, like: Tensor) -> tiled.Softmax:
        return tiled.Softmax(self.sink)

    def check(self, q: Tensor) -> None:
        if self.sink is not None and q.shape[1] != self.sink.shape[0]:
            raise wrong("q", f"{q.shape[1]} heads", f"{self.sink.shape[0]}, the number of sinks")


class Sigmoid(Normaliser):
    """``1 / (1 + exp(−s_ij − b_i))``, b the ``bias``, or −log of the keys that i may see if None (arXiv 2409.04431)."""

    def __init__(self, bias: float | None = None) -> None:
        super().__init__()
        self.bias = bias

    def kernel(self, n: int, m: int, layout: Layout, like: Tensor) -> tiled.Sigmoid:
        return tiled.Sigmoid(-counts(n, m, layout, like).log() if self.bias is None else self.bias)


class Relu(Normaliser):
    """``max(s_ij, 0)^α / (number of keys that i may see)``, α the ``power``, at least 1 (arXiv 2309.08586)."""

    def __init__(self, power: float = 1.0) -> None:
        super().__init__()
        if not power >= 1:
            raise wrong("power", str(power), "at least 1: below it the slope at zero is infinite")
        self.power = power

    def kernel(self, n: int, m: int, layout: Layout, like: Tensor) -> Power:
        return Power(self.power, counts(n, m, layout, like))


class Laplace(Normaliser):
    """``½ (1 + erf((s_ij − μ) / (σ √2)))``, μ = √½, σ = √(1/4π): near to the squared ReLU, but bounded.

    Paper: Ma et al. (Mega), arXiv 2209.10655; its code divides q · k by the number of keys, not by √d.
    """

    def kernel(self, n: int, m: int, layout: Layout, like: Tensor) -> Gaussian:
        return Gaussian(math.sqrt(1 / 2), math.sqrt(1 / (4 * math.pi)))


class Affine(Softmax):
    """``α_i softmax_j(s_ij) + β_i`` for the keys that i sees, α and β signals (arXiv 2602.23057)."""

    traits = Traits()
    signals: ClassVar = {
        "alpha": Signal("what the softmax is multiplied with", side="query", start=1.0, steady=True),
        "beta": Signal("what is added to every weight", side="query", start=0.0, steady=True),
    }

    def __init__(self) -> None:
        super().__init__()

    def weigh(self, scores: Tensor, n: int, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        alpha, beta = (signals[name][:, :, rows, None].to(scores.dtype) for name in ("alpha", "beta"))
        mixed = alpha * super().weigh(scores, n, layout, rows) + beta
        return mixed.masked_fill(~layout.allowed(n, scores.shape[3], scores.device, rows), 0)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, score: Score, **signals: Tensor) -> Tensor:
        plain = super().attend(q, k, v, layout, score).to(v.dtype)  # q and k may be wider than v
        return affine(plain, q, k, v, layout, signals["alpha"], signals["beta"])


class Signed(Normaliser):
    """``sign(s_ij) exp(|s_ij|) / Σ_j exp(|s_ij|)`` (arXiv 2411.07176)."""

    traits = Traits()

    def kernel(self, n: int, m: int, layout: Layout, like: Tensor) -> tiled.Softmax:
        return tiled.Softmax(signed=True)

    def weigh(self, scores: Tensor, n: int, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        return signed_softmax(scores, layout.allowed(n, scores.shape[3], scores.device, rows))


class Queries(Normaliser):
    """Queries compete for keys: ``P_ij / Σ_j P_ij`` of ``P_ij = exp(s_ij) / Σ_i exp(s_ij)``; bidirectional.

    Two passes: c_j, the log-sum-exp of a key's scores over the queries, then ``A_ij = softmax_j(s_ij − c_j)``, which is
    the same and cannot underflow. The sums leave out queries that are padding.

    Paper: Locatello et al. (slot attention), arXiv 2006.15055, whose 1e-8 under the sum is left out.
    """

    traits = Traits(causal=False, rows="one", sign="nonnegative")

    def weigh(self, scores: Tensor, n: int, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        m = scores.shape[3]
        seen = layout.allowed(n, m, scores.device)
        there = layout.real_queries(n)
        real = seen if there is None else seen & there[:, None, :, None]
        sums = torch.logsumexp(scores.masked_fill(~real, torch.finfo(scores.dtype).min), 2, keepdim=True)
        return masked_softmax(scores - sums.masked_fill(~real.any(2, keepdim=True), 0), seen)[:, :, rows]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, score: Score, **signals: Tensor) -> Tensor:
        k = repeat_heads(k, q.shape[1])
        sums = self.sums(q, k, layout, score)
        return tiled.attend(q, torch.cat([k.to(sums.dtype), sums[..., None]], -1), v, layout, Shifted(score))

    def sums(self, q: Tensor, k: Tensor, layout: Layout, score: Score) -> Tensor:
        """c ``(b, h, m)``, zero where no query sees the key."""
        n, m = q.shape[2], k.shape[2]
        real = layout.real_queries(n)
        if layout.segments is not None and n < m:  # packed sequences are of one length: queries before the first
            there = (torch.arange(m, device=q.device) >= m - n).expand(q.shape[0], m)
            q, real = F.pad(q, (0, 0, m - n, 0)), there if layout.key_mask is None else there & layout.key_mask
        mask = None if layout.mask is None else F.pad(layout.mask.mT, (q.shape[2] - n, 0))
        across = Layout(key_mask=real, segments=layout.segments, mask=mask)
        found = tiled.attend_lse(k, q, torch.ones_like(q[..., :1]), across, Swapped(score)).lse
        return found.masked_fill(found == -torch.inf, 0)

    def products(self, n: int, m: int, causal: bool, each: int, values: int) -> int:
        return tiled.cells(m, n, False) * (each + 1) + super().products(n, m, False, each, values)


def signed_softmax(scores: Tensor, allowed: Tensor) -> Tensor:
    """Rows of the softmax of absolute scores, with the scores' signs."""
    return masked_softmax(scores.abs(), allowed) * scores.sign()


def affine(out: Tensor, q: Tensor, k: Tensor, v: Tensor, layout: Layout, alpha: Tensor, beta: Tensor) -> Tensor:
    """``α_i o_i + β_i Σ_j v_j`` over the keys j that i sees; ``alpha, beta (b, h, n)``."""
    return alpha[..., None].to(v.dtype) * out + beta[..., None].to(v.dtype) * value_sums(q, k, v, layout)


def value_sums(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Σ of the values that each query sees, ``(b, h, n, e)``, in one pass over them; under a mask from means."""
    if layout.mask is not None:
        means = dense.attend(torch.zeros_like(q), k, v, layout)
        return means * layout.counts(q.shape[2], k.shape[2], q.device)[..., None].to(v.dtype)

    def run(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None = None) -> Tensor:
        n, m, wide = q.shape[2], k.shape[2], repeat_heads(v, q.shape[1]).to(accumulate_dtype(v.dtype))
        wide = wide if keys is None else wide.masked_fill(~keys[:, None, :, None], 0)
        if not layout.causal:
            return wide.sum(2, keepdim=True).expand(-1, -1, n, -1).to(v.dtype)
        running = wide.cumsum(2)[:, :, max(m - n, 0) :]
        return F.pad(running, (0, 0, max(n - m, 0), 0)).to(v.dtype)

    return run(q, k, v, layout.key_mask) if layout.segments is None else packing.per_sequence(run, q, k, v, layout)


def counts(n: int, m: int, layout: Layout, like: Tensor) -> Tensor:
    """``(b or 1, h or 1, n)``: how many keys each query may see, at least 1, in the precision of sums."""
    return layout.counts(n, m, like.device).clamp(min=1).to(accumulate_dtype(like.dtype))


NORMALISERS = {
    **{"softmax": Softmax, "sigmoid": Sigmoid, "relu": Relu, "laplace": Laplace, "affine": Affine},
    **{"signed": Signed, "queries": Queries},
}
