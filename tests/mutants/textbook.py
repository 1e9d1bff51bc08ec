"""Softmax attention as a textbook has it, obeying every law: what each mutant breaks in one way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regard.core.cost import Cost, Shape
from regard.core.layout import Layout
from regard.core.mechanism import Example, Mechanism, Traits, accumulate_dtype, repeat_heads
from regard.core.state import State, count_new


@dataclass(frozen=True)
class Seen(State):
    """Every key and value so far: ``k, v (batch, g, m, ·)``, ``keys (batch, m)`` which of them are real."""

    k: Tensor
    v: Tensor
    keys: Tensor


class Textbook(Mechanism):
    """Softmax attention, dense, in a few lines."""

    traits = Traits(masked=True, rows="one", sign="nonnegative", equivariant=True)

    def weights(self, q, k, layout=Layout(), **signals):
        self.check(q, k, None, layout, signals)
        k = repeat_heads(k, q.shape[1])
        dtype = accumulate_dtype(q.dtype)
        scores = q.to(dtype) @ k.to(dtype).transpose(-1, -2) * self.scale(q)
        allowed = self.visible(q.shape[2], k.shape[2], layout, q.device)
        return self.normalise(scores.masked_fill(~allowed, -torch.inf), allowed).to(q.dtype)

    def scale(self, q: Tensor) -> float:
        return q.shape[-1] ** -0.5

    def visible(self, n: int, m: int, layout: Layout, device) -> Tensor:
        return layout.allowed(n, m, device)

    def normalise(self, scores: Tensor, allowed: Tensor) -> Tensor:
        if scores.shape[-1] == 0:
            return scores
        top = scores.amax(-1, keepdim=True)
        powers = torch.exp(scores - top.masked_fill(top == -torch.inf, 0))
        return powers / powers.sum(-1, keepdim=True).clamp(min=torch.finfo(powers.dtype).tiny)

    def forward(self, q, k, v, layout=Layout(), **signals):
        self.check(q, k, v, layout, signals)
        return self.weights(q, k, layout, **signals) @ repeat_heads(v, q.shape[1])

    def start(self, batch, *, device="cpu", dtype=torch.float32):
        def empty(*sizes: int) -> Tensor:
            return torch.zeros(batch, *sizes, device=device, dtype=dtype)

        seen = torch.zeros(batch, dtype=torch.int64, device=device)
        return Seen(seen, empty(0, 0, 0), empty(0, 0, 0), empty(0).bool())

    def extend(self, q, k, v, state, key_mask=None, **signals):
        _, seen = count_new(state, key_mask, k.shape[2], k.shape[0])
        real = torch.ones_like(k[:, 0, :, 0], dtype=torch.bool) if key_mask is None else key_mask
        if state.k.shape[2]:
            k, v = torch.cat([state.k, k], 2), torch.cat([state.v, v], 2)
        real = torch.cat([state.keys, real], 1)
        out = self.forward(q, k, v, Layout(causal=True, key_mask=real), **signals)
        return out, Seen(seen, k, v, real)

    def cost(self, shape: Shape, layout: Layout = Layout()):
        pairs = shape.batch * shape.heads * shape.n * shape.keys
        cache = shape.batch * shape.groups * shape.keys * (shape.head_dim + shape.values) * shape.itemsize
        return Cost(2 * pairs * (shape.head_dim + shape.values), shape.io_bytes, cache)

    @classmethod
    def examples(cls):
        return [Example(cls.__name__, cls())]
