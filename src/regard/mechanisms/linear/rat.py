"""Gated averages inside of chunks, and softmax attention over the ends of chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, LayerSpec, Mechanism, Signal, Traits, accumulate_dtype, repeat_heads
from regard.core.reduction import Partial
from regard.core.state import State, count_new
from regard.kernels import dense
from regard.mechanisms.linear.base import aligned, unaligned
from regard.mechanisms.slots import Slots, slots_of
from regard.projections.rotary import Rotary


@dataclass(frozen=True)
class ChunkEnds(State):
    """What is left of the past: one key and value for each chunk, and the averages of the chunk that goes on.

    Args:
        k, v: ``(b, h, chunks, d)`` and ``(…, e)``, the keys turned; four axes of size zero before the first token.
        key_mask: ``(b, chunks)`` bool, False where another sequence's chunk ended.
        running: ``(b, h, 1, d + e)``, k̃ and ṽ of the last token, in the precision of sums.
    """

    k: Tensor
    v: Tensor
    key_mask: Tensor
    running: Tensor


@published(
    "rat",
    family="linear",
    row=287,
    title="RAT: Bridging RNN Efficiency and Attention Accuracy in Language Modeling",
    arxiv="2507.04416",
    year=2025,
    fidelity="authors' code",
    claim=(
        Claim(
            "with chunks of one token and gates that are open it is softmax attention",
            cells="rat.single",
            holds="common.within(most=1e-9)",
        ),
        Claim("keeps one key and value for each chunk", cells="rat.entries", holds="rat.one_a_chunk"),
        Claim(
            "a small model's loss is within 3% of softmax attention with chunks of 8",
            cells="small_lm.beside(layers='rat(chunk=8)*2')",
            holds="small_lm.loss_at_most(ratio=1.03)",
        ),
        Claim("prefill is faster than softmax attention at 16,384 tokens", cells="rat.speed", holds="rat.is_faster"),
    ),
)
class RAT(Mechanism):
    """Softmax attention over one gated average of keys and values for each chunk, that of the own chunk still running.

        k̃_t = g_t ⊙ k̃_{t−1} + (1 − g_t) ⊙ k_t,   ṽ_t likewise,   both from zero at the start of a chunk of C
        o_t = softmax over {ends of earlier chunks, t} of (q_t · k̃ / √d),  times ṽ

    g is the signal ``gate``, of each channel, the same for keys and values; C is ``chunk``. Queries and k̃ are turned by
    the number of their chunk (RoPE). As channels are averaged apart, the output is linear in v but not one matrix times
    v. The host is the paper's: queries and keys that the heads of a group share, a sigmoid gate of the output.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, d)`` -> ``(b, h, n, d)``; g divides h; causal.
    Cost: 4 n² d / C FLOPs a head. State: an entry for each chunk, and one more.

    Args:
        chunk: C. base: of the rotary positions, None for none.

    Raises:
        ValueError: no token in a chunk; values that are not as long as keys.

    Paper: Wei et al., arXiv 2507.04416.
    """

    traits = Traits(bidirectional=False, linear=False)
    layer = LayerSpec(rotary=False, projection="multi_value", gate="sigmoid")

    def __init__(self, chunk: int = 16, base: float | None = 10_000.0) -> None:
        super().__init__()
        if chunk < 1:
            raise wrong("chunk", str(chunk), "at least 1 token")
        self.chunk, self.base = chunk, base
        start = (0.5, 1 - 1 / chunk) if chunk > 2 else 0.5
        self.signals = {"gate": Signal("how much of the average before stays", dim="key", low=0, high=1, start=start)}

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        if v is not None and v.shape[3] != k.shape[3]:
            raise wrong("v", f"value_dim {v.shape[3]}", f"the head_dim of k, {k.shape[3]}: one gate averages both")
        wanted = (q.shape[0], q.shape[1], k.shape[2], k.shape[3])
        if tuple(signals["gate"].shape) != wanted:
            raise wrong("gate", f"shape {tuple(signals['gate'].shape)}", str(wanted))

    def turned(self, x: Tensor, chunks: Tensor) -> Tensor:
        """``x (b, h, t, d)`` by ``chunks (b, t)``."""
        even = x.shape[3] - x.shape[3] % 2
        return x if self.base is None or not even else Rotary(even, self.base)(x, chunks)

    def define(
        self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(causal=True), **signals: Tensor
    ) -> Tensor:
        self.check(q, k, v, layout, signals)
        (batch, heads, n, d), m = q.shape, k.shape[2]
        gate, q = signals["gate"], aligned(q, m)
        both = torch.cat([repeat_heads(k, heads), repeat_heads(v, heads)], 3)
        positions = layout.positions(m, q.device).expand(batch, -1)
        real = torch.ones_like(positions, dtype=torch.bool) if layout.key_mask is None else layout.key_mask
        state, states = torch.zeros_like(both[:, :, 0]) if m else both[:, :, :0], []
        for t in range(m):
            g = torch.cat([gate[:, :, t], gate[:, :, t]], 2)
            before = state.masked_fill((positions[:, t] % self.chunk == 0)[:, None, None], 0)
            state = torch.where(real[:, t, None, None], g * before + (1 - g) * both[:, :, t], state)
            states.append(state)
        averages = torch.stack(states, 2) if states else both
        number = positions // self.chunk
        left, right = self.turned(q, number), self.turned(averages[..., :d], number)
        ends = positions % self.chunk == self.chunk - 1
        earlier = number[:, :, None] > number[:, None, :]
        itself = torch.eye(m, dtype=torch.bool, device=q.device)
        seen = Layout(True, layout.key_mask, layout.segments).allowed(m, m, q.device)[:, 0]
        seen = seen & ((earlier & ends[:, None]) | itself)
        scores = (left @ right.mT * d**-0.5).masked_fill(~seen[:, None], torch.finfo(q.dtype).min)
        weights = scores.softmax(-1).masked_fill(~seen[:, None], 0) if m else scores
        return unaligned(weights @ averages[..., d:], n)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(causal=True), **signals: Tensor
    ) -> Tensor:
        self.check(q, k, v, layout, signals)
        (batch, _, n, _), m = q.shape, k.shape[2]
        positions = layout.positions(m, q.device).expand(batch, -1)
        real = torch.ones_like(positions, dtype=torch.bool) if layout.key_mask is None else layout.key_mask
        offset = torch.zeros(batch, dtype=torch.int64, device=q.device)
        slots = slots_of(self.chunk, positions, real, offset, layout.segments is not None)
        q = aligned(q, m)
        averages = self.averaged(slots, q, k, v, signals, None)
        out, *_ = self.attended(
            slots, q, averages, positions, None, layout.key_mask is None and layout.segments is None
        )
        return unaligned(slots.taken(out), n).to(q.dtype)

    def averaged(
        self, slots: Slots, q: Tensor, k: Tensor, v: Tensor, signals: Mapping[str, Tensor], before: Tensor | None
    ) -> Tensor:
        """k̃ and ṽ ``(b, h, chunks, C, 2 d)``, the first chunk going on from ``before (b, h, 1, 2 d)`` where it does."""
        wide, heads = accumulate_dtype(q.dtype), q.shape[1]
        written = 1 - self.signals["gate"].guarded(signals["gate"].to(wide))
        both = torch.cat([repeat_heads(k, heads), repeat_heads(v, heads)], 3).to(wide)
        new, kept = (slots.filled(x) for x in (both * written.repeat(1, 1, 1, 2), written))
        kept = (1 - kept).repeat(1, 1, 1, 1, 2)  # what is no token keeps all and writes nothing
        state = torch.zeros_like(new[:, :, :, 0])
        if before is not None:
            goes_on = ~slots.course.opening[:, :1]
            first = torch.where(goes_on[:, None, :, None], before, 0)
            state = torch.cat([first, state[:, :, 1:]], 2)
        states = []
        for t in range(slots.size):
            state = kept[:, :, :, t] * state + new[:, :, :, t]
            states.append(state)
        return torch.stack(states, 3)

    def attended(
        self, slots: Slots, q: Tensor, averages: Tensor, positions: Tensor, past: ChunkEnds | None, plain: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The outputs ``(b, h, chunks, C, d)``, and this call's ends of chunks, keys turned and values."""
        d, dtype, course = q.shape[3], q.dtype, slots.course
        _, heads, count, size = averages.shape[:4]
        number = slots.filled((positions // self.chunk)[:, None]).flatten(1, 3)  # (b, slots)
        queries = self.turned(slots.filled(q).flatten(2, 3), number)
        keys = self.turned(averages[..., :d].to(dtype).flatten(2, 3), number)
        values = averages[..., d:].to(dtype)
        own = (accumulate(queries) * accumulate(keys)).sum(-1) * d**-0.5
        keys, queries = (x.unflatten(2, (count, size)) for x in (keys, queries))
        ends = keys[:, :, :, -1], values[:, :, :, -1]
        rows = queries.transpose(2, 3).flatten(1, 2)  # (b, h C, chunks, d): a group of queries for each head
        if plain and past is None:
            earlier = dense.attend_lse(rows[:, :, 1:], ends[0][:, :, :-1], ends[1][:, :, :-1], Layout(causal=True))
            earlier = Partial(
                torch.cat([torch.zeros_like(rows[:, :, :1]), earlier.out], 2),
                torch.cat([torch.full_like(rows[:, :, :1, 0], -torch.inf, dtype=earlier.lse.dtype), earlier.lse], 2),
            )
        else:
            seen = torch.ones(count, count, dtype=torch.bool, device=q.device).tril(-1) & course.closing[:, None]
            if course.fresh is not None:
                document = course.fresh.cumsum(1)
                seen = seen & (document[:, :, None] == document[:, None])
            all_keys, all_values = ends
            if past is not None and past.k.shape[1]:
                all_keys, all_values = torch.cat([past.k, ends[0]], 2), torch.cat([past.v, ends[1]], 2)
                old = past.key_mask[:, None].expand(-1, count, -1)
                seen = torch.cat([old, seen], 2)
            earlier = dense.attend_lse(rows, all_keys, all_values, Layout(mask=seen[:, None]))
        lse = earlier.lse.unflatten(1, (heads, size)).transpose(2, 3)
        out = earlier.out.unflatten(1, (heads, size)).transpose(2, 3)
        merged = Partial(out, lse).merge(Partial(values, own.unflatten(2, (count, size)).to(lse.dtype)))
        return merged.out, *ends

    def start(self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> ChunkEnds:
        """Nothing seen."""

        def empty(*sizes: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(batch, *sizes, device=device, dtype=dtype)

        seen, nothing = torch.zeros(batch, dtype=torch.int64, device=device), empty(0, 0, 0, dtype=dtype)
        return ChunkEnds(
            seen, nothing, nothing, empty(0, dtype=torch.bool), empty(0, 0, 0, dtype=accumulate_dtype(dtype))
        )

    def extend(
        self, q: Tensor, k: Tensor, v: Tensor, state: Any, key_mask: Tensor | None = None, **signals: Tensor
    ) -> tuple[Tensor, ChunkEnds]:
        """Averages on; a chunk that ends leaves one key and value."""
        self.check(q, k, v, Layout(causal=True), signals)
        positions, seen = count_new(state, key_mask, k.shape[2], k.shape[0])
        real = torch.ones_like(positions, dtype=torch.bool) if key_mask is None else key_mask
        slots = slots_of(self.chunk, positions, real, state.seen % self.chunk, False)
        started = state.running.shape[1] > 0
        averages = self.averaged(slots, q, k, v, signals, state.running if started else None)
        out, keys, values = self.attended(slots, q, averages, positions, state, False)
        course, last = slots.course, averages[:, :, :, -1]
        ended = course.closing.any(0)
        keys, values, closed = keys[:, :, ended], values[:, :, ended], course.closing[:, ended]
        if started:
            keys, values = torch.cat([state.k, keys], 2), torch.cat([state.v, values], 2)
            closed = torch.cat([state.key_mask, closed], 1)
        place = (course.active.cumsum(1) * course.active).argmax(1)  # the last chunk that has a token
        running = last.take_along_dim(place[:, None, None, None], 2)
        return slots.taken(out).to(q.dtype), ChunkEnds(seen, keys, values, closed, running)

    def cost(self, shape: Shape, layout: Layout = Layout(causal=True)) -> Cost:
        heads, d, m = shape.batch * shape.heads, shape.head_dim, shape.keys
        chunks, ended = -(-m // self.chunk), m // self.chunk
        size = min(self.chunk, m)
        flops = 4 * size * max(chunks - 1, 0) ** 2 * d
        state = 2 * d * (ended * shape.itemsize + max(shape.itemsize, 4))
        return Cost(heads * flops, shape.io_bytes, heads * state)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("chunks of 5", cls(5), value_dim=5, longest=127),
            Example("grouped, no positions", cls(3, None), heads=4, kv_heads=2, value_dim=5, longest=127),
        ]


def accumulate(x: Tensor) -> Tensor:
    """In the precision of sums."""
    return x.to(accumulate_dtype(x.dtype))
