"""SHA-RNN: LSTM layers, one of them with attention of a single head over what earlier layers remembered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.core.spec import Layer, Spec, parse_layers
from regard.core.state import State, count_new
from regard.kernels.packing import documents
from regard.mechanisms.sparse.window import SlidingWindow
from regard.networks.lm import LM, Config, text_sample

EPSILON = 1e-12
"""Under the roots of its norms, as in the authors' code."""


@dataclass(frozen=True)
class ShaState(State):
    """What a block keeps of the past.

    Args:
        hidden, cell: ``(b, 1, width)``, of the LSTM. memory: of the attention, empty in blocks without.
    """

    hidden: Tensor
    cell: Tensor
    memory: tuple[State, ...]


class SingleHead(nn.Module):
    """Attention of one head with one matrix: ``o = softmax(q kᵀ / √d) v`` over the last M tokens.

        q = σ(s_q) ⊙ LN(x W),   k = σ(s_k) ⊙ m,   v = (σ(f) ⊙ tanh(c)) ⊙ m,   [c, f] = σ(s_v) U

    m are the hidden states under a norm of their own, s learned vectors: keys and values need no matrix, and no token's
    position is known.

    Args:
        width: d. memory: M.
    """

    def __init__(self, width: int, memory: int) -> None:
        super().__init__()
        self.mechanism = SlidingWindow(memory)
        self.query, self.norm = nn.Linear(width, width), nn.LayerNorm(width, EPSILON)
        self.q_scale, self.k_scale, self.v_scale = (nn.Parameter(torch.zeros(width)) for _ in range(3))
        self.over = nn.Linear(width, 2 * width)

    def inputs(self, x: Tensor, remembered: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v ``(b, 1, n, d)`` of hidden states under two norms."""
        content, gate = self.over(torch.sigmoid(self.v_scale)).chunk(2)
        q = torch.sigmoid(self.q_scale) * self.norm(self.query(x))
        k, v = torch.sigmoid(self.k_scale) * remembered, torch.sigmoid(gate) * torch.tanh(content) * remembered
        return q[:, None], k[:, None], v[:, None]

    def cost(self, n: int, m: int | None = None, batch: int = 1, causal: bool = True, itemsize: int = 4) -> Cost:
        """FLOPs of the matrix products of ``forward``; bytes of weights and the mechanism's tensors, of the state."""
        width = self.query.in_features
        inner = self.mechanism.cost(Shape(n, m, batch, 1, 1, width, width, itemsize), Layout(causal=causal))
        weights = sum(parameter.numel() for parameter in self.parameters()) * itemsize
        flops = 2 * batch * n * width**2 + 4 * width**2 + inner.flops
        return Cost(flops, weights + inner.bytes, inner.state_bytes)


class Boom(nn.Module):
    """``y = Σ_c act(x W + b)_c``: expanded to several times the width, whose parts are summed; ``act(x) = x σ(1.702
    x)``.

    Args:
        width: of x. times: how many parts.
    """

    def __init__(self, width: int, times: int) -> None:
        super().__init__()
        self.up, self.times = nn.Linear(width, times * width), times

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        return (x * torch.sigmoid(1.702 * x)).unflatten(-1, (self.times, -1)).sum(-2)


class ShaBlock(nn.Module):
    """``h = LSTM(LN(x))``, with attention ``LN(h) + attend(LN(h), LN'(h))`` where there is some, then ``LN(h) +
    boom(LN'(h))``.

    Args:
        width: of the hidden states. attends: whether it has attention. memory: tokens that this sees. times: of `Boom`.
    """

    def __init__(self, width: int, attends: bool, memory: int, times: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.attention = SingleHead(width, memory) if attends else None
        self.boom = Boom(width, times)
        names = ["start", "main", "rest", *(["query", "memory"] if attends else [])]
        self.norms = nn.ModuleDict({name: nn.LayerNorm(width, EPSILON) for name in names})

    def forward(self, x: Tensor, layout: Layout = Layout(causal=True)) -> Tensor:
        """``(b, n, width)`` of ``x (b, n, width)``."""
        x = self.norms["start"](x)
        h = self.lstm(x)[0] if layout.key_mask is None and layout.segments is None else self.apart(x, layout)
        if self.attention is None:
            return self.rest(h)
        query = self.norms["query"](h)
        out = self.attention.mechanism(*self.attention.inputs(query, self.norms["memory"](h)), layout)
        return self.rest(query + out[:, 0])

    def apart(self, x: Tensor, layout: Layout) -> Tensor:
        """The LSTM over each sequence's or document's real tokens, zero for padding."""
        out = torch.zeros_like(x)
        for row, tokens in documents(layout, x.shape[0], x.shape[1], x.device):
            if tokens.numel():
                out = out.index_put((torch.tensor(row), tokens), self.lstm(x[row : row + 1, tokens])[0][0])
        return out

    def rest(self, h: Tensor) -> Tensor:
        """What follows attention."""
        return self.norms["main"](h) + self.boom(self.norms["rest"](h))

    def start(self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> ShaState:
        """The state before any token."""
        seen = torch.zeros(batch, dtype=torch.int64, device=device)
        nothing = torch.zeros(batch, 1, self.lstm.hidden_size, device=device, dtype=dtype)
        attention = self.attention
        memory = () if attention is None else (attention.mechanism.start(batch, device=device, dtype=dtype),)
        return ShaState(seen, nothing, nothing, memory)

    def extend(self, x: Tensor, state: ShaState, key_mask: Tensor | None = None) -> tuple[Tensor, ShaState]:
        """``(the new tokens' hidden states, the state after them)``."""
        _, seen = count_new(state, key_mask, x.shape[1], x.shape[0])
        h, hidden, cell = self.continued(self.norms["start"](x), state, key_mask)
        if self.attention is None:
            return self.rest(h), ShaState(seen, hidden, cell, ())
        query = self.norms["query"](h)
        given = self.attention.inputs(query, self.norms["memory"](h))
        out, memory = self.attention.mechanism.extend(*given, state.memory[0], key_mask)
        return self.rest(query + out[:, 0]), ShaState(seen, hidden, cell, (memory,))

    def continued(self, x: Tensor, state: ShaState, key_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The LSTM's outputs, and its state after the real tokens."""
        before = state.hidden.transpose(0, 1).contiguous(), state.cell.transpose(0, 1).contiguous()
        if key_mask is None:
            out, after = self.lstm(x, before)
            return out, after[0].transpose(0, 1), after[1].transpose(0, 1)
        order, count = torch.argsort(~key_mask, dim=1, stable=True), key_mask.sum(1)
        moved = x.take_along_dim(order[..., None], 1)
        packed = pack_padded_sequence(moved, count.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        out, after = self.lstm(packed, before)
        out = pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])[0]
        kept = [
            torch.where((count > 0)[:, None, None], new.transpose(0, 1), old)
            for new, old in zip(after, (state.hidden, state.cell), strict=True)
        ]
        return out.take_along_dim(order.argsort(1)[..., None], 1), kept[0], kept[1]


@published(
    "sha_rnn",
    family="linear",
    kind="network",
    row=157,
    title="Single Headed Attention RNN: Stop Thinking With Your Head",
    arxiv="1911.11423",
    year=2019,
    fidelity="authors' code",
    claim=(
        Claim(
            "loses at least 0.02 bits a byte less than the same LSTM without attention",
            cells="hybrids.sha_bits",
            holds="hybrids.attention_helps",
        ),
        Claim(
            "a token costs the same once the memory is full, and segments carry the state exactly",
            cells="hybrids.sha_carried",
            holds="hybrids.is_exact",
        ),
    ),
)
class ShaRNN(LM):
    """A causal language model of LSTM layers, the second last of which attends with a single head.

        logits = h_L Eᵀ + b

    `LM` with `ShaBlock` for every layer; embedding and logits share E. Dropout, which the paper leans on, is the
    training's.

    Args:
        config: the sizes; its layers are ``"softmax*L"``, its heads, inner width and rotary positions are not used.
        memory: tokens that attention sees. times: the width of the feed-forward layer, of the model's. attends: False
            for the LSTM alone. seed: of the weights, None for PyTorch's running generator.

    Raises:
        ValueError: layers of another mechanism, fewer than two; a memory or width below 1.

    Paper: Merity, arXiv 1911.11423.
    """

    def __init__(
        self, config: Config, memory: int = 5000, times: int = 4, attends: bool = True, seed: int | None = None
    ) -> None:
        if any(layer != Layer(Spec("softmax")) for layer in parse_layers(config.layers)):
            raise wrong("layers", repr(config.layers), "softmax in each layer, such as 'softmax*4'")
        if config.depth < 2:
            raise wrong("layers", repr(config.layers), "two layers at least: the second last attends")
        for name, number in (("memory", memory), ("times", times)):
            if number < 1:
                raise wrong(name, str(number), "at least 1")
        super().__init__(config, seed)
        last = config.depth - 2
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.blocks = nn.ModuleList(
                ShaBlock(config.width, attends and layer == last, memory, times) for layer in range(config.depth)
            )
        self.norm, self.bias = nn.Identity(), nn.Parameter(torch.zeros(config.vocabulary))

    def read(self, x: Tensor) -> Tensor:
        """Logits of the last hidden states."""
        return F.linear(x, self.embedding.weight, self.bias)

    def flops(self, n: int, batch: int = 1) -> int:
        """FLOPs of the matrix products of ``forward`` over ``n`` tokens, those inside of the LSTM included."""
        c, (block, *_) = self.config, self.stacked
        each = 2 * c.width * (8 * c.width + block.boom.times * c.width)
        rest = sum(attention.cost(n, batch=batch).flops for attention in self.attending)
        return batch * n * (each * c.depth + 2 * c.width * c.vocabulary) + rest

    def state_bytes(self, n: int, batch: int = 1) -> int:
        """Bytes of the decoding state after ``n`` tokens, by formula."""
        size = self.embedding.weight.element_size()
        memories = sum(a.cost(n, batch=batch, itemsize=size).state_bytes for a in self.attending)
        return 2 * batch * self.config.width * size * self.config.depth + memories

    @property
    def stacked(self) -> list[ShaBlock]:
        """The blocks, from the first."""
        return list(cast(Any, self.blocks))

    @property
    def attending(self) -> list[SingleHead]:
        """The attention of those that have some."""
        return [block.attention for block in self.stacked if block.attention is not None]

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        sizes = Config(29, 10, "softmax*3", heads=1)
        return [
            text_sample("3 layers, a memory of 7", cls(sizes, memory=7, seed=0)),
        ]
