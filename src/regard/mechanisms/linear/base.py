"""The family whose past is a matrix: feature maps, decays and the delta rule around one scan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Mechanism, Traits, accumulate_dtype, repeat_heads
from regard.core.state import State, count_new
from regard.kernels import packing
from regard.kernels.scan import Inputs, gated_flops, scan
from regard.kernels.scan.gated import Kind

SPAN = 1024
"""Tokens whose features are made at a time on a CPU, so that they are still in its cache when they are read."""
EPSILON = 1e-6
"""Least sum of weights that a normalised row is divided by."""


@dataclass(frozen=True)
class RecurrentState(State):
    """All that is left of the past.

    Args:
        kv: ``(batch, heads, D, E)`` in the precision of sums: D features of a key, E the values, and one column more
            where rows are normalised; four axes, the last three of size zero, before the first token.
    """

    kv: Tensor


class Recurrent(Mechanism):
    """The base of causal mechanisms that are a recurrence over a matrix.

        S_t = (I − b_t p_tᵀ) G_t S_{t−1} + β_t k_t v_tᵀ,   o_t = S_tᵀ q_t,   k = φ(k), q = φ'(q)

    A subclass gives what differs: `features` (φ, φ'), `log_decay` (of G), `write_strength` (β, with which comes the
    delta rule: p = k, b = β k) or `erase_vectors` (p and b of the generalised delta rule), `write_values`, and whether
    rows are `normalised` by their sums, of which none counts below `least`. Padding neither decays nor
    writes; each packed document begins with S = 0.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h; causal.
    State: D E numbers a head, at least float32, whatever the length.
    """

    traits = Traits(bidirectional=False, time="linear", state="constant")
    normalised: bool = False
    least: float = EPSILON
    by_channel: bool = False
    kind: Kind = "plain"  # of the scan

    def features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """φ'(q) and φ(k), ``(b, h, tokens, D)``."""
        return q, k

    def feature_dim(self, head_dim: int) -> int:
        """D."""
        return head_dim

    def log_decay(self, k: Tensor, signals: Mapping[str, Tensor]) -> Tensor | None:
        """``(b or 1, h or 1, m)``, or ``(…, m, D)`` where channels decay apart; at most 0; None for no decay."""
        return None

    def write_strength(self, signals: Mapping[str, Tensor]) -> Tensor | None:
        """β ``(b, h or 1, m)``; None for no delta rule."""
        return None

    def erase_vectors(self, k: Tensor, signals: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """p and b ``(b, h, m, D)``: what p recalls is taken away along b; None for no removal."""
        return None, None

    def write_values(self, v: Tensor, signals: Mapping[str, Tensor]) -> Tensor:
        """What is written of each token."""
        return v

    def pairs(self, x: Inputs, passing: Tensor | None, allowed: Tensor) -> Tensor:
        """A without the delta rule, dense: what `run` gives of each value, of which ``passing`` is what is `left`."""
        return decayed_pairs(x.q, x.k, passing, allowed)

    def run(self, x: Inputs, state: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and the state after them."""
        return scan(x, state)

    def scan_inputs(
        self, q: Tensor, k: Tensor, v: Tensor, real: Tensor | None, resets: Tensor | None, signals: Mapping[str, Tensor]
    ) -> Inputs:
        """What the scan reads, in the precision of sums: one query a key, padding silent."""
        wide, heads = accumulate_dtype(q.dtype), q.shape[1]
        signals = {name: self.signals[name].guarded(x.to(wide)) for name, x in signals.items()}
        written = self.write_values(repeat_heads(v, heads).to(wide), signals)
        if self.normalised:
            written = torch.cat([written, torch.ones_like(written[..., :1])], dim=-1)
        q, k = self.features(q.to(wide), repeat_heads(k, heads).to(wide))
        decay, beta = self.log_decay(k, signals), self.write_strength(signals)
        erase_key, erase_value = self.erase_vectors(k, signals)
        decay = None if decay is None else decay.expand(*k.shape[:3], *decay.shape[3:])
        beta = None if beta is None else beta.expand(k.shape[:3])
        if real is not None:
            silent = ~real[:, None, :]
            k = k.masked_fill(silent[..., None], 0)
            if decay is not None:
                decay = decay.masked_fill(silent if decay.dim() == 3 else silent[..., None], 0)
            beta = None if beta is None else beta.masked_fill(silent, 0)
            erase_value = None if erase_value is None else erase_value.masked_fill(silent[..., None], 0)
        return Inputs(q, k, written, decay, beta, erase_key, erase_value, resets)

    def finish(self, out: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows divided by their sums where they are to be."""
        if self.normalised:
            out = out[..., :-1] / out[..., -1:].clamp(min=self.least)
        return out.to(dtype)

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(causal=True), **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        n, m = q.shape[2], k.shape[2]
        blank = k.new_zeros(*k.shape[:3], 1)
        x = self.scan_inputs(aligned(q, m), k, blank, layout.key_mask, None, signals)
        allowed = Layout(True, layout.key_mask, layout.segments).allowed(m, m, q.device)
        passing = left(x.log_decay, allowed)
        seen = self.pairs(x, passing, allowed)
        if x.beta is not None:
            products = decayed_pairs(x.k, x.k, passing, allowed.tril(-1)) * x.beta[..., None]
            system = products + torch.eye(m, dtype=products.dtype, device=q.device)
            seen = torch.linalg.solve_triangular(system.mT, seen.mT, upper=True, unitriangular=True).mT
            seen = seen * x.beta[..., None, :]
        if x.erase_key is not None and x.erase_value is not None:
            earlier, eye = allowed.tril(-1), torch.eye(m, dtype=seen.dtype, device=q.device)
            recalled = decayed_pairs(x.erase_key, x.k, passing, earlier)
            system = decayed_pairs(x.erase_key, x.erase_value, passing, earlier) + eye
            taken = torch.linalg.solve_triangular(system, recalled, upper=False, unitriangular=True)
            seen = seen - decayed_pairs(x.q, x.erase_value, passing, allowed) @ taken
        if self.normalised:
            seen = seen / seen.sum(-1, keepdim=True).clamp(min=self.least)
        return unaligned(self.scaled(seen, signals), n).to(q.dtype)

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        if not layout.causal:
            return super().rows(q, k, layout, rows, **signals)
        self.check(q, k, None, layout, signals)
        n, m = q.shape[2], k.shape[2]
        start, stop, _ = rows.indices(n)
        cut, last = layout.slice(n, m, slice(start, stop))
        own = range(max(start + m - n, 0), last)
        queries = pad(q[:, :, stop - len(own) : stop], (0, 0, own.start, 0))
        signals = {name: x[:, :, :last] for name, x in signals.items()}

        def run(v: Tensor) -> Tensor:
            x = self.scan_inputs(queries, k[:, :, :last], v, cut.key_mask, starts(cut.segments), signals)
            x = replace(x.each(lambda part, axis: part.detach()), v=x.v)
            return self.finish(self.run(x, self.empty(x))[0], v.dtype)

        found = adjoint(run, q, last, own).to(q.dtype)
        return pad(found, (0, m - last, stop - start - len(own), 0))

    def scaled(self, weights: Tensor, signals: Mapping[str, Tensor]) -> Tensor:
        """The weights once `write_values` has scaled what is written."""
        return weights

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(causal=True), **signals: Tensor
    ) -> Tensor:
        self.check(q, k, v, layout, signals)
        n, m = q.shape[2], k.shape[2]
        q, outs, state = aligned(q, m), [], None
        size = SPAN if q.device.type == "cpu" else max(m, 1)

        def spans(x: Tensor | None, axis: int) -> Sequence[Any]:
            """At once, as the gradient of one slice would be as long as all of them."""
            return [None] * max(-(-m // size), 1) if x is None else x.split(size, axis)

        own = zip(*(spans(x, 2) for x in (q, k, v, *signals.values())), strict=True)
        shared = zip(spans(layout.key_mask, 1), spans(starts(layout.segments), 1), strict=True)
        for (queries, keys, values, *given), (real, new) in zip(own, shared, strict=True):
            inputs = self.scan_inputs(queries, keys, values, real, new, dict(zip(signals, given, strict=True)))
            out, state = self.run(inputs, self.empty(inputs) if state is None else state)
            outs.append(self.finish(out, q.dtype))
        return unaligned(torch.cat(outs, dim=2) if len(outs) > 1 else outs[0], n)

    def empty(self, inputs: Inputs) -> Tensor:
        """S before the first token."""
        return inputs.v.new_zeros(*inputs.k.shape[:2], inputs.k.shape[3], inputs.v.shape[3])

    def start(
        self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> RecurrentState:
        """No memory yet."""
        nothing = torch.empty(batch, 0, 0, 0, device=device, dtype=accumulate_dtype(dtype))
        return RecurrentState(torch.zeros(batch, dtype=torch.int64, device=device), nothing)

    def extend(
        self, q: Tensor, k: Tensor, v: Tensor, state: Any, key_mask: Tensor | None = None, **signals: Tensor
    ) -> tuple[Tensor, RecurrentState]:
        """Scans on from the memory."""
        self.check(q, k, v, Layout(causal=True), signals)
        _, seen = count_new(state, key_mask, k.shape[2], k.shape[0])
        inputs = self.scan_inputs(q, k, v, key_mask, None, signals)
        out, kv = self.run(inputs, state.kv if state.kv.shape[1] else self.empty(inputs))
        return self.finish(out, q.dtype), RecurrentState(seen, kv)

    def cost(self, shape: Shape, layout: Layout = Layout(causal=True)) -> Cost:
        heads, d, e = shape.batch * shape.heads, self.feature_dim(shape.head_dim), shape.values + self.normalised
        flops = gated_flops(shape.keys, d, e, self.by_channel, self.kind)
        return Cost(heads * flops, shape.io_bytes, heads * d * e * max(shape.itemsize, 4))

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        for name, spec in self.signals.items():
            shape, size = tuple(signals[name].shape), spec.size(q.shape[3], q.shape[3] if v is None else v.shape[3])
            wanted = (
                q.shape[0],
                spec.rows(q.shape[1], k.shape[1]),
                q.shape[2] if spec.side == "query" else k.shape[2],
                *size,
            )
            if shape != wanted and not (v is None and spec.dim == "value"):
                raise wrong(name, f"shape {shape}", f"{wanted}")


class Averaged(Recurrent):
    """The base of linear attention whose rows are divided by their sums, causal or bidirectional.

        A_ij = φ'(q_i) · φ(k_j) / max(Σ_j φ'(q_i) · φ(k_j), least)

    A subclass gives `features`, and `feature_dim` where they are more than the channels. Bidirectional, the sum runs
    over all keys, and a packed batch runs document by document.
    """

    traits = Traits(time="linear", state="constant", rows="one", sign="nonnegative")
    normalised = True

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(causal=True), **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        if layout.causal:
            return super().weights(q, k, layout, **signals)
        x = self.scan_inputs(q, k, k[..., :1], None, None, signals)
        products = (x.q @ x.k.mT).masked_fill(~layout.allowed(q.shape[2], k.shape[2], q.device), 0)
        return (products / products.sum(-1, keepdim=True).clamp(min=self.least)).to(q.dtype)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(causal=True), **signals: Tensor
    ) -> Tensor:
        self.check(q, k, v, layout, signals)
        if layout.causal:
            return super().forward(q, k, v, layout, **signals)

        def run(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None = None) -> Tensor:
            products, outs = [], []
            for first in range(0, max(k.shape[2], 1), SPAN):
                part = slice(first, first + SPAN)
                real = None if keys is None else keys[:, part]
                x = self.scan_inputs(q[:, :, :0], k[:, :, part], v[:, :, part], real, None, signals)
                products.append(x.k.mT @ x.v)
            kv = torch.stack(products).sum(0)
            for first in range(0, max(q.shape[2], 1), SPAN):
                x = self.scan_inputs(q[:, :, first : first + SPAN], k[:, :, :0], v[:, :, :0], None, None, signals)
                outs.append(self.finish(x.q @ kv, q.dtype))
            return torch.cat(outs, dim=2) if len(outs) > 1 else outs[0]

        return run(q, k, v, layout.key_mask) if layout.segments is None else packing.per_sequence(run, q, k, v, layout)

    def cost(self, shape: Shape, layout: Layout = Layout(causal=True)) -> Cost:
        if layout.causal:
            return super().cost(shape, layout)
        heads, d, e = shape.batch * shape.heads, self.feature_dim(shape.head_dim), shape.values + 1
        return Cost(2 * heads * (shape.n + shape.keys) * d * e, shape.io_bytes, heads * d * e * max(shape.itemsize, 4))


def adjoint(attend: Callable[[Tensor], Tensor], q: Tensor, m: int, rows: range) -> Tensor:
    """``rows`` of A over ``m`` keys, ``(b, h, rows, m)``, from ``attend(v) = A v`` alone: its gradients by v.

    A itself is never formed; the result is detached.
    """
    with torch.enable_grad():
        v = q.new_zeros(*q.shape[:2], m, len(rows), dtype=accumulate_dtype(q.dtype)).requires_grad_()
        out = attend(v)
        picked = torch.zeros_like(out)
        picked[:, :, torch.tensor(rows, dtype=torch.int64), torch.arange(len(rows))] = 1
        return torch.autograd.grad(out, v, picked)[0].mT


def aligned(q: Tensor, m: int) -> Tensor:
    """One query a key: blank ones before ``q``, or q without those before the first key; else q itself."""
    return q if q.shape[2] == m else pad(q, (0, 0, m - q.shape[2], 0))


def unaligned(x: Tensor, n: int) -> Tensor:
    """`aligned` undone on the outputs or rows: those of the last ``n`` queries, zeros before the first key."""
    return x if x.shape[2] == n else pad(x, (0, 0, n - x.shape[2], 0))


def starts(segments: Tensor | None) -> Tensor | None:
    """``(b, m)`` bool: the first tokens of packed documents but the first."""
    return None if segments is None else pad(segments[:, 1:] != segments[:, :-1], (1, 0))


def decayed_pairs(q: Tensor, k: Tensor, passing: Tensor | None, allowed: Tensor) -> Tensor:
    """``q_i · diag(passing_ij) k_j`` where ``allowed``, else 0: ``(b, h, m, m)``, dense; None passes all."""
    if passing is None:
        products = q @ k.mT
    elif passing.dim() == 4:
        products = q @ k.mT * passing
    else:
        products = ((passing * k[:, :, None]) @ q[..., None])[..., 0]
    return products.masked_fill(~allowed, 0)


def left(log_decay: Tensor | None, allowed: Tensor) -> Tensor | None:
    """``exp(Σ_{j < t ≤ i} log_decay_t)`` where ``allowed``, else 0: what is left at i of what j wrote.

    ``(b, h, i, j)``, or ``(…, d)`` where channels decay apart; None where nothing does.
    """
    if log_decay is None:
        return None
    if log_decay.dim() == 3:
        return elapsed(log_decay[..., None])[..., 0].masked_fill(~allowed, -torch.inf).exp()
    return elapsed(log_decay).masked_fill(~allowed[..., None], -torch.inf).exp()


def elapsed(log_decay: Tensor) -> Tensor:
    """``Σ_{j < t ≤ i} log_decay_t``, each sum of its own terms, so that none of them is lost: ``(b, h, i, j, d)``.

    Shapes: ``log_decay (b, h, m, d)``.
    """
    m = log_decay.shape[2]
    after = torch.ones(m, m, dtype=torch.bool, device=log_decay.device).tril(-1)[..., None]
    return torch.where(after, log_decay[..., None, :], 0).cumsum(2)
