"""Titans: attention to what is near beside a memory that learns while it reads, joined in three ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from regard.blocks.attention import AttentionState
from regard.blocks.block import Block
from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import did_you_mean, wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.core.mechanism import Mechanism, accumulate_dtype
from regard.core.spec import Layer, Spec, parse_layers
from regard.core.state import State, count_new
from regard.kernels.scan.online import recall
from regard.mechanisms.memory.base import UNIT, MemoryState
from regard.mechanisms.memory.titans import Titans
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.slots import slots_of
from regard.mechanisms.sparse.window import SlidingWindow
from regard.networks.lm import LM, Config, text_sample
from regard.projections.base import Grouped, merge_heads, split_heads
from regard.projections.rotary import Rotary


@dataclass(frozen=True)
class Sizes:
    """What a layer has besides the sizes of the network.

    Args:
        window: tokens of a segment where memory is context, and those that attention sees elsewhere. persistent: tokens
            that are learned and stand before every text. memory: the memory's mechanism, as a text.
    """

    window: int = 512
    persistent: int = 16
    memory: str = "titans"

    def __post_init__(self) -> None:
        if self.window < 1:
            raise wrong("window", str(self.window), "at least 1 token")
        if self.persistent < 0:
            raise wrong("persistent", str(self.persistent), "0 or more tokens")


class MemoryLayer(nn.Module):
    """The base of layers of attention and memory: what they have, and how a memory gates attention.

        join(y, m) = (norm(y) ⊙ σ(norm'(m))) W

    The norms are RMS with learned scales. Persistent tokens carry no positions.

    Args:
        config: sizes of the network. sizes: of the layer. index: of the layer.
    """

    def __init__(self, config: Config, sizes: Sizes, index: int) -> None:
        super().__init__()
        self.width, self.sizes = config.width, sizes
        self.projection = Grouped(config.sizes)
        d = config.sizes.head_dim
        self.rotary = None if config.rotary_base is None else Rotary(d - d % 2, config.rotary_base)
        self.memory = config.attention(sizes.memory, index)
        if not isinstance(self.memory.mechanism, Titans):
            raise wrong("memory", repr(sizes.memory), "titans, with any arguments")
        self.persistent = nn.Parameter(torch.randn(sizes.persistent, config.width) * 0.02)
        self.norms = nn.ModuleList(nn.RMSNorm(config.width, config.eps) for _ in range(2))
        self.join = nn.Linear(config.width, config.width, bias=False)
        self.mechanism: Mechanism = self.near()

    def near(self) -> Mechanism:
        """The attention."""
        return SlidingWindow(self.sizes.window, self.sizes.persistent)

    @property
    def causal(self) -> bool:
        """It is."""
        return True

    def turned(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotary positions."""
        return x if self.rotary is None else self.rotary(x, positions)

    def gated(self, y: Tensor, m: Tensor) -> Tensor:
        """``(b, n, width)``: attention's y, let through by the memory's m."""
        return self.join(self.norms[0](y) * torch.sigmoid(self.norms[1](m)))

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """``(b, n, width)`` of ``x (b, n, width)``, causal. Documents are not packed."""
        if layout.segments is not None:
            raise wrong("segments", "packed documents", "None: a memory and its persistent tokens are of one text")
        start = self.start(len(x), device=x.device, dtype=x.dtype)
        return self.extend(x, start, layout.key_mask)[0]

    def start(self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
        """The state before any token."""
        raise NotImplementedError

    def extend(self, x: Tensor, state: Any, key_mask: Tensor | None = None) -> tuple[Tensor, Any]:
        """``(y of the new tokens, the state after them)``; ``key_mask (b, n)`` marks the real ones."""
        raise NotImplementedError

    def attention_cost(self, n: int, batch: int, itemsize: int) -> Cost:
        """Of the mechanism over n tokens, bytes of its state among them."""
        raise NotImplementedError

    @property
    def matrices(self) -> int:
        """FLOPs of matrices for each token."""
        return self.projection.flops + 2 * self.join.weight.numel()

    def cost(self, n: int, m: int | None = None, batch: int = 1, causal: bool = True, itemsize: int = 4) -> Cost:
        """FLOPs of the matrix products of ``forward``; bytes of weights and the mechanisms' tensors, of the state."""
        every, p = n + len(self.persistent), self.projection
        memory, inner = self.memory.cost(every, None, batch, causal, itemsize), self.attention_cost(n, batch, itemsize)
        matrices = batch * (every * p.flops + 2 * n * self.join.weight.numel())
        weights = sum(parameter.numel() for parameter in self.parameters()) * itemsize
        return Cost(
            matrices + memory.flops + inner.flops, weights + inner.bytes, memory.state_bytes + inner.state_bytes
        )


@dataclass(frozen=True)
class BesideState(State):
    """What attention and memory keep beside one another.

    Args:
        cache: of the attention, behind the persistent tokens. memory: of the memory, which has read them.
    """

    cache: State
    memory: AttentionState


class MemoryAsGate(MemoryLayer):
    """Memory beside attention, which it gates (MAG): ``y = attention([p; x]),  m = M([p; x]),  o = join(y, m)``."""

    def start(
        self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> BesideState:
        memory = self.memory.start(batch, device=device, dtype=dtype)
        state = BesideState(memory.seen, self.mechanism.start(batch, device=device, dtype=dtype), memory)
        if not len(self.persistent):
            return state
        first = self.persistent.to(dtype).expand(batch, -1, -1)
        read, memory = self.memory.extend(first, memory)
        _, cache = self.attended(self.attends_to(first, read), state.cache, None, None)
        return BesideState(state.seen, cache, memory)

    def attends_to(self, x: Tensor, m: Tensor) -> Tensor:
        """What attention reads, of the layer's input and the memory's output."""
        return x

    def combined(self, y: Tensor, m: Tensor) -> Tensor:
        """The output of the two."""
        return self.gated(y, m)

    def attended(
        self, x: Tensor, cache: State, key_mask: Tensor | None, positions: Tensor | None
    ) -> tuple[Tensor, State]:
        """Attention to new tokens at ``positions``, None for persistent ones."""
        q, k, v = self.projection(x, x)
        if positions is not None:
            q, k = self.turned(q, positions), self.turned(k, positions)
        out, cache = self.mechanism.extend(q, k, v, cache, key_mask)
        return self.projection.merge(out), cache

    def extend(self, x: Tensor, state: BesideState, key_mask: Tensor | None = None) -> tuple[Tensor, BesideState]:
        positions, seen = count_new(state, key_mask, x.shape[1], x.shape[0])
        m, memory = self.memory.extend(x, state.memory, key_mask)
        y, cache = self.attended(self.attends_to(x, m), state.cache, key_mask, positions)
        return self.combined(y, m), BesideState(seen, cache, memory)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        if layout.segments is not None:
            raise wrong("segments", "packed documents", "None: a memory and its persistent tokens are of one text")
        count, real = len(self.persistent), layout.key_mask
        whole = torch.cat([self.persistent.to(x.dtype).expand(len(x), -1, -1), x], 1)
        real = None if real is None else nn.functional.pad(real, (count, 0), value=True)
        inner = Layout(causal=True, key_mask=real)
        m = self.memory(whole, inner)
        given = self.attends_to(whole, m)
        q, k, v = self.projection(given, given)
        positions = layout.positions(x.shape[1], x.device)
        q, k = (torch.cat([z[:, :, :count], self.turned(z[:, :, count:], positions)], 2) for z in (q, k))
        y = self.projection.merge(self.mechanism(q, k, v, inner))
        return self.combined(y[:, count:], m[:, count:])

    def attention_cost(self, n: int, batch: int, itemsize: int) -> Cost:
        p, every = self.projection, n + len(self.persistent)
        shape = Shape(every, None, batch, p.heads, p.kv_heads, p.head_dim, p.value_dim, itemsize)
        return self.mechanism.cost(shape, Layout(causal=True))


class MemoryAsLayer(MemoryAsGate):
    """Memory before attention, which reads what it gives (MAL): ``o = attention(M([p; x])) W``."""

    def __init__(self, config: Config, sizes: Sizes, index: int) -> None:
        super().__init__(config, sizes, index)
        self.norms = nn.ModuleList()

    def attends_to(self, x: Tensor, m: Tensor) -> Tensor:
        return m

    def combined(self, y: Tensor, m: Tensor) -> Tensor:
        return self.join(y)


@dataclass(frozen=True)
class ContextState(State):
    """What is left of the past where memory is context, of a size that does not grow.

    Args:
        memory: that learns. read: its weights as they were when the segment began, which are asked. keys, values: of
            what the segment's tokens were told, then of the tokens, ``(b, g, 2 C, d)``.
    """

    memory: AttentionState
    read: tuple[Tensor, ...]
    keys: Tensor
    values: Tensor


class MemoryAsContext(MemoryLayer):
    """Memory as context of attention inside of segments (MAC).

        h_t = M_{t−1}(q_t),   y_t = attention([p; h_t; S_t]),   o_t = join(y_t, M_t(y_t))

    S_t are the C tokens of segment t and q_t queries of them; M_{t−1} is the memory when the segment begins, and M_t
    takes in y_t, token by token. Token i of a segment sees the persistent tokens p, what was recalled for the tokens
    up to i, and these: nothing of later ones.
    """

    def __init__(self, config: Config, sizes: Sizes, index: int) -> None:
        super().__init__(config, sizes, index)
        if sizes.window % self.learner.chunk:
            raise wrong("window", str(sizes.window), f"whole chunks of the memory's {self.learner.chunk} tokens")
        p = self.projection
        self.ask = nn.Linear(p.width, p.heads * p.head_dim, bias=False)
        self.told = nn.Linear(p.heads * p.value_dim, p.width, bias=False)

    def near(self) -> Mechanism:
        return Softmax()

    @property
    def learner(self) -> Titans:
        """The memory's mechanism."""
        return cast(Titans, self.memory.mechanism)

    def start(
        self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> ContextState:
        p, size = self.projection, 2 * self.sizes.window
        memory = self.memory.start(batch, device=device, dtype=dtype)
        keys, values = (
            torch.zeros(batch, p.kv_heads, size, channels, device=device, dtype=dtype)
            for channels in (p.head_dim, p.value_dim)
        )
        return ContextState(memory.seen, memory, present(self.learner, memory.inner, batch, dtype), keys, values)

    def extend(self, x: Tensor, state: ContextState, key_mask: Tensor | None = None) -> tuple[Tensor, ContextState]:
        positions, seen = count_new(state, key_mask, x.shape[1], x.shape[0])
        real = torch.ones_like(positions, dtype=torch.bool) if key_mask is None else key_mask
        size = self.sizes.window
        slots = slots_of(size, positions, real, state.seen % size, False)
        tokens, places, there = (slots.filled(z[:, None]) for z in (x, positions, real))
        outs = []
        for chunk in range(tokens.shape[2]):
            some, here, filled = (z[:, 0, chunk] for z in (tokens, places, there))
            out, state = self.segment(some, here, filled, slots.course.opening[:, chunk], state)
            outs.append(out[:, None])
        return slots.taken(torch.stack(outs, 2))[:, 0], replace(state, seen=seen)

    def segment(
        self, x: Tensor, positions: Tensor, real: Tensor, opening: Tensor, state: ContextState
    ) -> tuple[Tensor, ContextState]:
        """Tokens of one segment of each sequence, which begins here where ``opening (b,)``."""
        size, p, memory = self.sizes.window, self.projection, state.memory
        now = present(self.learner, memory.inner, len(x), x.dtype)
        at = opening[:, None, None, None]
        read = tuple(torch.where(at, new, old) for new, old in zip(now, state.read, strict=True))
        asked = split_heads(self.ask(x), p.heads)
        recalled = self.told(merge_heads(recalled_by(self.learner, read, asked)))
        inside = positions % size
        told_k, told_v = self.written(recalled)
        q, k, v = p(x, x)
        q, k = self.turned(q, positions), self.turned(k, positions)
        keys = placed(placed(state.keys, told_k, inside, real), k, inside + size, real)
        values = placed(placed(state.values, told_v, inside, real), v, inside + size, real)
        y = p.merge(self.mechanism(q, *self.seen_by(keys, values), self.layout(inside)))
        m, memory = self.memory.extend(y, memory, real)
        return self.gated(y, m), ContextState(state.seen, memory, read, keys, values)

    def seen_by(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values with those of the persistent tokens before them."""
        k, v = (x.expand(len(keys), -1, -1, -1) for x in self.written(self.persistent))
        return torch.cat([k, keys], 2), torch.cat([v, values], 2)

    def written(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of ``x (b, n, width)``, or of the one ``x (n, width)``."""
        p = self.projection
        k, v = (y if y.dim() == 3 else y[None] for y in (p.k(x), p.v(x)))
        return split_heads(k, p.kv_heads), split_heads(v, p.kv_heads)

    def layout(self, inside: Tensor) -> Layout:
        """Which keys the tokens at these places ``(b, n)`` of their segments see."""
        upto = torch.arange(self.sizes.window, device=inside.device) <= inside[..., None]
        first = upto.new_ones(*inside.shape, len(self.persistent))
        return Layout(mask=torch.cat([first, upto, upto], 2)[:, None])

    def cost(self, n: int, m: int | None = None, batch: int = 1, causal: bool = True, itemsize: int = 4) -> Cost:
        """As of `MemoryLayer`; what a segment costs that the text does not fill is the same but for the memory."""
        p, own, size, count = self.projection, self.memory.projection, self.sizes.window, len(self.persistent)
        segments, d, e = -(-n // size), p.head_dim, p.value_dim
        places = size if segments > 1 else n
        parts = [self.learned(min(size, n - start), places, batch, itemsize) for start in range(0, n, size)]
        shape = Shape(places, count + 2 * size, batch, p.heads, p.kv_heads, d, e, itemsize)
        seen, layers = self.mechanism.cost(shape), [x.shape[1:].numel() for x in self.learner.initial]
        written = 2 * p.width * p.kv_heads * (d + e)
        recalled = 2 * p.width * p.heads * (d + e) + 2 * own.heads * sum(layers)
        each = batch * places * (self.matrices + recalled + written) + count * written + seen.flops
        weights = sum(parameter.numel() for parameter in self.parameters()) * itemsize
        held = 2 * size * p.kv_heads * (d + e) * itemsize + own.heads * sum(layers) * max(itemsize, 4)
        kept = self.learned(min(n, size), places, batch, itemsize).state_bytes + batch * held
        moved = weights + segments * seen.bytes + sum(part.bytes for part in parts)
        return Cost(segments * each + sum(part.flops for part in parts), moved, kept)

    def learned(self, n: int, places: int, batch: int, itemsize: int) -> Cost:
        """That of the memory over n tokens which stand in so many places."""
        p = self.memory.projection
        real, all_of = (
            self.learner.cost(Shape(x, None, batch, p.heads, p.kv_heads, p.head_dim, p.value_dim, itemsize)).flops
            for x in (n, places)
        )
        whole = self.memory.cost(places, None, batch, True, itemsize)
        return replace(whole, flops=whole.flops - all_of + real)


def present(learner: Titans, state: State, batch: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """A memory's weights in a state, ``(b, h, i, o)`` of each layer, at least float32."""
    sums = cast(MemoryState, state).sums
    return sums or learner.begun(batch, accumulate_dtype(dtype)).sums


def recalled_by(learner: Titans, weights: tuple[Tensor, ...], q: Tensor) -> Tensor:
    """``(b, h, n, e)``: what a memory with these weights answers to ``q (b, h, n, d)``; nothing is written."""
    wide = q.to(weights[0].dtype)
    wide = wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + UNIT)
    return recall(learner.rule, weights, wide).to(q.dtype)


def placed(into: Tensor, new: Tensor, place: Tensor, real: Tensor) -> Tensor:
    """``into (b, g, places, d)`` with ``new (b, g, n, d)`` at ``place (b, n)``, where they are real."""
    size = into.shape[2]
    index = torch.where(real, place, size)[:, None, :, None].expand(-1, new.shape[1], -1, new.shape[3])
    return nn.functional.pad(into, (0, 0, 0, 1)).scatter(2, index, new)[:, :, :size]


FORMS: Mapping[str, type[MemoryLayer]] = {
    "context": MemoryAsContext,
    "gate": MemoryAsGate,
    "layer": MemoryAsLayer,
}
"""How attention and memory are joined."""


@published(
    "titans_lm",
    family="linear",
    kind="network",
    title="Titans: Learning to Memorize at Test Time",
    arxiv="2501.00663",
    year=2024,
    aliases=("memory_as_context", "memory_as_gate", "memory_as_layer"),
    fidelity="hand values",
    claim=(
        Claim(
            "whatever the form, memory and persistent tokens take a constant state",
            cells="titans.states",
            holds="titans.do_not_grow",
        ),
        Claim(
            "finds what stood eight times the trained length ago, 20 points more often than a window alone",
            cells="titans.joined",
            holds="titans.finds",
        ),
    ),
)
class TitansLM(LM):
    """A causal language model of attention to what is near and a memory that learns from all it has read.

    The forms: memory as ``context`` of attention inside of segments (`MemoryAsContext`), as a ``gate`` beside attention
    in a window (`MemoryAsGate`), or as the ``layer`` before it (`MemoryAsLayer`). `LM` with such layers.

    Args:
        config: the sizes; its layers are ``"softmax*L"``. form: context, gate or layer. window: tokens of a segment, or
            of attention's window. persistent: learned tokens before every text, in each layer. memory: the mechanism's
            text, as ``"titans(chunk=64)"``. seed: of the weights, None for PyTorch's running generator.

    Raises:
        ValueError: layers of another mechanism, an unknown form, a window below 1 or not of whole chunks, or another
            memory.

    Paper: Behrouz et al., arXiv 2501.00663. Of what it leaves open: a token sees what was recalled for itself and the
    tokens before it in its segment, so that nothing of later ones reaches it; the non-linearity of the gate is a
    sigmoid of the normed memory. Values are learned at whatever length they have: as norms of 10 to 20 came, two layers
    of width 64 diverged at a rate of 3e-3 and not at 1e-3; a smaller ``step`` of the memory is the other way out.
    """

    def __init__(
        self,
        config: Config,
        form: str = "context",
        window: int = 512,
        persistent: int = 16,
        memory: str = "titans",
        seed: int | None = None,
    ) -> None:
        if any(layer != Layer(Spec("softmax")) for layer in parse_layers(config.layers)):
            raise wrong("layers", repr(config.layers), "softmax in each layer, such as 'softmax*4'")
        if form not in FORMS:
            raise wrong("form", repr(form), f"one of {', '.join(FORMS)}{did_you_mean(form, FORMS)}")
        self.made = FORMS[form], Sizes(window, persistent, memory)
        super().__init__(config, seed)

    def block(self, layer: Layer, index: int) -> Block:
        kind, sizes = self.made
        return self.around(kind(self.config, sizes, index))

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        config = Config(29, 12, "softmax*2", heads=2, kv_heads=1, inner=17)
        memory = "titans(chunk=3, hidden=2, step=0.1)"
        return [
            text_sample(f"{form}, 6 tokens near, 3 persistent", cls(config, form, 6, 3, memory, seed=0))
            for form in FORMS
        ]
