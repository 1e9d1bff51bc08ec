"""Attention as a layer: hidden states in and out, any mechanism inside, hosted as its paper has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.blocks.convolution import ShortConvolution
from regard.blocks.signals import Signals
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Mechanism
from regard.core.state import State, count_new
from regard.projections.base import Projection, merge_heads, split_heads
from regard.projections.rotary import Rotary

EPSILON = 1e-6  # under roots, so that a zero vector stays one
Nested = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # attention number, q, k, v -> output


@dataclass(frozen=True)
class AttentionState(State):
    """What a layer keeps of the past.

    Args:
        inner: the mechanism's state. tail: ``(b, taps − 1, channels)``, the last tokens that the short convolution
            still needs; no channels where there is none. nested: of the attentions that make queries and keys.
    """

    inner: State
    tail: Tensor
    nested: tuple[State, ...] = ()


class Attention(nn.Module):
    """``y = merge(gate(x) ⊙ norm(A(q, k) v))`` with q, k, v projected from x, as the mechanism's `layer` has it.

    In order: projection, short convolution, activation, unit length, rotary positions, the mechanism with its
    signals, norm of each head, gate, merge. What `layer` does not name is left out.

    Args:
        mechanism: A. projection: from and to hidden states. rotary: how positions turn q and k where the mechanism's
            host wants it; None for not at all.

    Raises:
        ValueError: fewer kv heads than heads for a mechanism that does not group.
    """

    def __init__(self, mechanism: Mechanism, projection: Projection, rotary: Rotary | None = None) -> None:
        super().__init__()
        heads, groups = projection.heads, projection.kv_heads
        d, e, spec = projection.head_dim, projection.value_dim, mechanism.layer
        if heads != groups and not mechanism.traits.grouped:
            raise wrong(
                "kv_heads", str(groups), f"the {heads} heads: {type(mechanism).__name__} does not group queries"
            )
        self.mechanism, self.projection, self.spec = mechanism, projection, spec
        self.rotary = rotary if spec.rotary else None
        self.signals = Signals(mechanism.signals, projection.width, heads, groups, d, e)
        self.channels = heads * d + groups * (d + e) if spec.convolution else 0
        self.convolution = ShortConvolution(self.channels, spec.convolution) if spec.convolution else None
        self.scale = nn.Parameter(torch.ones(e)) if spec.norm else None
        self.gate = nn.Linear(projection.width, heads * e, bias=False) if spec.gate else None

    @property
    def causal(self) -> bool:
        """Whether it can attend causally, and be continued."""
        return self.mechanism.traits.causal and self.projection.causal

    def forward(self, x: Tensor, layout: Layout = Layout(), context: Tensor | None = None) -> Tensor:
        """``(b, n, width)`` of ``x (b, n, width)``, attending to itself or to ``context (b, m, width)``."""
        q, k, v, signals = self.inputs(x, layout, context)
        positions = None if context is not None else layout.positions(x.shape[1], x.device)
        return self.finish(self.mechanism(q, k, v, layout, **signals), x, positions)

    def inputs(
        self, x: Tensor, layout: Layout = Layout(), context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """``(q, k, v, signals)`` as the mechanism is given them."""
        if not self.projection.causal and (layout.causal or not layout.plain):
            raise wrong(
                "layout", str(layout), f"whole texts, bidirectional: {type(self.projection).__name__} mixes them"
            )
        if context is not None and self.projection.order > 1:
            raise wrong("context", "another sequence", "None: queries and keys come from attention to the same tokens")
        if context is not None and self.convolution is not None:
            raise wrong(
                "context", "another sequence", f"None: {type(self.mechanism).__name__} convolves q, k and v as one"
            )
        q, k, v = self.projection(x, x if context is None else context)
        if self.convolution is not None:
            q, k, v = self.cut(self.convolution(self.joined(q, k, v), layout))
        q, k, v = self.activated(q, k, v)
        signals = self.signals(x, x if context is None else context)
        positions = None if context is not None else layout.positions(k.shape[2], x.device)
        q, k = self.scored(q, k, positions, lambda _, q, k, v: self.mechanism(q, k, v, layout, **signals))
        return q, k, self.valued(k, v, positions), signals

    def start(self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32):
        """The state before any token."""
        if not self.projection.causal:
            name = type(self.projection).__name__
            raise wrong("projection", name, "one whose tokens do not know of later ones: it cannot be continued")
        inner = self.mechanism.start(batch, device=device, dtype=dtype)
        taps = max(self.spec.convolution, 1)
        tail = torch.zeros(batch, taps - 1, self.channels, device=device, dtype=dtype)
        return AttentionState(inner.seen, inner, tail, (inner,) * (self.projection.order - 1))

    def extend(self, x: Tensor, state: AttentionState, key_mask: Tensor | None = None) -> tuple[Tensor, AttentionState]:
        """``(y of the new tokens, the state after them)``; ``key_mask (b, n)`` marks the real ones."""
        positions, seen = count_new(state, key_mask, x.shape[1], x.shape[0])
        q, k, v = self.projection(x, x)
        tail = state.tail
        if self.convolution is not None:
            mixed, tail = self.convolution.extend(self.joined(q, k, v), tail, state.seen, key_mask)
            q, k, v = self.cut(mixed)
        q, k, v = self.activated(q, k, v)
        signals, nested = self.signals(x, x), list(state.nested)

        def attend(level: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out, nested[level] = self.mechanism.extend(q, k, v, nested[level], key_mask, **signals)
            return out

        q, k = self.scored(q, k, positions, attend)
        v = self.valued(k, v, positions)
        out, inner = self.mechanism.extend(q, k, v, state.inner, key_mask, **signals)
        return self.finish(out, x, positions), AttentionState(seen, inner, tail, tuple(nested))

    @property
    def inside(self) -> slice | None:
        """Where values stand in the keys, if neither positions nor what the host does set them apart."""
        inside, turned = self.projection.value_slice, 0 if self.rotary is None else self.rotary.dim
        apart = self.spec.convolution or self.spec.activation or self.spec.unit
        return None if apart or inside is None or inside.start < turned else inside

    def valued(self, k: Tensor, v: Tensor, positions: Tensor | None) -> Tensor:
        """The values as the mechanism is given them: a view of the keys where they are part of these."""
        inside = self.inside
        return self.projection.add_value_positions(v, positions) if inside is None else k[..., inside]

    def joined(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``(b, n, channels)``: all heads of all three side by side."""
        return torch.cat([merge_heads(part) for part in (q, k, v)], dim=2)

    def cut(self, x: Tensor) -> list[Tensor]:
        """`joined` undone."""
        p = self.projection
        sizes = (p.heads * p.head_dim, p.kv_heads * p.head_dim, p.kv_heads * p.value_dim)
        heads = (p.heads, p.kv_heads, p.kv_heads)
        return [split_heads(part, count) for part, count in zip(x.split(sizes, dim=2), heads, strict=True)]

    def activated(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `layer` names as activation."""
        return (F.silu(q), F.silu(k), F.silu(v)) if self.spec.activation == "silu" else (q, k, v)

    def scored(self, q: Tensor, k: Tensor, positions: Tensor | None, attend: Nested) -> tuple[Tensor, Tensor]:
        """Queries and keys as the mechanism scores them, after the nested attentions of `Projection.order`."""

        def prepared(x: Tensor) -> Tensor:
            if self.spec.unit:
                x = x * torch.rsqrt(x.square().sum(-1, keepdim=True) + EPSILON)
            if self.rotary is None or positions is None:
                return x
            parts = x.unflatten(3, (self.spec.parts, -1)).movedim(3, 2)
            return self.rotary(parts.flatten(1, 2), positions).view_as(parts).movedim(2, 3).flatten(3)

        first = (q, k)
        q, k = prepared(q), prepared(k)
        for level in range(self.projection.order - 1):
            both = attend(level, q, k, torch.cat(first, -1))
            q, k = (prepared(x) for x in both.split(q.shape[-1], -1))
        return q, k

    def finish(self, out: Tensor, x: Tensor, positions: Tensor | None) -> Tensor:
        """Norm, gate and merge of the heads' outputs ``(b, h, n, e)`` of queries at ``positions``."""
        if self.scale is not None:
            out = F.rms_norm(out, (out.shape[-1],), self.scale, EPSILON) * self.spec.factor
        if self.gate is not None:
            opened = split_heads(self.gate(x), self.projection.heads)
            out = out * (F.silu(opened) if self.spec.gate == "silu" else torch.sigmoid(opened))
        return self.projection.finish(out, x, positions)

    def cost(self, n: int, m: int | None = None, batch: int = 1, causal: bool = True, itemsize: int = 4) -> Cost:
        """FLOPs of the matrix products of ``forward``; bytes of weights and the mechanism's tensors, of the state."""
        p, itself = self.projection, Layout(causal=causal)
        shape = Shape(n, m, batch, p.heads, p.kv_heads, p.head_dim, p.value_dim, itemsize, self.inside is not None)
        inner = self.mechanism.cost(shape, itself)
        if p.order > 1:
            nested = self.mechanism.cost(replace(shape, value_dim=2 * p.head_dim), itself)
            sums = (last + (p.order - 1) * each for last, each in zip(astuple(inner), astuple(nested), strict=True))
            inner = Cost(*sums)
        affine = sum(weight.numel() for weight in self.signals.parameters() if weight.dim() == 2)
        affine += 0 if self.gate is None else self.gate.weight.numel()
        matrices = p.flops + 2 * affine
        weights = sum(parameter.numel() for parameter in self.parameters()) * itemsize
        tail = batch * max(self.spec.convolution - 1, 0) * self.channels * itemsize
        return Cost(batch * n * matrices + inner.flops, weights + inner.bytes, inner.state_bytes + tail)
