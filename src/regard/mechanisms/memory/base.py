"""The family whose past is a small network that takes a gradient step for every token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Mechanism, Signal, Traits, accumulate_dtype, check_sizes, repeat_heads
from regard.core.state import State, count_new
from regard.kernels.scan.dual import learned
from regard.kernels.scan.online import Inputs, Rule, Weights, online_flops, recall
from regard.kernels.scan.summed import summed_flops
from regard.mechanisms.linear.base import aligned, unaligned
from regard.mechanisms.slots import Slots, slots_of

UNIT = 1e-12
"""Least squared length that a query or key is divided by the root of."""


@dataclass(frozen=True)
class MemoryState(State):
    """All that is left of the past: the memory's weights, in the precision of sums; nothing before the first token.

    Args:
        sums, momentum, anchor, reading: as of `Weights`, each layer ``(b, h, i, o)``. Where in its chunk a sequence
            stands follows from ``seen``.
    """

    sums: tuple[Tensor, ...]
    momentum: tuple[Tensor, ...]
    anchor: tuple[Tensor, ...]
    reading: tuple[Tensor, ...]


class OnlineMemory(Mechanism):
    """The base of memories that learn at test time: a network of one or two layers for each head.

        S_t = η_t S_{t−1} − θ_t ∇ℓ(W_c; k_t, v_t),   A_t = (1 − α_t) A_{t−1} + S_t,   o_t = M(q_t; W_t)

    ℓ, M and how W follows from A are the ``rule``; W_c are the weights at the start of the token's chunk; q and k have
    unit length. A subclass gives `rule` and `signals`: ``step`` θ, ``log_decay`` log(1 − α), ``log_momentum`` log η
    where there is momentum, ``threshold`` where the rule reads one. Padding writes nothing and each packed document
    begins with the learned weights. The output is not linear in v: the definition is the token loop, its gradients
    by autograd.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h; causal.
    State: three times the weights with momentum, two without, at least float32, whatever the length.

    Args:
        heads, head_dim, value_dim: of its calls, the last as head_dim if None. chunk: tokens that take their
            gradients at the same weights; 1 for the recurrence of the equation with W_c = W_{t−1}. hidden: channels
            of the memory's inner layer over those of a key, 0 for a linear memory. step: the most that θ may be,
            None for 1 / (`caution` chunk). Larger ones can diverge: the gradients of a chunk of equal keys add up,
            momentum multiplies them, and the curvature of two layers grows with their weights.
    """

    traits = Traits(bidirectional=False, time="linear", state="constant", linear=False)
    rule: Rule = Rule()
    caution: float = 8

    def __init__(
        self,
        heads: int,
        head_dim: int,
        value_dim: int | None = None,
        chunk: int = 16,
        hidden: int = 4,
        step: float | None = None,
    ) -> None:
        super().__init__()
        value_dim = head_dim if value_dim is None else value_dim
        if chunk < 1:
            raise wrong("chunk", str(chunk), "at least 1 token")
        if hidden < 0:
            raise wrong("hidden", str(hidden), "0 for a linear memory, or how many times as wide as a key")
        if self.rule.residual and head_dim != value_dim:
            raise wrong("value_dim", str(value_dim), f"the head_dim, {head_dim}: the memory adds to what it is given")
        self.heads, self.head_dim, self.value_dim, self.chunk = heads, head_dim, value_dim, chunk
        most = 1 / (self.caution * chunk) if step is None else step
        if not most > 0:
            raise wrong("step", str(step), "above 0")
        self.signals = self.bounded(most)
        sizes = self.sizes(head_dim, value_dim, hidden)
        self.initial = nn.ParameterList(torch.randn(heads, i, o) * self.spread(i) for i, o in sizes)

    def spread(self, size: int) -> float:
        """The standard deviation of what a layer of so many inputs starts with."""
        return size**-0.5

    def bounded(self, most: float) -> Mapping[str, Signal]:
        """The signals, the step at most so large."""
        raise NotImplementedError

    @staticmethod
    def sizes(head_dim: int, value_dim: int, hidden: int) -> list[tuple[int, int]]:
        """``(i, o)`` of the memory's layers."""
        inner = hidden * head_dim
        return [(head_dim, inner), (inner, value_dim)] if hidden else [(head_dim, value_dim)]

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        check_sizes(q, self.heads, self.head_dim)
        if v is not None and v.shape[3] != self.value_dim:
            raise wrong("v", f"value_dim {v.shape[3]}", str(self.value_dim))
        for name, signal in self.signals.items():
            wanted = (q.shape[0], q.shape[1], k.shape[2], *signal.size(self.head_dim, self.value_dim))
            if tuple(signals[name].shape) != wanted:
                raise wrong(name, f"shape {tuple(signals[name].shape)}", str(wanted))

    def inputs(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor | None, signals: Mapping[str, Tensor]) -> Inputs:
        """What the kernel reads, in the precision of sums: one query a key, unit length, padding silent."""
        wide, heads = accumulate_dtype(q.dtype), q.shape[1]
        given = {name: self.signals[name].guarded(x.to(wide)) for name, x in signals.items()}
        if real is not None:
            silent = ~real[:, None]
            given = {
                name: x.masked_fill(silent.view(*silent.shape, *[1] * (x.dim() - 3)), 0) for name, x in given.items()
            }
            given["real"] = real[:, None].expand(-1, heads, -1).to(wide)

        def unit(x: Tensor) -> Tensor:
            return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + UNIT)

        q, k, v = aligned(q, k.shape[2]).to(wide), repeat_heads(k, heads).to(wide), repeat_heads(v, heads).to(wide)
        return Inputs(unit(q), unit(k), v, **given)

    def placed(self, x: Inputs, slots: Slots) -> Inputs:
        """The tokens where they stand in chunks."""
        real = torch.ones_like(x.q[..., 0]) if x.real is None else x.real
        return replace(x, real=real).each(slots.filled)

    def begun(self, batch: int, dtype: torch.dtype) -> Weights:
        """The memory before any token."""
        sums = tuple(x.to(dtype).expand(batch, -1, -1, -1) for x in self.initial)
        return self.rule.begun(sums, "log_momentum" in self.signals)

    def define(
        self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(causal=True), **signals: Tensor
    ) -> Tensor:
        self.check(q, k, v, layout, signals)
        (batch, _, n, _), m = q.shape, k.shape[2]
        x = self.inputs(q, k, v, layout.key_mask, signals)
        positions = layout.positions(m, q.device).expand(batch, -1)
        new = w = self.begun(batch, x.q.dtype)
        outs = []
        for t in range(m):
            if layout.segments is not None:
                w = new.where(positions[:, t] == 0, w)
            opens, closes = (positions[:, t] % self.chunk == place for place in (0, self.chunk - 1))
            out, after = self.token(x.each(lambda s, t=t: s[:, :, t : t + 1]), w, opens, closes)
            if layout.key_mask is None:
                w = after
            else:
                real = layout.key_mask[:, t]
                out, w = out.masked_fill(~real[:, None, None, None], 0), after.where(real, w)
            outs.append(out)
        return unaligned(torch.cat([x.v[:, :, :0], *outs], 2), n).to(q.dtype)

    def token(self, x: Inputs, w: Weights, opens: Tensor, closes: Tensor) -> tuple[Tensor, Weights]:
        """One token as the equation has it; ``opens (b,)``: a chunk begins with it; ``closes``: it ends with it."""
        rule, at, learns = self.rule, opens[:, None, None, None], torch.is_grad_enabled()
        anchor = w.anchor
        if opens.any():
            present = rule.present(w.sums, w.reading)
            anchor = tuple(torch.where(at, now, old) for now, old in zip(present, w.anchor, strict=True))
        with torch.enable_grad():
            leaves = [layer if layer.requires_grad else layer.detach().requires_grad_() for layer in anchor]
            loss = rule.loss(recall(rule, tuple(leaves), x.k) - x.v, x.limit).sum()
            slopes = torch.autograd.grad(loss, leaves, create_graph=learns)
        theta, decay = self.gates(x.step), self.gates(x.log_decay.exp())
        moved = [-size * slope for size, slope in zip(theta, slopes, strict=True)]
        if rule.summed:
            return self.summed(x, replace(w, anchor=anchor), moved, closes)
        if x.log_momentum is not None:
            moved = [x.log_momentum[..., None].exp() * old + new for old, new in zip(w.momentum, moved, strict=True)]
        sums = tuple(left * old + step for left, old, step in zip(decay, w.sums, moved, strict=True))
        kept = [rule.kept(layer) for layer in sums] if w.reading else []
        reading = tuple(torch.where(at, new, old) for new, old in zip(kept, w.reading, strict=True) if new is not None)
        out = recall(rule, rule.present(sums, reading), x.q)
        return out, Weights(sums, tuple(moved) if w.momentum else (), anchor, reading)

    def summed(self, x: Inputs, w: Weights, moved: list[Tensor], closes: Tensor) -> tuple[Tensor, Weights]:
        """The rest of `token` where a chunk's steps ``moved`` are taken when it ends."""
        pending = tuple(old + step for old, step in zip(w.sums, moved, strict=True))
        steps = [now - begun for now, begun in zip(pending, w.anchor, strict=True)]
        if x.log_momentum is not None:
            kept = x.log_momentum[..., None].exp()
            steps = [kept * old + step for old, step in zip(w.momentum, steps, strict=True)]
        layers = zip(self.gates(x.log_decay.exp()), w.anchor, steps, strict=True)
        ended = tuple(left * begun + step for left, begun, step in layers)
        after = Weights(ended, tuple(steps) if w.momentum else (), ended).where(closes, replace(w, sums=pending))
        return recall(self.rule, after.anchor, x.q), after

    def gates(self, x: Tensor) -> list[Tensor]:
        """One token's gate ``(b, h, 1)``, or ``(b, h, 1, c)``, as it multiplies each layer's ``(b, h, i, o)``.

        Channels are those that the last layer writes, and that the first of two reads.
        """
        if x.dim() == 3:
            return [x[..., None]] * len(self.initial)
        return [x.mT, x][-len(self.initial) :]

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(causal=True), **signals: Tensor
    ) -> Tensor:
        self.check(q, k, v, layout, signals)
        (batch, _, n, _), m = q.shape, k.shape[2]
        x, w = self.inputs(q, k, v, layout.key_mask, signals), self.begun(batch, accumulate_dtype(q.dtype))
        if layout.key_mask is None and layout.segments is None:
            size = self.chunk if self.rule.summed else max(min(m, self.chunk), 1)
            x = x.each(lambda t: F.pad(t, (0, 0) * (t.dim() - 3) + (0, -m % size))) if m % size else x
            whole = x.each(lambda t: t.unflatten(2, (-1, size)))
            out = learned(self.rule, whole, w)[0].flatten(2, 3)[:, :, :m]
        else:
            positions = layout.positions(m, q.device).expand(batch, -1)
            real = torch.ones_like(positions, dtype=torch.bool) if layout.key_mask is None else layout.key_mask
            offset = torch.zeros(batch, dtype=torch.int64, device=q.device)
            slots = slots_of(self.chunk, positions, real, offset, layout.segments is not None)
            out = slots.taken(learned(self.rule, self.placed(x, slots), w, slots.course, w)[0])
        return unaligned(out, n).to(q.dtype)

    def start(
        self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> MemoryState:
        """No memory but what was learned in training."""
        return MemoryState(torch.zeros(batch, dtype=torch.int64, device=device), (), (), (), ())

    def extend(
        self, q: Tensor, k: Tensor, v: Tensor, state: Any, key_mask: Tensor | None = None, **signals: Tensor
    ) -> tuple[Tensor, MemoryState]:
        """Learns on from the memory; a chunk goes on where the last call left it."""
        self.check(q, k, v, Layout(causal=True), signals)
        positions, seen = count_new(state, key_mask, k.shape[2], k.shape[0])
        x = self.inputs(q, k, v, key_mask, signals)
        w = Weights(state.sums, state.momentum, state.anchor, state.reading)
        w = w if state.sums else self.begun(q.shape[0], x.q.dtype)
        real = torch.ones_like(positions, dtype=torch.bool) if key_mask is None else key_mask
        slots = slots_of(self.chunk, positions, real, state.seen % self.chunk, False)
        out, w = learned(self.rule, self.placed(x, slots), w, slots.course)
        return slots.taken(out).to(q.dtype), MemoryState(seen, w.sums, w.momentum, w.anchor, w.reading)

    def cost(self, shape: Shape, layout: Layout = Layout(causal=True)) -> Cost:
        sizes, momentum = [tuple(x.shape[1:]) for x in self.initial], "log_momentum" in self.signals
        flops = online_flops(shape.keys, self.chunk, sizes, momentum, self.rule.current)
        if self.rule.summed:
            flops = summed_flops(shape.keys, self.chunk, sizes)
        count, heads = sum(i * o for i, o in sizes), shape.batch * shape.heads
        held = count * (3 if momentum else 2) + self.rule.kept_size(sizes)
        return Cost(heads * flops, shape.io_bytes, heads * held * max(shape.itemsize, 4))
