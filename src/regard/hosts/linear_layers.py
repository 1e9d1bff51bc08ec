"""Layers of ours in the place of a Transformers model's attention modules, and what they keep in its caches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from regard.blocks.attention import Attention, AttentionState
from regard.core.build import build_text
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.hosts import caches
from regard.hosts.attention_interface import host, label
from regard.hosts.sites import blocks_of, parent
from regard.hosts.state_cache import OwnCacheLayer
from regard.hosts.swap import swap
from regard.projections.base import Grouped
from regard.projections.rotary import Rotary

KEY = "regard_layers"
"""Where a model's configuration says which of its layers are ours."""
PARTS = ("q_proj", "k_proj", "v_proj", "o_proj")
"""The matrices of an attention module of the Llama type."""


@dataclass(frozen=True)
class LayerPlan:
    """Which attention layers of a model are which mechanism.

    Args:
        to: the mechanism's text. layers: indices of those that become it. values: channels of a value over those of
            a key. window: tokens that the softmax layers left over see, None for all.

    Raises:
        ValueError: no layers, one twice or below 0, or a size below 1.
    """

    to: str
    layers: tuple[int, ...]
    values: int = 1
    window: int | None = None

    def __post_init__(self) -> None:
        if not self.layers or len(set(self.layers)) < len(self.layers) or min(self.layers) < 0:
            raise wrong("layers", f"{list(self.layers)}", "one layer or more, each once, from 0")
        if self.values < 1 or (self.window is not None and self.window < 1):
            raise wrong("values, window", f"{self.values}, {self.window}", "at least 1 each")


class HostedLayer(nn.Module):
    """An `Attention` called as Transformers calls an attention module: its state is kept in the cache's layer.

    Args:
        attention: the layer. index: of the module it stands for, in the cache.
    """

    def __init__(self, attention: Attention, index: int) -> None:
        super().__init__()
        self.attention, self.layer_idx = attention, index

    def forward(
        self, hidden_states: Tensor, *rest: Any, attention_mask: Tensor | None = None, **given: Any
    ) -> tuple[Tensor, None]:
        """``(y (b, n, width), None)`` of ``hidden_states (b, n, width)``: no weights are formed.

        Raises:
            ValueError: a mask of another kind, or a cache that is no growing one or began without this layer.
        """
        real = real_among(attention_mask, hidden_states.shape[1])
        cache = next(caches.found([*rest, *given.values()]), None)
        if cache is None:
            return self.attention(hidden_states, Layout(causal=True, key_mask=real)), None
        kept = self.kept(cache, hidden_states)
        out, kept.state = self.attention.extend(hidden_states, kept.state, real)
        kept.slots += hidden_states.shape[1]
        return out, None

    def kept(self, cache: Any, x: Tensor) -> RecurrentCacheLayer:
        """This layer's place in the cache, put there with the first tokens."""
        layers = caches.own(cache).layers
        while len(layers) <= self.layer_idx:
            layers.append(DynamicLayer())
        layer = layers[self.layer_idx]
        if isinstance(layer, RecurrentCacheLayer):
            return layer
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) or layer.get_seq_length():
            raise wrong("past_key_values", f"a {type(layer).__name__}", "a new DynamicCache, which grows")
        state = self.attention.start(len(x), device=x.device, dtype=x.dtype)
        layers[self.layer_idx] = made = RecurrentCacheLayer(self, state, layer.is_sliding)
        return made


class RecurrentCacheLayer(OwnCacheLayer):
    """One layer of a Transformers cache that holds the state of a `HostedLayer`.

    Args:
        owner: the layer. state: what it has kept. sliding: see `OwnCacheLayer`.
    """

    verb: ClassVar[str] = "layer"

    def __init__(self, owner: HostedLayer, state: AttentionState, sliding: bool) -> None:
        super().__init__(owner, 0, sliding)
        self.state: Any = state
        self.keys = self.values = torch.zeros(1, 1, 1, 1)  # which only say that there are some, as models ask

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object):
        """Refused: there are no keys to take in."""
        raise wrong("past_key_values", "keys for a layer without any", "none: it holds a state")

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: what a state has taken in cannot be taken back."""
        if tokens_to_remove:
            raise wrong("crop", f"{abs(tokens_to_remove)} tokens of a state", "a cache that is not cut", RuntimeError)

    def reset(self) -> None:
        raise wrong("past_key_values", "a cache of states to reset", "a new cache", RuntimeError)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.state = self.state.select(beam_idx.to(self.state.seen.device))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.reorder_cache(torch.arange(len(self.state.seen), device=indices.device)[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.reorder_cache(torch.arange(len(self.state.seen)).repeat_interleave(repeats))


def real_among(mask: Any, n: int) -> Tensor | None:
    """``(b, n)`` bool, which of the new tokens are real: of a causal mask those that see themselves; None for all."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        raise wrong("attention_mask", type(mask).__name__, "None, or a tensor of 2 or 4 axes")
    if mask.dim() == 2:
        real = mask[:, -n:].bool()
    else:
        own = mask[:, 0, :, mask.shape[3] - n :].diagonal(dim1=1, dim2=2)
        real = own if own.dtype == torch.bool else own == 0
    return None if bool(real.all()) else real


def converted(model: PreTrainedModel, plan: LayerPlan, seed: int = 0) -> dict[str, HostedLayer]:
    """Puts new layers in the place of the plan's, in the model itself, and gives them by the names of their blocks.

    Queries and keys begin with the matrices that the model has for them, values and outputs too where their size is
    the same; convolutions begin as the identity. Biases and norms of queries and keys are not taken over.

    Raises:
        ValueError: layers that the model does not have, or not of the Llama type.
    """
    blocks = list(blocks_of(host(model)))
    if absent := sorted(set(plan.layers) - set(range(len(blocks)))):
        raise wrong("layers", f"{absent}", f"some of 0 to {len(blocks) - 1}, the layers of {label(model)}")
    found = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for index in plan.layers:
            name = blocks[index].attention[0]
            made = HostedLayer(like(model.get_submodule(name), plan), index)
            model.get_submodule(parent(name)).register_module(name.rpartition(".")[2], made)
            found[blocks[index].name] = made
    if plan.window is not None:
        swap(model, "window", size=plan.window).install()
    setattr(model.config, KEY, asdict(plan))
    return found


def like(module: Any, plan: LayerPlan) -> Attention:
    """A layer of the plan's mechanism with the sizes of an attention module, and what of its weights it can use."""
    if not all(isinstance(getattr(module, part, None), nn.Linear) for part in PARTS):
        raise wrong("model", f"attention in a {type(module).__name__}", f"modules with {', '.join(PARTS)}")
    q, k, v, o = (getattr(module, part).weight for part in PARTS)
    d = module.head_dim
    heads, groups, e = len(q) // d, len(k) // d, d * plan.values
    sizes = {"heads": heads, "kv_heads": groups, "head_dim": d, "value_dim": e, "layer_index": module.layer_idx}
    mechanism = build_text(plan.to, sizes)
    if mechanism.layer.projection != "grouped" or not mechanism.traits.causal:
        raise wrong("to", repr(plan.to), "a causal mechanism of queries, keys and values")
    whole = not mechanism.traits.grouped
    rotary = Rotary(d, rotary_base(module.config)) if mechanism.layer.rotary else None
    attention = Attention(mechanism, Grouped(Sizes(q.shape[1], heads, heads if whole else groups, d, e)), rotary)
    times = heads // groups if whole else 1
    given = {"q": q, "k": repeated(k, d, times), "v": repeated(v, d, times), "out": o}
    with torch.no_grad():
        for name, weight in attention.projection.named_parameters():
            old = given[name.partition(".")[0]]
            if weight.shape == old.shape:
                weight.copy_(old)
        if attention.convolution is not None:
            attention.convolution.weight.zero_()
            attention.convolution.weight[0] = 1
    return attention.to(q.device, q.dtype)


def rotary_base(config: Any) -> float:
    """The base of a model's rotary positions, refused where these are scaled."""
    told = getattr(config, "rope_parameters", None)
    if not isinstance(told, dict) or told.get("rope_type") != "default":
        raise wrong("model", f"positions {told!r}", "plain rotary positions, or a mechanism without them")
    return float(told["rope_theta"])


def repeated(weight: Tensor, d: int, times: int) -> Tensor:
    """A matrix of kv heads of d rows, each so many times."""
    return weight.detach().unflatten(0, (-1, d)).repeat_interleave(times, 0).flatten(0, 1)


def load(folder: str | Path, **given: Any) -> PreTrainedModel:
    """A model with layers of ours as its ``save_pretrained`` wrote it, in evaluation mode.

    Args:
        folder: of the model. given: further arguments of ``from_pretrained`` of the model's configuration.

    Raises:
        ValueError: a model without such layers, or weights that are not its own.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True, **given)
    told = getattr(config, KEY, None)
    if not isinstance(told, dict):
        raise wrong("folder", str(folder), f"that of a model of `regard.linearise`, whose config.json has {KEY}")
    model: Any = AutoModelForCausalLM.from_config(config)
    converted(model, LayerPlan(**{**told, "layers": tuple(told["layers"])}))
    return filled(model, folder)


def filled(model: Any, folder: str | Path) -> PreTrainedModel:
    """The model with the weights of a folder, which are all that it has, in evaluation mode."""
    missing, strange = model.load_state_dict(weights_of(Path(folder)), strict=False)
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    if strange or set(missing) - tied:
        raise wrong("folder", f"{folder} with other weights: {[*missing, *strange][:3]}", "those of the model")
    model.tie_weights()
    return model.eval()


def weights_of(folder: Path) -> dict[str, Tensor]:
    """All weights that Transformers wrote in a folder, in one file or several."""
    from safetensors.torch import load_file

    index = folder / "model.safetensors.index.json"
    files: Sequence[str] = ["model.safetensors"]
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    return {name: weight for file in files for name, weight in load_file(folder / file).items()}
