"""Chunked attention with a memory of the latest chunks: vectors of a queue, each gated into the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regard.blocks.block import Block
from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.core.mechanism import Mechanism
from regard.core.spec import Layer, Spec, parse_layers
from regard.core.state import State, count_new
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.sparse.pattern import PatternAttention
from regard.networks.lm import LM, Config, text_sample
from regard.patterns import Blocks
from regard.projections.base import Grouped, split_heads
from regard.projections.rotary import Rotary


@dataclass(frozen=True)
class QueueState(State):
    """What a layer keeps of the past.

    Args:
        caches: of the attention inside of chunks, and of that to all tokens where there is one. memory: ``(b, m,
            width)``, the queue, oldest first. partial: ``(b, width)``, the sum of the tokens of the unfinished chunk.
    """

    caches: tuple[State, ...]
    memory: Tensor
    partial: Tensor


class QueueAttention(nn.Module):
    """Attention inside of a chunk, to a queue of m vectors of the chunks before, and to all earlier tokens.

        y = (local + memory + global) W^O
        at the end of a chunk:  g = σ([h; old] W + b),  new = g ⊙ h + (1 − g) ⊙ old;  the oldest vector leaves

    h is the mean of the chunk's hidden states, old the newest vector. The three share queries; keys and values of the
    queue are those of its vectors, without positions. The first m vectors are learned.

    Args:
        config: the sizes. chunk: tokens of a chunk. memory: m, 0 for none. whole: whether there is global attention.
    """

    def __init__(self, config: Config, chunk: int, memory: int, whole: bool) -> None:
        super().__init__()
        d = config.sizes.head_dim
        self.chunk, self.count = chunk, memory
        self.projection = Grouped(config.sizes)
        self.rotary = None if config.rotary_base is None else Rotary(d - d % 2, config.rotary_base)
        local: list[Mechanism] = [PatternAttention(Blocks(chunk))]
        self.mechanisms = nn.ModuleList([*local, Softmax()] if whole else local)
        self.recall = Softmax() if memory else None
        self.first = nn.Parameter(torch.randn(memory, config.width) * 0.02) if memory else None
        self.write = nn.Linear(2 * config.width, config.width) if memory else None

    @property
    def causal(self) -> bool:
        """It is."""
        return True

    def start(self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32):
        """The state before any token."""
        caches = tuple(each.start(batch, device=device, dtype=dtype) for each in self.each)
        width = self.projection.width
        first = torch.zeros(0, width, device=device, dtype=dtype) if self.first is None else self.first.to(dtype)
        partial = torch.zeros(batch, width, device=device, dtype=dtype)
        return QueueState(caches[0].seen, caches, first.expand(batch, -1, -1), partial)

    @property
    def each(self) -> list[Any]:
        """The mechanisms over tokens."""
        return list(self.mechanisms)

    def heads(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of tokens; queries without positions are those of the queue, `asked`."""
        q, k, v = self.projection(x, x)
        return (q, k, v) if self.rotary is None else (self.rotary(q, positions), self.rotary(k, positions), v)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """``(b, n, width)`` of ``x (b, n, width)``, causal. Documents are not packed."""
        if layout.segments is not None:
            raise wrong("segments", "packed documents", "None: a queue is of one text")
        positions = layout.positions(x.shape[1], x.device).expand(len(x), -1)
        q, k, v = self.heads(x, positions)
        inner = Layout(causal=True, key_mask=layout.key_mask)
        outs = [mechanism(q, k, v, inner) for mechanism in self.each]
        start = self.start(len(x), device=x.device, dtype=x.dtype)
        told, _ = self.told(x, positions, layout.key_mask, start)
        return self.projection.merge(sum(outs, told))

    def extend(self, x: Tensor, state: QueueState, key_mask: Tensor | None = None) -> tuple[Tensor, QueueState]:
        """``(y of the new tokens, the state after them)``; ``key_mask (b, n)`` marks the real ones."""
        positions, seen = count_new(state, key_mask, x.shape[1], x.shape[0])
        q, k, v = self.heads(x, positions)
        pairs = [
            mechanism.extend(q, k, v, cache, key_mask) for mechanism, cache in zip(self.each, state.caches, strict=True)
        ]
        told, (memory, partial) = self.told(x, positions, key_mask, state)
        y = self.projection.merge(sum((out for out, _ in pairs), told))
        return y, QueueState(seen, tuple(cache for _, cache in pairs), memory, partial)

    def told(
        self, x: Tensor, positions: Tensor, key_mask: Tensor | None, state: QueueState
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """What the queue gives each token ``(b, h, n, e)``, the queue after them and the unfinished sum."""
        p = self.projection
        if self.recall is None:
            return x.new_zeros(len(x), p.heads, x.shape[1], p.value_dim), (state.memory, state.partial)
        real = torch.ones_like(positions, dtype=torch.bool) if key_mask is None else key_mask
        before = torch.div(state.seen, self.chunk, rounding_mode="floor")
        chunk = (torch.div(positions, self.chunk, rounding_mode="floor") - before[:, None]).clamp(min=0)
        done = torch.div(state.seen + real.sum(1), self.chunk, rounding_mode="floor") - before
        count = int(done.max()) if len(done) else 0
        sums = x.new_zeros(len(x), count + 1, p.width)
        sums = sums.scatter_add(1, chunk[..., None].expand_as(x), x * real[..., None])
        sums = torch.cat([sums[:, :1] + state.partial[:, None], sums[:, 1:]], 1)
        queue = self.queued(sums[:, :count] / self.chunk, state.memory)
        places = torch.arange(queue.shape[1], device=x.device)
        seen = (places >= chunk[..., None]) & (places < chunk[..., None] + self.count)
        k, v = split_heads(p.k(queue), p.kv_heads), split_heads(p.v(queue), p.kv_heads)
        out = self.recall(split_heads(p.q(x), p.heads), k, v, Layout(mask=seen[:, None]))
        kept = done[:, None] + torch.arange(self.count, device=x.device)
        memory = queue.take_along_dim(kept[..., None], 1)
        return out, (memory, sums.take_along_dim(done[:, None, None], 1)[:, 0])

    def queued(self, means: Tensor, memory: Tensor) -> Tensor:
        """``(b, m + chunks, width)``: the queue with what the chunks of these means write behind it."""
        assert self.write is not None
        found, old = [memory], memory[:, -1]
        for mean in means.unbind(1):
            gate = torch.sigmoid(self.write(torch.cat([mean, old], -1)))
            old = gate * mean + (1 - gate) * old
            found.append(old[:, None])
        return torch.cat(found, 1)

    def cost(self, n: int, m: int | None = None, batch: int = 1, causal: bool = True, itemsize: int = 4) -> Cost:
        """FLOPs of the matrix products of ``forward``; bytes of weights and the mechanisms' tensors, of the state."""
        p, chunks = self.projection, n // self.chunk
        shape = Shape(n, m, batch, p.heads, p.kv_heads, p.head_dim, p.value_dim, itemsize)
        parts = [mechanism.cost(shape, Layout(causal=True)) for mechanism in self.each]
        flops = batch * n * p.flops + sum(part.flops for part in parts)
        state = sum(part.state_bytes for part in parts) + batch * (self.count + 1) * p.width * itemsize
        moved = sum(parameter.numel() for parameter in self.parameters()) * itemsize + sum(part.bytes for part in parts)
        if self.recall is not None:
            seen = Shape(n, self.count + chunks, batch, p.heads, p.kv_heads, p.head_dim, p.value_dim, itemsize)
            part = self.recall.cost(seen)
            keys = 2 * p.width * p.kv_heads * (p.head_dim + p.value_dim) * (self.count + chunks)
            asked = 2 * n * p.width * p.heads * p.head_dim
            flops += part.flops + batch * (keys + asked + 4 * chunks * p.width**2)
            moved += part.bytes
        return Cost(flops, moved, state)


@published(
    "fifo_memory",
    family="linear",
    kind="network",
    title="Recurrent Memory-Augmented Transformers with Chunked Attention for Long-Context Language Modeling",
    arxiv="2507.00453",
    year=2025,
    aliases=("recurrent_memory_chunked",),
    fidelity="abstract only",
    claim=(
        Claim(
            "without global attention its state holds m vectors and a chunk, however long the text",
            cells="fifo.states",
            holds="fifo.does_not_grow",
        ),
        Claim(
            "recalls a key of four chunks ago, which it cannot without the memory",
            cells="fifo.planted",
            holds="fifo.recalls",
        ),
    ),
)
class FifoLM(LM):
    """A causal language model of attention inside of chunks, to a queue of gated vectors, and to all tokens.

    `LM` with `QueueAttention` in each layer.

    Args:
        config: the sizes; its layers are ``"softmax*L"``. chunk: tokens of a chunk. memory: vectors of the queue, 0 for
            none. whole: whether there is attention to all tokens too. seed: of the weights, None for PyTorch's running
            generator.

    Raises:
        ValueError: layers of another mechanism; a chunk below 1; fewer than no vectors.

    Paper: Kashyap, arXiv 2507.00453, of which only the abstract was at hand: what is written is the mean of a chunk.
    """

    def __init__(
        self, config: Config, chunk: int = 128, memory: int = 16, whole: bool = True, seed: int | None = None
    ) -> None:
        if any(layer != Layer(Spec("softmax")) for layer in parse_layers(config.layers)):
            raise wrong("layers", repr(config.layers), "softmax in each layer, such as 'softmax*4'")
        if chunk < 1:
            raise wrong("chunk", str(chunk), "at least 1 token")
        if memory < 0:
            raise wrong("memory", str(memory), "0 or more vectors")
        self.sizes = chunk, memory, whole
        super().__init__(config, seed)

    def block(self, layer: Layer, index: int) -> Block:
        return self.around(QueueAttention(self.config, *self.sizes))

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        config = Config(29, 12, "softmax*2", heads=2, kv_heads=1, inner=17)
        return [
            text_sample("chunks of 5, 3 vectors", cls(config, 5, 3, seed=0)),
            text_sample("no global attention", cls(config, 4, 2, False, seed=0)),
        ]
