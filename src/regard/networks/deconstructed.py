"""Language models whose layers lack one of the things that make attention: mixing, form, dependence on the sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.blocks.attention import Attention, AttentionState
from regard.blocks.block import Block, GatedNetwork
from regard.core.atlas import Claim, published
from regard.core.build import build
from regard.core.cost import Cost
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.core.spec import Layer, parse_layers
from regard.core.state import State, count_new
from regard.networks.lm import LM, Config, LMState, text_sample
from regard.projections.base import Grouped, split_heads

FIXED = ("random_qk", "fixed_qk")
VARIANTS = ("no_mixing", "self_gated", "static_qk", *FIXED)


class NoMixing(GatedNetwork):
    """A gated network in the place of attention, with as many parameters: each token alone."""

    def __init__(self, width: int) -> None:
        super().__init__(width, round(4 * width / 3))

    def forward(self, x: Tensor, layout: Layout = Layout()) -> Tensor:
        return super().forward(x)

    def start(self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> State:
        return State(torch.zeros(batch, dtype=torch.int64, device=device))

    def extend(self, x: Tensor, state: State, key_mask: Tensor | None = None) -> tuple[Tensor, State]:
        return self(x), State(count_new(state, key_mask, x.shape[1], x.shape[0])[1])

    def cost(self, n: int, m: int | None = None, batch: int = 1, causal: bool = True, itemsize: int = 4) -> Cost:
        weights = sum(parameter.numel() for parameter in self.parameters())
        return Cost(2 * batch * n * weights, weights * itemsize, 0)


class SelfGated(Grouped):
    """Each token scores itself, whoever asks: ``s_j = silu(x_j W^Q) · x_j W^K / √d``, as keys of one channel.

    The queries are ones, so that softmax attention with a scale of one gives ``Σ_{j≤i} e^{s_j} v_j / Σ_{j≤i} e^{s_j}``.
    """

    def __init__(self, width: int, heads: int, head_dim: int, value_dim: int) -> None:
        super().__init__(Sizes(width, heads, heads, head_dim, value_dim))
        self.sizes = replace(self.sizes, head_dim=1)

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k = split_heads(self.q(context), self.heads), split_heads(self.k(context), self.heads)
        scores = (F.silu(q) * k).sum(-1, keepdim=True) * q.shape[-1] ** -0.5
        ones = scores.new_ones(x.shape[0], self.heads, x.shape[1], 1)
        return ones, scores, split_heads(self.v(context), self.heads)

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


class Elsewhere(Grouped):
    """Queries and keys of the first half of the channels, ``s``, and values of the second, the hidden states ``h``."""

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (asking, _), (source, hidden) = x.chunk(2, -1), context.chunk(2, -1)
        return (
            split_heads(self.q(asking), self.heads),
            split_heads(self.k(source), self.kv_heads),
            split_heads(self.v(hidden), self.kv_heads),
        )


class ElsewhereBlock(Block):
    """A block whose queries and keys come from hidden states given to it, in the place of its own."""

    def forward(self, x: Tensor, layout: Layout = Layout(), source: Tensor | None = None) -> Tensor:  # pyright: ignore
        return self.rest(x + self.attention(self.joined(x, source), layout), None, Layout())

    def extend(  # pyright: ignore
        self, x: Tensor, state: AttentionState, key_mask: Tensor | None = None, source: Tensor | None = None
    ) -> tuple[Tensor, AttentionState]:
        out, state = self.attention.extend(self.joined(x, source), state, key_mask)
        return self.rest(x + out, None, Layout()), state

    def joined(self, x: Tensor, source: Tensor | None) -> Tensor:
        """What `Elsewhere` takes; without a source it is x itself, which is standard attention."""
        norm = self.norms[0]
        return torch.cat([norm(x if source is None else source), norm(x)], dim=-1)


@dataclass(frozen=True)
class Tables:
    """For each layer, the states by position that its queries and keys come from, ``(positions, width)``, or None."""

    layers: tuple[Tensor | None, ...]


@dataclass(frozen=True)
class DeconstructedState(LMState):
    """The states of all layers, and the tables, which are the same for all sequences and not counted in its bytes."""

    tables: Tables


@published(
    "deconstructed_attention",
    family="scored",
    kind="network",
    row=129,
    title="Deconstructing Attention: Investigating Design Principles for Effective Language Modeling",
    arxiv="2510.11602",
    year=2025,
    aliases=("random_qk", "fixed_qk", "static_qk", "self_gated", "no_mixing"),
    fidelity="hand values",
    claim=(
        Claim("without mixing a token is alone", cells="language.alone", holds="language.only_without_mixing"),
        Claim(
            ("maps fixed by random embeddings or a text do not know the sequence, static ones not the layers below"),
            cells="language.fixed_maps",
            holds="language.do_not_know",
        ),
        Claim(
            "on its own text a fixed map is standard attention",
            cells="language.own_text",
            holds="common.within(most=1e-12)",
        ),
        Claim("alone such layers do worse", cells="language.variants", holds="language.alone_is_worse"),
        Claim("alternated they come within 0.05 nats", cells="language.variants", holds="language.alternated_is_near"),
    ),
)
class DeconstructedLM(LM):
    """A causal language model whose layers may each lack one property of attention, beside layers of any mechanism.

        no_mixing    a gated network of each token alone
        self_gated   A_ij = softmax_{j≤i}(silu(q_j) · k_j / √d): a form without similarity
        random_qk    q, k = X W^Q, X W^K;  X: random embeddings ε that went through the layers below instead of the text
        fixed_qk     the same of one fixed text, given once by `fix`
        static_qk    q, k = e W^Q, e W^K;  e: the embeddings of the sequence itself, whatever the layer

    named in ``config.layers``, as in ``"random_qk, softmax, random_qk, softmax"``; values always come from the current
    hidden states. All have as many parameters as standard attention, but for the rounding of the gated network. The
    Taylor form of the paper is the mechanism ``based``.

    Shapes: ``ids (b, n)`` int64 -> ``(b, n, vocabulary)``. A fixed stream costs one more sequence in training, whatever
    the batch; in decoding its states are computed once, in `start`.

    Args:
        config: the sizes; ``random_qk(length=…)`` and ``fixed_qk(length=…)`` set how many positions there are, 2,048
            if left out. seed: of the weights and of ε.

    Raises:
        ValueError: a mechanism that is not causal, more tokens than positions, or ``fixed_qk`` before `fix`.

    Paper: Xue, Moosavi and Aletras, arXiv 2510.11602.
    """

    def __init__(self, config: Config, seed: int | None = None) -> None:
        super().__init__(config, seed)
        parsed = [layer.mechanism for layer in parse_layers(config.layers)]
        self.kinds = [spec.name for spec in parsed]
        self.length = max([spec.arguments.get("length", 2048) for spec in parsed if spec.name in FIXED], default=0)
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed + 1)
            self.noise = nn.Buffer(torch.randn(self.length, config.width) * config.width**-0.5)
        self.text = nn.Buffer(torch.full((self.length if "fixed_qk" in self.kinds else 0,), -1))

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        layers = ("no_mixing, self_gated", "random_qk(length=23), softmax, static_qk")
        found = [cls(Config(29, 24, each, heads=2, inner=17), seed=0) for each in layers]
        fixed = cls(Config(29, 24, "softmax, fixed_qk(length=23)", heads=2, inner=17), seed=0)
        fixed.fix(torch.arange(23))
        return [text_sample(model.config.layers, model) for model in (*found, fixed)]

    def block(self, layer: Layer, index: int) -> Block:
        c, spec, name = self.config, layer.mechanism, layer.mechanism.name
        if name not in VARIANTS:
            return super().block(layer, index)
        with spec.underlined():
            for given in spec.arguments.keys() - ({"length"} if name in FIXED else set()):
                raise wrong(given, "an unknown argument", f"none but length in {' and '.join(FIXED)}", TypeError)
        if layer.projection is not None:
            raise wrong("layers", repr(str(layer)), f"{name} without a projection of its own")
        standard = c.attention("softmax")
        p, attention = standard.projection, standard
        if name == "no_mixing":
            attention = cast(Attention, NoMixing(c.width))
        elif name == "self_gated":
            attention = Attention(build("softmax", scale=1.0), SelfGated(c.width, p.heads, p.head_dim, p.value_dim))
        else:
            attention.projection = Elsewhere(p.sizes)
        kind = ElsewhereBlock if name in ("static_qk", *FIXED) else Block
        block = kind(attention, c.width, c.inner_width, eps=c.eps)
        with torch.no_grad():
            block.network.down.weight.mul_((2 * c.depth) ** -0.5)
        return block

    @torch.no_grad()
    def fix(self, ids: Tensor) -> None:
        """Sets the text that ``fixed_qk`` takes queries and keys from: as many tokens as there are positions."""
        if tuple(ids.shape) != tuple(self.text.shape):
            raise wrong("ids", f"shape {tuple(ids.shape)}", f"{tuple(self.text.shape)}: one for each position")
        self.embed(ids[None])
        self.text.copy_(ids)

    def forward(self, ids: Tensor, key_mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        layout, x = Layout(causal=True, key_mask=key_mask, segments=segments), self.embed(ids)
        tables, positions, static = self.tables(ids.shape[1]), layout.positions(ids.shape[1], ids.device), x
        for i, block in enumerate(self.layers):
            x = block(x, layout, *self.source(i, static, tables, positions))
        return self.read(x)

    def source(self, layer: int, static: Tensor, tables: Tables, positions: Tensor) -> tuple[Tensor, ...]:
        """Where the queries and keys of a layer come from: what its block takes beside x and the layout."""
        table = tables.layers[layer]
        if table is not None:
            return (table[positions].expand(static.shape[0], -1, -1),)
        return (static,) if self.kinds[layer] == "static_qk" else ()

    def tables(self, n: int) -> Tables:
        """The states of the fixed streams at the first ``n`` positions, for each layer that needs them."""
        found: list[Tensor | None] = [None] * self.config.depth
        for kind in FIXED:
            places = [i for i, own in enumerate(self.kinds) if own == kind]
            if not places:
                continue
            if n > self.length:
                raise wrong("ids", f"{n} tokens", f"at most the {self.length} positions of {kind}")
            origin = x = self.noise[None, :n] if kind == "random_qk" else self.fixed()[:, :n]
            for i, block in enumerate(self.layers[: places[-1] + 1]):
                found[i] = x[0] if i in places else found[i]
                x = block(x, Layout(causal=True), *((origin,) if self.kinds[i] == "static_qk" else ()))
        return Tables(tuple(found))

    def fixed(self) -> Tensor:
        """The embedded text of ``fixed_qk``."""
        if (self.text < 0).any():
            raise wrong("text", "none", "a text for fixed_qk: call `fix` first")
        return self.embed(self.text[None])

    def start(self, batch: int) -> DeconstructedState:
        plain = super().start(batch)
        return DeconstructedState(plain.seen, plain.layers, self.tables(self.length))

    def extend(self, ids: Tensor, state: LMState, key_mask: Tensor | None = None) -> tuple[Tensor, LMState]:
        assert isinstance(state, DeconstructedState)
        positions, seen = count_new(state, key_mask, ids.shape[1], ids.shape[0])
        if self.length and int(seen.max()) > self.length:
            raise wrong("ids", f"{int(seen.max())} tokens in all", f"at most the {self.length} positions")
        static = x = self.embed(ids)
        layers = []
        for i, (block, layer) in enumerate(zip(cast(Any, self.layers), state.layers, strict=True)):
            x, layer = block.extend(x, layer, key_mask, *self.source(i, static, state.tables, positions))
            layers.append(layer)
        return self.read(x), DeconstructedState(seen, tuple(layers), state.tables)

    def flops(self, n: int, batch: int = 1) -> int:
        c, streams = self.config, 0
        for kind in FIXED:
            last = max([i + 1 for i, own in enumerate(self.kinds) if own == kind], default=0)
            streams += last * 6 * n * c.width * c.inner_width
            streams += sum(block.attention.cost(n).flops for block in self.layers[:last])
        return super().flops(n, batch) + streams
