"""Another mechanism in place of a Transformers model's own softmax attention, in some layers or all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from regard.core.build import build, parse
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Host, Mechanism
from regard.core.state import State
from regard.hosts.call import Call, attend
from regard.hosts.interface import Installed, check_model, label, refuse_unknown, split_mask
from regard.hosts.kept import Kept
from regard.hosts.passes import Pass, Passes
from regard.kernels.block_sparse import Bias
from regard.mechanisms.sparse.pattern import PatternAttention, Patterned
from regard.mechanisms.sparse.window import SlidingWindow
from regard.patterns import Pattern, Window, parse_pattern

PATTERN = re.compile(r"^\W*[A-Z]")
"""How the text of a pattern begins, and that of a mechanism does not."""


class Swap(AbstractContextManager["Swap"]):
    """A mechanism in a model: for the length of a ``with`` block, or from `install` to `remove`.

    Args:
        model: the host. chosen: the mechanism of each swapped layer by its index; the key None stands for all layers.
    """

    def __init__(self, model: PreTrainedModel, chosen: Mapping[int | None, Mechanism]) -> None:
        self.model, self.chosen = model, chosen
        self.names = {id(module): name for name, module in model.named_modules()}
        self.order: dict[str, int] = {}
        self.fitted: dict[tuple[int, int | None], Mechanism] = {}
        self.installed: Installed | None = None

    def install(self) -> Swap:
        """Puts the mechanism in, to stay until `remove`."""
        self.installed = Installed(self.model, self.attend, "swap")
        self.passes = Passes(self.model, self.finished)
        return self

    def remove(self) -> None:
        """Gives the model its own attention back."""
        if self.installed is not None:
            self.passes.remove()
            self.installed.remove()
            self.installed = None

    def __enter__(self) -> Swap:
        return self if self.installed is not None else self.install()

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def finished(self, done: Pass) -> None:
        """Refuses a model that never calls the attention interface, and layers that it does not have."""
        if done.module is not self.model:
            return
        if not done.calls:
            raise wrong(
                "model",
                f"{label(self.model)}, which ran a whole forward pass without calling the attention interface",
                "a model that does: this one computes attention in its own code, or has none",
                RuntimeError,
            )
        absent = sorted(layer for layer in self.chosen if layer is not None and layer >= len(self.order))
        if absent:
            last = len(self.order) - 1
            raise wrong("layers", f"{absent}", f"some of 0 to {last}, the attention layers of {label(self.model)}")

    def attend(
        self,
        module: nn.Module,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        position_bias: Tensor | None = None,
        sliding_window: int | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """The attention function that Transformers calls: the mechanism's in swapped layers, the model's in others."""
        refuse_unknown(self.model, others, "regard.swap")
        name = self.names[id(module)]
        place, _ = self.passes.locate(name)
        layer = self.order.setdefault(name, len(self.order))
        causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
        mask, bias = split_mask(attention_mask, position_bias, max(k.shape[2], place.past + q.shape[2]))
        scale = q.shape[3] ** -0.5 if scaling is None else scaling
        mechanism = self.chosen.get(layer, self.chosen.get(None))
        if mechanism is None:
            plain = causal and mask is None and q.shape[2] > 1
            call = Call(q, k, scale, plain, mask=mask, bias=bias, softcap=softcap, sinks=s_aux)
            return attend(call, v, dropout)[0].transpose(1, 2).contiguous(), None
        told = {"softcap": softcap, "s_aux": s_aux, "position_bias": position_bias, "dropout": dropout or None}
        for keyword, given in told.items():
            if given is not None:
                raise wrong("layers", f"{layer}, whose attention has a {keyword}", "layers without: no swap follows it")
        if place.encoded and not causal and q.shape[2] != k.shape[2]:
            raise wrong("layers", f"{layer}, which attends to another sequence", "layers of self-attention")
        q, fitted = q * (scale * q.shape[3] ** 0.5), self.fit(layer, mechanism, sliding_window)
        if causal:
            held = Held(place.cache, getattr(module, "layer_idx", None), sliding_window)
            out = self.run(fitted, q, k, v, mask, place, held)
        else:
            out = fitted(q, k, v, Layout(keys=padding_of(mask)))
        return out.transpose(1, 2).contiguous(), None

    def fit(self, layer: int, mechanism: Mechanism, window: int | None) -> Mechanism:
        """The mechanism under the sliding window that the model gives this layer."""
        if window is None:
            return mechanism
        if (layer, window) not in self.fitted:
            self.fitted[layer, window] = within_window(mechanism, window)
        return self.fitted[layer, window]

    def run(
        self, mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, place: Pass, held: Held
    ) -> Tensor:
        """A causal call: on from the layer's state where its cache can hold one, else over all keys."""
        n, m, total = q.shape[2], k.shape[2], place.past + q.shape[2]
        keys = None if place.keys is None else place.keys[:, :total].to(q.device)
        check_mask(mask, Layout(causal=True, keys=keys), n, total, held.window)
        fresh = held.replaceable and place.past == 0
        if not fresh and not isinstance(held.layer, Kept):
            if m != total:
                raise wrong("past_key_values", f"{m} keys of {total} tokens", "a DynamicCache that starts in the swap")
            return mechanism(q, k, v, Layout(causal=True, keys=keys))
        kept = held.replace(mechanism.start(q.shape[0], device=q.device, dtype=q.dtype), n) if fresh else held.layer
        out, kept.state = mechanism.extend(q, k, v, kept.state, None if keys is None else keys[:, place.past :])
        return out


@dataclass(frozen=True)
class Held:
    """Where a causal call's layer keeps its past.

    Args:
        cache: of the pass, None for none. index: of the layer in it. window: the model's own for this layer.
    """

    cache: Any
    index: int | None
    window: int | None

    @property
    def layer(self) -> Any:
        layers = getattr(getattr(self.cache, "self_attention_cache", self.cache), "layers", [])
        return layers[self.index] if self.index is not None and self.index < len(layers) else None

    @property
    def replaceable(self) -> bool:
        """Whether it is one of Transformers' growing caches, in whose place a state can stand."""
        return type(self.layer) in (DynamicLayer, DynamicSlidingWindowLayer)

    def replace(self, state: State, slots: int) -> Kept:
        """Puts a state in the layer's place."""
        kept = Kept(state, slots, self.layer.is_sliding)
        getattr(self.cache, "self_attention_cache", self.cache).layers[self.index] = kept
        return kept


def swap(
    model: PreTrainedModel,
    mechanism: str | Mechanism | Pattern | Mapping[int, str | Mechanism | Pattern],
    layers: Iterable[int] | None = None,
    **config: Any,
) -> Swap:
    """Puts a mechanism that needs no training in the place of a Transformers model's softmax attention.

    For the length of a block, or for good:

        with regard.swap(model, "window", size=256, sinks=4):
            model.generate(ids)

        regard.swap(model, "window", layers=[1, 3], size=256).install()

    Prefill, padded batches, chunked prefill, beam search and ``generate`` are followed. A growing cache that begins
    inside of the swap holds the mechanism's own state in swapped layers, so its memory is the mechanism's, not the
    length's. The model's sliding window is kept to: a pattern sees what both let it see.

    Args:
        model: any Transformers model that calls its attention through the attention interface.
        mechanism: a name, a text such as ``"window(size=256)"`` or ``"Window(64) | Sinks(4)"``, a mechanism, a pattern;
            or one for each layer.
        layers: indices of attention layers, in order of execution; None for all. config: the mechanism's arguments.

    Raises:
        TypeError: not a Transformers model. ValueError: a mechanism with signals or parameters that would have to be
            trained, or that its block has to host in a way that the model does not; a layer with softcap, sink logits
            or position bias; a mask that is neither causal nor padding. RuntimeError: the model is watched or swapped.
    """
    check_model(model)
    if isinstance(mechanism, Mapping):
        chosen: dict[int | None, Mechanism] = {layer: made(given, config) for layer, given in mechanism.items()}
    else:
        one = made(mechanism, config)
        chosen = {None: one} if layers is None else dict.fromkeys(layers, one)
    for layer in chosen:
        if layer is not None and layer < 0:
            raise wrong("layers", str(layer), "indices from 0")
    return Swap(model, chosen)


def made(given: str | Mechanism | Pattern, config: Mapping[str, Any]) -> Mechanism:
    """The mechanism that is meant, refused if it would have to be trained."""
    if isinstance(given, str) and PATTERN.search(given):
        given = parse_pattern(given)
    if isinstance(given, Pattern):
        given = PatternAttention(given, **config)
    elif isinstance(given, str):
        name, arguments = parse(given)
        given = build(name, **arguments | dict(config))
    elif config:
        raise wrong(next(iter(config)), "an argument", "none: the mechanism is made already", TypeError)
    mechanism = given
    needs = [*mechanism.signals, *(name for name, _ in mechanism.named_parameters())]
    needs += [] if mechanism.host == Host() else ["a block of its own (convolution, activation, norm or gate)"]
    if needs:
        name = type(mechanism).__name__
        raise wrong("mechanism", f"{name}, which needs {', '.join(needs)}", "one that needs no training, as a window")
    return mechanism


class Within(Patterned):
    """A mechanism by position, seeing only the keys nearer than ``size`` of those that it sees."""

    def __init__(self, inner: Patterned, size: int) -> None:
        super().__init__(inner.scale)
        self.inner, self.window, self.traits = inner, Window(size), inner.traits

    def pattern_for(self, m: int, layout: Layout) -> Pattern:
        return self.window & self.inner.pattern_for(m, layout)

    def bias_for(self, m: int, layout: Layout) -> Bias | None:
        return self.inner.bias_for(m, layout)


def within_window(mechanism: Mechanism, size: int) -> Mechanism:
    """The mechanism, seeing only the keys nearer than ``size`` of those that it sees."""
    if isinstance(mechanism, SlidingWindow) and not mechanism.sinks.count:
        return SlidingWindow(min(size, mechanism.window.size), scale=mechanism.scale)
    if isinstance(mechanism, SlidingWindow):
        return PatternAttention(Window(size) & (mechanism.window | mechanism.sinks), mechanism.scale)
    if isinstance(mechanism, Patterned):
        return Within(mechanism, size)
    name = type(mechanism).__name__
    raise wrong("layers", f"a layer with a sliding window of {size}", f"layers without: {name} cannot be cut to it")


def check_mask(mask: Tensor | None, layout: Layout, n: int, m: int, window: int | None) -> None:
    """Raises a ValueError if the mask ``(b, 1, n, m)`` of the pass is not the layout's, window included."""
    if mask is None:
        if n != m and n != 1:
            raise wrong("attention_mask", f"none for {n} queries over {m} keys", "the mask of Transformers' own cache")
        return
    allowed = layout.allowed(n, m, mask.device)
    if window is not None:
        slots = torch.arange(m, device=mask.device)
        allowed = allowed & (slots > slots[m - n :, None] - window)
    real = torch.ones((), dtype=torch.bool) if layout.keys is None else layout.keys[:, None, m - n :, None]
    if mask.shape[-1] != m or not torch.equal(mask & real, (allowed & real).expand_as(mask)):
        raise wrong("attention_mask", "a mask of its own", "causality and padding (2 axes): a swap follows no other")


def padding_of(mask: Tensor | None) -> Tensor | None:
    """``(batch, m)`` bool of a two-sided mask ``(b, 1, n, m)``; a ValueError if it is more than padding."""
    if mask is None:
        return None
    keys = mask[:, 0].any(1)
    if mask.shape[1] != 1 or not torch.equal(mask, keys[:, None, None].expand_as(mask)):
        raise wrong("attention_mask", "a mask of its own", "padding (2 axes): a swap follows no other")
    return keys
