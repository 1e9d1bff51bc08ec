"""A plain causal language model around any mechanisms, a different one in each layer if wanted."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from regard.blocks.attention import Attention, AttentionState, Handed
from regard.blocks.block import Block
from regard.core.atlas import find
from regard.core.build import build_text, instantiate
from regard.core.errors import wrong
from regard.core.files import write_text, write_whole
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.core.spec import Layer, Spec, parse, parse_layer, parse_layers
from regard.core.state import State, count_new
from regard.networks.base import Network
from regard.networks.sampling import Sampling
from regard.projections.base import Grouped, Projection
from regard.projections.rotary import Rotary
from regard.projections.selective import as_hosted
from regard.projections.values_only import ValuesOnly

TOKENS = 19
"""Of the laws' examples."""
IGNORED = -100
"""The target of a token that counts for nothing in a loss, as in `cross_entropy`."""


@dataclass(frozen=True)
class Config:
    """The sizes of a network of blocks.

    Args:
        vocabulary: number of token ids. width: of the hidden states. layers: the mechanism of each layer in order, as
            in ``"softmax*2, window(size=64)*2"``; with a projection of its own, ``"softmax with nexus(order=2)"``.
        heads, kv_heads, head_dim, value_dim: of the attention; None: heads, width / heads, and head_dim. Where queries
            and keys are shared, as in Mamba-2, kv_heads counts the groups that share them, None for 1. Mamba's heads
            are the channels of all, of one value each.
        inner: of the gated networks, None for 8/3 of the width, to the next multiple of 8, 0 for attention alone.
        rotary_base: of the rotary positions; None for no positions but what the mechanisms know themselves.
        eps: under the root of the norms. projection: how queries, keys and values come from hidden states, in layers
            that do not say: ``"grouped"`` (values alone where a mechanism reads no queries and keys), or one of the
            atlas, as ``"latent(rank=64, plain=32, rotary=16, value=32)"``.

    Raises:
        ValueError: a size below one, heads that do not divide the width where head_dim is left out, or layers that are
            no list of mechanisms.
    """

    vocabulary: int
    width: int = 128
    layers: str = "softmax*2"
    heads: int = 4
    kv_heads: int | None = None
    head_dim: int | None = None
    value_dim: int | None = None
    inner: int | None = None
    rotary_base: float | None = 10_000.0
    eps: float = 1e-6
    projection: str = "grouped"

    def __post_init__(self) -> None:
        for field in ("vocabulary", "width", "heads", "kv_heads", "head_dim", "value_dim", "inner"):
            size = getattr(self, field)
            least = 0 if field == "inner" else 1
            if size is not None and size < least:
                raise wrong(field, str(size), f"at least {least}")
        if self.head_dim is None and self.width % self.heads:
            raise wrong("width", str(self.width), f"a multiple of the {self.heads} heads, or a head_dim")
        parse_layers(self.layers)
        parse(self.projection, "projection")

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(parse_layers(self.layers))

    @property
    def sizes(self) -> Sizes:
        """Those of the attention of a layer that does not say otherwise."""
        d = self.width // self.heads if self.head_dim is None else self.head_dim
        e = d if self.value_dim is None else self.value_dim
        return Sizes(self.width, self.heads, self.kv_heads or self.heads, d, e)

    @property
    def inner_width(self) -> int:
        return -(-self.width * 8 // 24) * 8 if self.inner is None else self.inner

    def attention(self, layer: str | Layer, index: int = 0) -> Attention:
        """The attention of one layer, the ``index``-th from 0."""
        layer = parse_layer(layer) if isinstance(layer, str) else layer
        text = layer.projection or parse(self.projection, "projection")
        projection = self.projected(text)
        d, e = projection.head_dim, projection.value_dim
        sizes = {"heads": projection.heads, "kv_heads": projection.kv_heads, "head_dim": d, "value_dim": e}
        mechanism = build_text(layer.mechanism, sizes | {"layer_index": index})
        if not mechanism.traits.content and text.name == "grouped":
            return Attention(mechanism, ValuesOnly(self.width, self.heads, e))
        kind = mechanism.layer.projection if text.name == "grouped" else "grouped"
        if kind == "selective":
            sizes |= {"heads": self.heads * e, "kv_heads": self.heads * e, "value_dim": 1}
            mechanism = build_text(layer.mechanism, sizes | {"layer_index": index})
        if kind != "grouped":
            shared = Sizes(self.width, sizes["heads"], self.kv_heads or 1, d, sizes["value_dim"])
            projection = as_hosted(kind, shared)
        turned = projection.turned // mechanism.layer.parts
        rotary = None if self.rotary_base is None else Rotary(turned - turned % 2, self.rotary_base)
        earlier = [each.mechanism.name for each in parse_layers(self.layers)[:index]]
        return Attention(mechanism, projection, rotary, layer.mechanism.name in earlier)

    def projected(self, spec: Spec) -> Projection:
        """One layer's projection, its sizes those of the configuration where its text does not give them."""
        with spec.underlined():
            thing = Grouped if spec.name == "grouped" else find(spec.name).thing
            if not (isinstance(thing, type) and issubclass(thing, Projection)):
                raise wrong("projection", repr(spec.name), "grouped, or a projection of the atlas")
            return instantiate(asdict(self.sizes), spec.name, thing, spec.arguments)

    def fitted(self, parameters: int, count: Any) -> Any:
        """The same with the inner width that brings ``count(config)`` nearest to ``parameters``."""
        least, more = count(replace(self, inner=1)), count(replace(self, inner=2))
        inner = max(1, 1 + round((parameters - least) / (more - least)))
        found = replace(self, inner=inner)
        if abs(count(found) - parameters) > 0.01 * parameters:
            raise wrong("parameters", f"{parameters:,}", f"within 1% of {least:,} or more: all else has these already")
        return found


class LM(Network):
    """A causal language model: embedding, blocks, norm, and the embedding again as the output matrix.

        h_0 = E[ids],   h_{l+1} = block_l(h_l),   logits = norm(h_L) Eᵀ

    Shapes: ``ids (b, n)`` int64 -> ``(b, n, vocabulary)``. State: that of each layer.

    Args:
        config: the sizes. seed: of the weights, None for PyTorch's running generator.

    Raises:
        ValueError: a mechanism that is not causal.
    """

    def __init__(self, config: Config, seed: int | None = None) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.embedding = nn.Embedding(config.vocabulary, config.width)
            nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
            self.blocks = nn.ModuleList(
                self.block(layer, index) for index, layer in enumerate(parse_layers(config.layers))
            )
        self.norm = nn.RMSNorm(config.width, config.eps)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        sizes: dict[str, Any] = {"width": 24, "heads": 2, "inner": 17}
        return [
            text_sample("softmax, grouped", cls(Config(29, layers="softmax*2", kv_heads=1, **sizes), seed=0)),
            text_sample("a window, a recurrence", cls(Config(29, layers="window(size=3), gla", **sizes), seed=0)),
        ]

    def block(self, layer: Layer, index: int) -> Block:
        """The layer ``index``."""
        attention = self.config.attention(layer, index)
        if not attention.causal:
            raise wrong("layers", repr(str(layer)), "mechanisms and projections that are causal")
        return self.around(attention)

    def around(self, attention: Any) -> Block:
        """A block; the root of their number shrinks output matrices, so that depth adds no variance."""
        block = Block(attention, self.config.width, self.config.inner_width, eps=self.config.eps)
        with torch.no_grad():
            block.network.down.weight.mul_((2 * self.config.depth) ** -0.5)
        return block

    @property
    def layers(self) -> list[Block]:
        """The blocks, from the first."""
        return list(cast(Any, self.blocks))

    def forward(self, ids: Tensor, key_mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """Logits of each next token; ``key_mask (b, n)`` False marks padding, ``segments (b, n)`` packed documents."""
        layout, x = Layout(causal=True, key_mask=key_mask, segments=segments), self.embed(ids)
        handed = Handed()
        for block in self.layers:
            x = block(x, layout, **told(block, handed))
        return self.read(x)

    def embed(self, ids: Tensor) -> Tensor:
        """Hidden states of tokens, refused where an id is out of range."""
        if ids.dim() != 2 or ids.dtype not in (torch.int32, torch.int64):
            raise wrong("ids", f"{ids.dtype} of shape {tuple(ids.shape)}", "int64 of shape (batch, tokens)", TypeError)
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.config.vocabulary:
            raise wrong("ids", f"{int(ids.min())} to {int(ids.max())}", f"0 to {self.config.vocabulary - 1}")
        return self.embedding(ids)

    def read(self, x: Tensor) -> Tensor:
        """Logits of the last hidden states."""
        return F.linear(self.norm(x), self.embedding.weight)

    def loss(self, ids: Tensor, targets: Tensor | None = None, **layout: Tensor) -> Tensor:
        """Mean cross-entropy in nats of each next token of ``ids``, or of ``targets (b, n)``, `IGNORED` left out."""
        if targets is None:
            targets = F.pad(ids[:, 1:], (0, 1), value=IGNORED)
        return F.cross_entropy(self(ids, **layout).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)

    def start(self, batch: int) -> LMState:
        """The state before any token, on the model's device and in its dtype."""
        like = self.embedding.weight
        layers = tuple(block.start(batch, device=like.device, dtype=like.dtype) for block in self.layers)
        return LMState(torch.zeros(batch, dtype=torch.int64, device=like.device), layers)

    def extend(self, ids: Tensor, state: LMState, key_mask: Tensor | None = None) -> tuple[Tensor, LMState]:
        """``(logits of the new tokens, the state after them)``; ``key_mask (b, n)`` marks the real ones."""
        _, seen = count_new(state, key_mask, ids.shape[1], ids.shape[0])
        x, layers, handed = self.embed(ids), [], Handed()
        for block, layer in zip(self.layers, state.layers, strict=True):
            x, layer = block.extend(x, layer, key_mask, **told(block, handed))
            layers.append(layer)
        return self.read(x), LMState(seen, tuple(layers))

    @torch.no_grad()
    def generate(
        self,
        ids: Tensor,
        max_new_tokens: int,
        sampling: Sampling = Sampling(),
        key_mask: Tensor | None = None,
        stop: Sequence[int] = (),
    ) -> Tensor:
        """``(b, ≤ max_new_tokens)`` ids that continue ``ids (b, n)``, whose padding ``keys`` may stand on either side.

        A sequence that has drawn one of ``stop`` repeats it; generation ends when all have.
        """
        if ids.shape[1] == 0:
            raise wrong("ids", "no tokens", "at least one to continue")
        if max_new_tokens < 0:
            raise wrong("max_new_tokens", str(max_new_tokens), "0 or more")
        logits, state = self.extend(ids, self.start(ids.shape[0]), key_mask)
        last = torch.full((ids.shape[0],), ids.shape[1] - 1, device=ids.device)
        if key_mask is not None:
            last = (key_mask * torch.arange(1, ids.shape[1] + 1, device=ids.device)).argmax(1)
        logits = logits[torch.arange(ids.shape[0], device=ids.device), last]
        found, ended = [], torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)
        ends = torch.tensor(list(stop), device=ids.device, dtype=ids.dtype)
        for step in range(max_new_tokens):
            drawn = sampling(logits)
            found.append(torch.where(ended, found[-1], drawn) if found else drawn)
            ended = ended | torch.isin(drawn, ends)
            if ended.all() or step == max_new_tokens - 1:
                break
            logits, state = self.extend(found[-1][:, None], state)
            logits = logits[:, 0]
        return torch.stack(found, dim=1) if found else ids[:, :0]

    def flops(self, n: int, batch: int = 1) -> int:
        """FLOPs of the matrix products of ``forward`` over ``n`` tokens, by formula."""
        c = self.config
        network = 6 * c.width * c.inner_width * c.depth + 2 * c.width * c.vocabulary
        return batch * n * network + sum(block.attention.cost(n, batch=batch).flops for block in self.layers)

    def state_bytes(self, n: int, batch: int = 1) -> int:
        """Bytes of the decoding state after ``n`` tokens, by formula."""
        size = self.embedding.weight.element_size()
        return sum(block.attention.cost(n, batch=batch, itemsize=size).state_bytes for block in self.layers)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes ``config.json`` and ``model.safetensors``, each replaced in one step."""
        folder = Path(folder)
        weights = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        write_whole(folder / "model.safetensors", lambda draft: save_file(weights, draft, {"format": "pt"}))
        own = {name: value for name, value in self.arguments.items() if name not in ("config", "seed")}
        write_text(folder / "config.json", json.dumps(asdict(self.config) | own, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> LM:
        """The model that `save_pretrained` wrote, in evaluation mode.

        Raises:
            FileNotFoundError: no such files. ValueError: a configuration or weights of something else.
        """
        folder = Path(folder)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise wrong("folder", f"{folder} without {name}", "one that `save_pretrained` wrote", FileNotFoundError)
        given, known = json.loads((folder / "config.json").read_text()), {field.name for field in fields(Config)}
        takes = inspect.signature(cls).parameters.keys() - {"config", "seed"}
        if not isinstance(given, dict) or not known <= set(given) <= known | takes:
            raise wrong(
                "folder", f"{folder}, whose config.json is of another model", "one that `save_pretrained` wrote"
            )
        own = {name: given.pop(name) for name in given.keys() - known}
        model = cls(Config(**given), **own, seed=0)
        try:
            weights = load_file(folder / "model.safetensors")
        except SafetensorError as error:
            raise wrong("folder", f"{folder}, whose model.safetensors is broken ({error})", "a whole file") from error
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        if found != wanted:
            strange = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))[:3]
            raise wrong("folder", f"{folder}, whose weights differ in {strange}", "weights of the model in config.json")
        model.load_state_dict(weights)
        return model.eval()


def told(block: Any, handed: Handed) -> dict[str, Any]:
    """What a block is told of the layers before it: nothing where its attention takes and hands on nothing."""
    return {"handed": handed} if getattr(block.attention, "hands", False) else {}


def text_sample(label: str, model: LM) -> Sample:
    """A language model for the laws, with random tokens for it."""
    vocabulary = model.config.vocabulary
    return Sample(label, model, {"inputs": partial(random_ids, vocabulary), "output": (TOKENS, vocabulary)})


def random_ids(vocabulary: int, batch: int, seed: int) -> tuple[Tensor]:
    """``(b, n)`` random tokens."""
    return (torch.randint(vocabulary, (batch, TOKENS), generator=torch.Generator().manual_seed(seed)),)


def fitted(config: Config, parameters: int) -> Config:
    """The configuration with the inner width that makes a model of ``parameters`` parameters, to 1%.

    Raises:
        ValueError: no inner width does.
    """
    return config.fitted(parameters, lambda sizes: LM(sizes, seed=0).parameter_count)


@dataclass(frozen=True)
class LMState(State):
    """The states of all layers.

    Args:
        layers: one for each, from the first.
    """

    layers: tuple[AttentionState, ...]
