"""Hymba: attention heads and state-space heads side by side in every layer, behind tokens that are learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from regard.blocks.attention import AttentionState
from regard.blocks.block import GatedNetwork
from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.core.mechanism import Mechanism
from regard.core.spec import Layer, Spec, parse_layers
from regard.core.state import State, count_new
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.sparse.window import SlidingWindow
from regard.networks.lm import LM, Config, LMState, text_sample
from regard.projections.base import merge_heads, split_heads
from regard.projections.rotary import Rotary

Shared = tuple[Tensor, Tensor, State | None]
"""Keys, values, and the cache before them of the layer that they are of."""


@dataclass(frozen=True)
class HymbaState(State):
    """What a layer keeps of the past.

    Args:
        cache: of the attention, empty where keys and values are another layer's. space: of the state-space heads.
    """

    cache: tuple[State, ...]
    space: AttentionState


class ParallelHeads(nn.Module):
    """``y = (norm(attention) + norm'(state space)) / 2 · W`` of the same x.

    Attention is causal, whole or within a window beside the meta tokens, over keys of its own or over those of the
    layer before; the state space is Mamba's, of as many channels, its step, B and C normed. All of them read x through
    matrices that side by side are the one of the paper. The norms are RMS, whose scales weigh the two.

    Args:
        config: the sizes. window: tokens that attention sees, None for all. meta: how many first tokens it sees anyway.
        owns: whether it has keys and values of its own.
    """

    def __init__(self, config: Config, window: int | None, meta: int, owns: bool) -> None:
        super().__init__()
        self.heads, self.groups = config.heads, config.kv_heads or config.heads
        self.head_dim = config.width // config.heads if config.head_dim is None else config.head_dim
        inner = self.heads * self.head_dim
        self.q = nn.Linear(config.width, inner, bias=False)
        self.kv = nn.Linear(config.width, 2 * self.groups * self.head_dim, bias=False) if owns else None
        self.mechanism: Mechanism = Softmax() if window is None else SlidingWindow(window, meta)
        turned = self.head_dim - self.head_dim % 2
        self.rotary = None if config.rotary_base is None else Rotary(turned, config.rotary_base)
        sizes = Config(1, config.width, "mamba(normed=True)", self.heads, None, 16, self.head_dim)
        self.space = sizes.attention("mamba(normed=True)")
        self.space.projection.out = cast(Any, nn.Identity())
        self.norms = nn.ModuleList(nn.RMSNorm(inner, config.eps) for _ in range(2))
        self.out = nn.Linear(inner, config.width, bias=False)

    def turned(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotary positions."""
        return x if self.rotary is None else self.rotary(x, positions)

    def keys(self, x: Tensor, positions: Tensor, shared: Shared | None) -> tuple[Tensor, Tensor]:
        """k and v, its own or the other layer's."""
        if self.kv is None:
            assert shared is not None
            return shared[:2]
        k, v = (split_heads(part, self.groups) for part in self.kv(x).chunk(2, -1))
        return self.turned(k, positions), v

    def forward(self, x: Tensor, layout: Layout, shared: Shared | None) -> tuple[Tensor, Shared]:
        """``(y, what a layer behind may share)``."""
        positions = layout.positions(x.shape[1], x.device)
        k, v = self.keys(x, positions, shared)
        q = self.turned(split_heads(self.q(x), self.heads), positions)
        return self.mixed(self.mechanism(q, k, v, layout), self.space(x, layout)), (k, v, None)

    def mixed(self, attended: Tensor, space: Tensor) -> Tensor:
        """y of the heads' outputs ``(b, h, n, d)`` and the state space's ``(b, n, h d)``."""
        return self.out((self.norms[0](merge_heads(attended)) + self.norms[1](space)) / 2)

    def extend(
        self, x: Tensor, state: HymbaState, key_mask: Tensor | None, shared: Shared | None
    ) -> tuple[Tensor, HymbaState, Shared]:
        """``(y of the new tokens, the state after them, what a layer behind may share)``."""
        positions, seen = count_new(state, key_mask, x.shape[1], x.shape[0])
        k, v = self.keys(x, positions, shared)
        before = state.cache[0] if shared is None or self.kv is not None else shared[2]
        q = self.turned(split_heads(self.q(x), self.heads), positions)
        out, cache = self.mechanism.extend(q, k, v, before, key_mask)
        y, space = self.space.extend(x, state.space, key_mask)
        return self.mixed(out, y), HymbaState(seen, (cache,) if self.kv is not None else (), space), (k, v, before)

    def cost(self, n: int, m: int | None = None, batch: int = 1, causal: bool = True, itemsize: int = 4) -> Cost:
        """FLOPs of the matrix products of ``forward``; bytes of weights and the mechanisms' tensors, of the state."""
        shape = Shape(n, m, batch, self.heads, self.groups, self.head_dim, self.head_dim, itemsize)
        inner, space = self.mechanism.cost(shape, Layout(causal=causal)), self.space.cost(n, m, batch, causal, itemsize)
        own = [self.q.weight, self.out.weight, *([] if self.kv is None else [self.kv.weight])]
        width = self.out.out_features
        flops = (
            2 * batch * n * (sum(x.numel() for x in own) - width * self.out.in_features)
        )  # Mamba's own output matrix
        weights = sum(parameter.numel() for parameter in self.parameters()) * itemsize
        kept = space.state_bytes + (0 if self.kv is None else inner.state_bytes)
        return Cost(flops + inner.flops + space.flops, weights + inner.bytes, kept)


class HymbaBlock(nn.Module):
    """``h = x + heads(norm(x))``, then ``h + network(norm(h))``. See `ParallelHeads`.

    Args:
        config, window, meta, owns: as there.
    """

    def __init__(self, config: Config, window: int | None, meta: int, owns: bool) -> None:
        super().__init__()
        self.attention = ParallelHeads(config, window, meta, owns)
        self.network = GatedNetwork(config.width, config.inner_width)
        self.norms = nn.ModuleList(nn.RMSNorm(config.width, config.eps) for _ in range(2))

    def forward(self, x: Tensor, layout: Layout, shared: Shared | None) -> tuple[Tensor, Shared]:
        """``(b, n, width)`` of ``x (b, n, width)``, and what a layer behind may share."""
        y, own = self.attention(self.norms[0](x), layout, shared)
        x = x + y
        return x + self.network(self.norms[1](x)), own

    def start(
        self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> HymbaState:
        """The state before any token."""
        a = self.attention
        cache = () if a.kv is None else (a.mechanism.start(batch, device=device, dtype=dtype),)
        space = a.space.start(batch, device=device, dtype=dtype)
        return HymbaState(space.seen, cache, space)

    def extend(
        self, x: Tensor, state: HymbaState, key_mask: Tensor | None, shared: Shared | None
    ) -> tuple[Tensor, HymbaState, Shared]:
        """``(the new tokens' hidden states, the state after them, what a layer behind may share)``."""
        y, state, shared = self.attention.extend(self.norms[0](x), state, key_mask, shared)
        x = x + y
        return x + self.network(self.norms[1](x)), state, shared


@published(
    "hymba",
    family="linear",
    kind="network",
    row=164,
    title="Hymba: A Hybrid-head Architecture for Small Language Models",
    arxiv="2411.13676",
    year=2024,
    fidelity="hand values",
    claim=(
        Claim(
            "recalls at least 20 points more than state-space heads alone",
            cells="hybrids.hymba_recall",
            holds="hybrids.recalls_20_more",
        ),
        Claim(
            "its cache is at most a fifth of softmax attention's",
            cells="hybrids.hymba_cache",
            holds="hybrids.is_a_fifth",
        ),
    ),
)
class HymbaLM(LM):
    """A causal language model whose layers have attention heads and state-space heads in parallel.

    The first, the middle and the last layer attend to all tokens, the others to a window and to the meta tokens, which
    stand before every text and are learned. Of the layers between these, the second of each two reads the keys and
    values of the first. `LM` with `HymbaBlock` for every layer.

    Args:
        config: the sizes; its layers are ``"softmax*L"``. window: tokens that most layers see. meta: how many learned
            tokens. seed: of the weights, None for PyTorch's running generator.

    Raises:
        ValueError: layers of another mechanism; a window below 1; fewer than no meta tokens.

    Paper: Dong et al., arXiv 2411.13676.
    """

    def __init__(self, config: Config, window: int = 1024, meta: int = 128, seed: int | None = None) -> None:
        if any(layer != Layer(Spec("softmax")) for layer in parse_layers(config.layers)):
            raise wrong("layers", repr(config.layers), "softmax in each layer, such as 'softmax*4'")
        if window < 1:
            raise wrong("window", str(window), "at least 1 token")
        if meta < 0:
            raise wrong("meta", str(meta), "0 or more")
        super().__init__(config, seed)
        whole = {0, config.depth // 2, config.depth - 1}
        owns, before = [], False
        for layer in range(config.depth):
            shares = layer not in whole and before
            owns.append(not shares)
            before = layer not in whole and not shares
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.meta = nn.Parameter(torch.randn(meta, config.width) * config.width**-0.5)
            self.blocks = nn.ModuleList(
                HymbaBlock(config, None if layer in whole else window, meta, owns[layer])
                for layer in range(config.depth)
            )

    def forward(self, ids: Tensor, key_mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """Logits of each next token; ``key_mask (b, n)`` False marks padding. Documents are not packed."""
        if segments is not None:
            raise wrong("segments", "packed documents", "None: the meta tokens stand before a whole text")
        count, batch = len(self.meta), ids.shape[0]
        x = torch.cat([self.meta.expand(batch, -1, -1), self.embed(ids)], 1)
        if key_mask is not None:
            key_mask = nn.functional.pad(key_mask, (count, 0), value=True)
        layout, shared = Layout(causal=True, key_mask=key_mask), None
        for block in self.layers:
            x, shared = cast(Any, block)(x, layout, shared)
        return self.read(x[:, count:])

    def start(self, batch: int) -> LMState:
        """The state behind the meta tokens, on the model's device and in its dtype."""
        like, layers = self.embedding.weight, []
        x, shared = self.meta.expand(batch, -1, -1), None
        for block in self.layers:
            state = block.start(batch, device=like.device, dtype=like.dtype)
            x, state, shared = cast(Any, block).extend(x, state, None, shared)
            layers.append(state)
        return LMState(torch.zeros(batch, dtype=torch.int64, device=like.device), tuple(layers))

    def extend(self, ids: Tensor, state: LMState, key_mask: Tensor | None = None) -> tuple[Tensor, LMState]:
        """``(logits of the new tokens, the state after them)``; ``key_mask (b, n)`` marks the real ones."""
        _, seen = count_new(state, key_mask, ids.shape[1], ids.shape[0])
        x, layers, shared = self.embed(ids), [], None
        for block, layer in zip(self.layers, state.layers, strict=True):
            x, after, shared = cast(Any, block).extend(x, layer, key_mask, shared)
            layers.append(after)
        return self.read(x), LMState(seen, tuple(layers))

    def flops(self, n: int, batch: int = 1) -> int:
        """FLOPs of the matrix products of ``forward`` over ``n`` tokens and the meta tokens, by formula."""
        c, every = self.config, n + len(self.meta)
        rest = batch * (6 * c.width * c.inner_width * c.depth * every + 2 * c.width * c.vocabulary * n)
        return rest + sum(block.attention.cost(every, batch=batch).flops for block in self.layers)

    def state_bytes(self, n: int, batch: int = 1) -> int:
        """Bytes of the decoding state after ``n`` tokens, by formula."""
        return super().state_bytes(n + len(self.meta), batch)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        config = Config(29, 12, "softmax*7", heads=2, kv_heads=1, inner=17)
        sample = text_sample("7 layers, a window of 5, 3 meta tokens", cls(config, window=5, meta=3, seed=0))
        return [replace(sample, given={**sample.given, "counted": False})]  # PyTorch does not count its scans
