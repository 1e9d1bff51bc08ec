"""Attention as a layer: hidden states in and out, any mechanism inside, hosted as its paper has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.blocks.affine import Affine, inner_size
from regard.blocks.convolution import ShortConvolution, extended, shifted_sum
from regard.blocks.output import HeadNorm, Output
from regard.blocks.shift import TokenShift
from regard.blocks.signals import Signals
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Mechanism, repeat_heads
from regard.core.state import State, count_new
from regard.projections.base import Grouped, Projection, merge_heads, split_heads
from regard.projections.rotary import Rotary
from regard.projections.selective import Selective

EPSILON = 1e-6  # under roots, so that a zero vector stays one
Nested = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # attention number, q, k, v -> output
Given = tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]  # q, k, v and signals of a mechanism's call


@dataclass(frozen=True)
class AttentionState(State):
    """What a layer keeps of the past.

    Args:
        inner: the mechanism's state. tail: ``(b, taps − 1, channels)``, the last tokens that the short convolution
            still needs; no channels where there is none; all hidden states where the projection is `ordered`.
        nested: of the attentions that make queries and keys.
        last: ``(b, 1, width)``, the last token's hidden state where tokens are shifted; no width where not.
    """

    inner: State
    tail: Tensor
    nested: tuple[State, ...]
    last: Tensor


@dataclass
class Handed:
    """What the layers of one pass hand on to later ones.

    Args:
        values: ``(b, g, m, e)``, those of the first layer whose `LayerSpec.values` say so; None before it.
    """

    values: Tensor | None = None


class Attention(nn.Module):
    """``y = merge(gate(x) ⊙ norm(A(q, k) v))`` with q, k, v projected from x, as the mechanism's `layer` has it.

    In order: token shift, projection, short convolution, activation, unit length, rotary positions, the mechanism with
    its signals, skip, norm, bonus, gate, merge. What `layer` does not name is left out.

    Args:
        mechanism: A. projection: from and to hidden states. rotary: how positions turn q and k where the mechanism's
            host wants it; None for not at all. later: whether a layer before it hands its values on, where the host
            mixes values of layers.

    Raises:
        ValueError: fewer kv heads than heads for a mechanism that does not group; a projection that cannot do what the
            host asks for.
    """

    def __init__(
        self, mechanism: Mechanism, projection: Projection, rotary: Rotary | None = None, later: bool = False
    ) -> None:
        super().__init__()
        heads, groups = projection.heads, projection.kv_heads
        d, e, spec = projection.head_dim, projection.value_dim, mechanism.layer
        check_projection(mechanism, projection)
        self.mechanism, self.projection, self.spec = mechanism, projection, spec
        self.rotary = rotary if spec.rotary else None
        source = projection.width if self.selective is None else self.selective.inner
        self.signals = Signals(mechanism.signals, source, heads, groups, d, e, projection.width)
        self.sizes = [count * size for count, size in zip(projection.counts, (d, d, e), strict=True)]
        self.channels = (self.sizes[2] if self.selective else sum(self.sizes)) if spec.convolution else 0
        self.taps = max(spec.convolution, 1)
        if spec.blend:
            self.channels, self.taps = sum(self.sizes[1:]), 2
        self.blend = nn.Linear(projection.width, 2 * groups, bias=False) if spec.blend else None
        self.norms = nn.ModuleDict()
        if spec.scored is not None:
            self.norms["q"] = HeadNorm(spec.scored, heads, groups, d)
            self.norms["k"] = HeadNorm(spec.scored, groups, groups, d)
        self.convolution = ShortConvolution(self.channels, spec.convolution, spec.bias) if spec.convolution else None
        readers = ["q", "k", "v", "gate", *self.signals.maps] if spec.gate else ["q", "k", "v", *self.signals.maps]
        self.shift = None if spec.shift is None else TokenShift(projection.width, readers, spec.shift.rank)
        self.mix = None
        if later and spec.values is not None:
            self.mix = Affine(projection.width, groups * e, inner_size(spec.values, projection.width, e))
        self.output = Output(spec, projection)

    @property
    def selective(self) -> Selective | None:
        """The projection, where it makes queries and keys of the values."""
        return self.projection if isinstance(self.projection, Selective) else None

    @property
    def causal(self) -> bool:
        """Whether it can attend causally, and be continued."""
        return self.mechanism.traits.causal and (self.projection.causal or self.projection.ordered)

    @property
    def hands(self) -> bool:
        """Whether it takes values of another layer, or hands its own on."""
        return self.spec.values is not None

    def forward(
        self,
        x: Tensor,
        layout: Layout = Layout(),
        context: Tensor | None = None,
        handed: Handed | None = None,
    ) -> Tensor:
        """``(b, n, width)`` of ``x (b, n, width)``, attending to itself or to ``context (b, m, width)``.

        ``handed`` goes from layer to layer of one pass; None for a layer alone.
        """
        return self.finish(*self.attended(x, layout, context, handed))

    def attended(
        self,
        x: Tensor,
        layout: Layout = Layout(),
        context: Tensor | None = None,
        handed: Handed | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Given, Tensor]:
        """What `finish` takes: the heads' outputs, x, its positions, the mechanism's inputs, what the gate reads."""
        read = self.read(x, layout, context)
        q, k, v, signals = given = self.given(read, x, layout, context, handed)
        positions = None if context is not None else layout.positions(x.shape[1], x.device)
        return self.mechanism(q, k, v, layout, **signals), x, positions, given, read.get("gate", x)

    def inputs(
        self,
        x: Tensor,
        layout: Layout = Layout(),
        context: Tensor | None = None,
        handed: Handed | None = None,
    ) -> Given:
        """``(q, k, v, signals)`` as the mechanism is given them."""
        return self.given(self.read(x, layout, context), x, layout, context, handed)

    def read(self, x: Tensor, layout: Layout, context: Tensor | None) -> dict[str, Tensor]:
        """The hidden states that each map reads, by its name, where they are not x itself: after the token shift."""
        if not self.projection.causal and (layout.causal != self.projection.ordered or not layout.plain):
            way = "causal" if self.projection.ordered else "bidirectional"
            raise wrong("layout", str(layout), f"whole texts, {way}: {type(self.projection).__name__} mixes them")
        if context is not None and self.projection.order > 1:
            raise wrong("context", "another sequence", "None: queries and keys come from attention to the same tokens")
        if context is not None and not self.crosses:
            name = type(self.mechanism).__name__
            raise wrong("context", "another sequence", f"None: {name} convolves or shifts q, k and v as one")
        return {} if self.shift is None else self.shift(x, layout)

    @property
    def crosses(self) -> bool:
        """Whether it can attend to another sequence, as far as what is around the mechanism goes."""
        return self.convolution is None and self.shift is None

    def given(
        self,
        read: Mapping[str, Tensor],
        x: Tensor,
        layout: Layout,
        context: Tensor | None,
        handed: Handed | None = None,
    ) -> Given:
        """The mechanism's inputs from what `read` gives."""
        own = x if context is None else context
        q, k, v, signals = self.projected(read, x, own, lambda z: self.convolved(z, layout))
        q, k, v = self.blended(q, k, v, read, own, handed, lambda z: before(z, layout))
        positions = None if context is not None else layout.positions(k.shape[2], x.device)
        q, k = self.scored(q, k, positions, lambda _, q, k, v: self.mechanism(q, k, v, layout, **signals))
        return q, k, self.valued(k, v, positions), signals

    def blended(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        read: Mapping[str, Tensor],
        own: Tensor,
        handed: Handed | None,
        before: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v blended, mixed and normed; ``before`` gives the token before of each of ``(b, n, channels)``."""
        if self.blend is not None:
            both = torch.cat([merge_heads(k), merge_heads(v)], 2)
            earlier = before(both).split(self.sizes[1:], 2)
            shares = torch.sigmoid(self.blend(own)).mT[..., None].chunk(2, 1)
            k, v = (
                torch.lerp(z, split_heads(past, z.shape[1]), share)
                for z, past, share in zip((k, v), earlier, shares, strict=True)
            )
        v = self.mixed(v, read.get("v", own), handed)
        if self.norms:
            q, k = self.norms["q"](q), self.norms["k"](k)
        return q, k, v

    def mixed(self, v: Tensor, read: Tensor, handed: Handed | None) -> Tensor:
        """The values, with those of the first layer in them; those of the first layer are handed on.

        Raises:
            TypeError: a later layer that no values are handed to.
        """
        if self.mix is None:
            if self.hands and handed is not None:
                handed.values = v
            return v
        if handed is None or handed.values is None:
            raise wrong("handed", "no values", "those of the first layer, which this one mixes with its own", TypeError)
        return v + (handed.values - v) * torch.sigmoid(split_heads(self.mix(read), v.shape[1]))

    def convolved(self, z: Tensor, layout: Layout) -> Tensor:
        """The short convolution, if there is one."""
        return z if self.convolution is None else self.convolution(z, layout)

    def projected(
        self, read: Mapping[str, Tensor], x: Tensor, own: Tensor, convolved: Callable[[Tensor], Tensor]
    ) -> Given:
        """q, k, v after convolution and activation, before positions; and the signals."""
        if self.selective is not None:
            v = self.activated(split_heads(convolved(merge_heads(self.selective.written(own))), self.projection.heads))
            q, k = self.selective.scored(v)
            return q, k, v, self.signals(merge_heads(v), merge_heads(v), {}, k, v)
        if self.shift is not None and isinstance(self.projection, Grouped):  # no other one is hosted with it
            q, k, v = self.projection(read["q"], read["k"], read["v"])
        else:
            q, k, v = self.projection(x, own)
        if self.convolution is not None:
            q, k, v = self.cut(convolved(self.joined(q, k, v)))
        q, k, v = self.activated(q), self.activated(k), self.activated(v)
        return q, k, v, self.signals(x, own, read, k, v)

    def start(self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32):
        """The state before any token."""
        if not (self.projection.causal or self.projection.ordered):
            name = type(self.projection).__name__
            raise wrong("projection", name, "one whose tokens do not know of later ones: it cannot be continued")
        inner = self.mechanism.start(batch, device=device, dtype=dtype)
        kept = (0, self.projection.width) if self.projection.ordered else (self.taps - 1, self.channels)
        tail = torch.zeros(batch, *kept, device=device, dtype=dtype)
        last = torch.zeros(batch, 1, 0 if self.shift is None else self.projection.width, device=device, dtype=dtype)
        return AttentionState(inner.seen, inner, tail, (inner,) * (self.projection.order - 1), last)

    def extend(
        self,
        x: Tensor,
        state: AttentionState,
        key_mask: Tensor | None = None,
        handed: Handed | None = None,
    ) -> tuple[Tensor, AttentionState]:
        """``(y of the new tokens, the state after them)``; ``key_mask (b, n)`` marks the real ones, ``handed`` as of
        `forward`."""
        positions, seen = count_new(state, key_mask, x.shape[1], x.shape[0])
        tails, nested = [state.tail], list(state.nested)
        read, last = {}, state.last
        if self.shift is not None:
            read, last = self.shift.extend(x, state.last, state.seen, key_mask)

        def convolved(z: Tensor) -> Tensor:
            assert self.convolution is not None
            mixed, tails[0] = self.convolution.extend(z, state.tail, state.seen, key_mask)
            return mixed

        own = x
        if self.projection.ordered:
            if key_mask is not None and not bool(key_mask.all()):
                raise wrong("key_mask", "padding", "none: the projection counts places")
            tails[0] = own = torch.cat([state.tail, x], 1)
        q, k, v, signals = self.projected(read, x, own, convolved if self.convolution is not None else lambda z: z)
        if own is not x:
            first = own.shape[1] - x.shape[1]
            k, v = k[:, :, first:], v[:, :, first:]

        def earlier(z: Tensor) -> Tensor:
            found, tails[0] = extended(z, one_before(z), state.tail, state.seen, key_mask)
            return found

        q, k, v = self.blended(q, k, v, read, x, handed, earlier)

        def attend(level: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out, nested[level] = self.mechanism.extend(q, k, v, nested[level], key_mask, **signals)
            return out

        q, k = self.scored(q, k, positions, attend)
        v = self.valued(k, v, positions)
        out, inner = self.mechanism.extend(q, k, v, state.inner, key_mask, **signals)
        y = self.finish(out, x, positions, (q, k, v, signals), read.get("gate", x))
        return y, AttentionState(seen, inner, tails[0], tuple(nested), last)

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
        parts = x.split(self.sizes, dim=2)
        return [split_heads(part, count) for part, count in zip(parts, self.projection.counts, strict=True)]

    def activated(self, x: Tensor) -> Tensor:
        """What `layer` names as activation."""
        return F.silu(x) if self.spec.activation == "silu" else x

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
        return repeat_heads(q, self.projection.heads), repeat_heads(k, self.projection.kv_heads)

    def finish(
        self,
        out: Tensor,
        x: Tensor,
        positions: Tensor | None,
        given: Given | None = None,
        opening: Tensor | None = None,
    ) -> Tensor:
        """Norm, gate and merge of the heads' outputs ``(b, h, n, e)`` of queries at ``positions``.

        ``given`` are the mechanism's inputs, which a skip or a bonus reads, ``opening`` what the gate reads, x if None.
        """
        own = None
        if self.spec.bonus and given is not None:
            q, k, _, signals = given
            own = q, self.mechanism.written(repeat_heads(k, q.shape[1]), signals)
        out = self.output(out, x if opening is None else opening, None if given is None else given[2], own)
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
        matrices = p.flops + self.signals.flops + self.output.flops + (0 if self.shift is None else self.shift.flops)
        matrices += 0 if self.blend is None else 2 * self.blend.weight.numel()
        matrices += 0 if self.mix is None else 2 * sum(w.numel() for w in self.mix.parameters() if w.dim() == 2)
        weights = sum(parameter.numel() for parameter in self.parameters()) * itemsize
        kept = (self.taps - 1) * self.channels + (0 if self.shift is None else p.width)
        kept += shape.keys * p.width if p.ordered else 0
        state = inner.state_bytes + batch * kept * itemsize
        return Cost(batch * n * matrices + inner.flops, weights + inner.bytes, state)


def one_before(z: Tensor) -> Tensor:
    """The weights of a sum over a token and the one before that leave the latter."""
    return torch.stack([z.new_zeros(z.shape[2]), z.new_ones(z.shape[2])])


def before(z: Tensor, layout: Layout) -> Tensor:
    """The real token before each of ``z (b, n, channels)`` in its document, zero before the first."""
    return shifted_sum(z, one_before(z), layout.key_mask, layout.positions(z.shape[1], z.device))


def check_projection(mechanism: Mechanism, projection: Projection) -> None:
    """Raises an error if a projection cannot do what a mechanism and its host ask for."""
    spec, name, came = mechanism.layer, type(mechanism).__name__, type(projection).__name__
    if projection.ordered and (spec.convolution or spec.blend or spec.shift is not None or mechanism.signals):
        raise wrong("projection", came, f"one that makes tokens by themselves: {name} convolves, shifts or signals")
    if projection.heads != projection.kv_heads and not mechanism.traits.grouped:
        wanted = f"the {projection.heads} heads: {name} does not group queries"
        raise wrong("kv_heads", str(projection.kv_heads), wanted)
    if (spec.projection == "selective") != isinstance(projection, Selective):
        wanted = "Selective" if spec.projection == "selective" else "one of hidden states"
        raise wrong("projection", came, f"{wanted}, as {name} has it")
    if spec.shift is not None and type(projection) is not Grouped:
        raise wrong("projection", came, f"Grouped: the token shift of {name} sets what q, k and v read apart")
