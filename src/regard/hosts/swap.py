"""Another mechanism in place of a Transformers model's own softmax attention, in some layers or all."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers import PreTrainedModel

from regard.core.build import build_text
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import LayerSpec, Mechanism
from regard.core.spec import Spec, parse
from regard.hosts.attachment import Attachment, Spot
from regard.hosts.attention_arguments import Asked
from regard.hosts.attention_interface import host, label
from regard.hosts.causal_masks import real_tokens_of, says
from regard.hosts.forward_pass import Pass
from regard.hosts.mechanism_call import ImplicitAttention
from regard.hosts.slots import Slots
from regard.hosts.softmax_hooks import Softmaxes
from regard.hosts.state_cache import Held, Home, StateCacheLayer
from regard.kernels.block_sparse.plan import Bias
from regard.mechanisms.sparse.pattern import PatternAttention, Patterned
from regard.mechanisms.sparse.window import SlidingWindow
from regard.patterns import Pattern, Window, parse_pattern

PATTERN = re.compile(r"^\W*[A-Z]")
"""How the text of a pattern begins, and that of a mechanism does not."""

STARTS = "a DynamicCache that starts in the swap"
"""What is wanted of a cache that has not all keys at hand."""
TOGETHER = "all layers that read one cache, or none of them"
"""What is wanted of layers of which one would be swapped and another not."""


class Swap(AbstractContextManager["Swap"]):
    """A mechanism in a model: for the length of a ``with`` block, or from `install` to `remove`.

    Args:
        model: the host. chosen: the mechanism of each swapped layer by its index, and what is said of it; the key None
            stands for all layers.
    """

    verb: ClassVar[str] = "regard.swap"
    doing: ClassVar[str] = "swapped"

    def __init__(self, model: PreTrainedModel, chosen: Mapping[int | None, tuple[Mechanism, str]]) -> None:
        self.model, self.chosen = model, chosen
        self.fitted: dict[tuple[int, int | None], Mechanism] = {}
        self.owners: WeakKeyDictionary[Any, dict[int | None, str]] = WeakKeyDictionary()  # who fills a cache's layer
        self.homes: dict[str, Home] = {}
        self.softmaxes: Softmaxes | None = None
        self.own: dict[str, None] = {}
        self.installed: Attachment | None = None

    def install(self) -> Swap:
        """Puts the mechanism in, to stay until `remove`.

        Raises:
            RuntimeError: another one is in it already.
        """
        attachment = Attachment.on(self.model)
        attachment.add(self)
        self.installed = attachment
        attachment.computing = self
        if None in self.chosen:
            self.softmaxes = Softmaxes(self.model, attachment.passes, self)
        return self

    def remove(self) -> None:
        """Gives the model its own attention back."""
        if self.installed is not None:
            self.listen_no_more()
            self.installed.discard(self)
            self.installed = None

    def __enter__(self) -> Swap:
        return self if self.installed is not None else self.install()

    def __exit__(self, *exception: object) -> None:
        self.remove()

    @property
    def attachment(self) -> Attachment:
        """That which it is part of."""
        assert self.installed is not None
        return self.installed

    def listen_no_more(self) -> None:
        """Takes out what hears the softmaxes of the model's own code."""
        if self.softmaxes is not None:
            self.softmaxes.remove()
            self.softmaxes = None

    def aside(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose own use of PyTorch is not heard as the model's."""
        return function if self.softmaxes is None else self.softmaxes.aside(function)

    def caught(self, module: nn.Module, weights: Tensor, visible: Tensor | None) -> None:
        """Notes a module that computes softmax attention in its own code, which no mechanism stands in for."""
        self.own[self.attachment.names[id(module)]] = None

    def heard(self) -> list[str] | None:
        """The modules that computed attention in their own code, None where nobody listened."""
        if self.softmaxes is None:
            return None
        return list(dict.fromkeys([*self.own, *self.softmaxes.unread(self.attachment.names)]))

    def say_what_stays(self, own: list[str]) -> None:
        """Warns of attention that a model of which all layers are to be swapped computes in its own code."""
        self.listen_no_more()
        if own:
            more = f", and {len(own) - 1} more do" if len(own) > 1 else ""
            wanted = f"swapped are layers 0 to {len(self.attachment.order) - 1}, which call the attention interface"
            text = f"{own[0]} of {label(self.model)} computes attention in its own code{more}, and keeps it: {wanted}"
            warnings.warn(text, UserWarning, stacklevel=2)

    def finished(self, done: Pass) -> None:
        """Refuses layers that the model does not have; of the first pass, says what it could not swap."""
        self.homes.clear()
        if (own := self.heard()) is not None:
            self.say_what_stays(own)
        last = len(self.attachment.order) - 1
        absent = sorted(layer for layer in self.chosen if layer is not None and layer > last)
        if absent:
            raise wrong("layers", f"{absent}", f"some of 0 to {last}, the attention layers of {label(self.model)}")

    def mechanism(self, spot: Spot) -> tuple[Mechanism, str] | None:
        """What stands for the layer's attention, None for its own."""
        return self.chosen.get(spot.layer, self.chosen.get(None))

    def before(self, spot: Spot, k: Tensor) -> int:
        """How many keys a call is not given, since the layer's cache holds a state instead."""
        cache = self.attachment.passes.handed(spot.inside, spot.name).cache
        home = self.homes[spot.name] = Home.of(cache, k, spot.module)
        if home.layer is not None:
            self.owners.setdefault(cache, {}).setdefault(home.index, spot.name)
        return 0 if home.kept is None else home.kept.slots - k.shape[2]

    def takes(self, spot: Spot) -> bool:
        """Whether the layer is swapped.

        Raises:
            ValueError: it is not, and reads keys that a swapped one has taken in.
        """
        if self.mechanism(spot) is None and self.homes[spot.name].kept is not None:
            raise wrong("layers", f"{spot.layer} apart from a swapped one, whose keys it reads", TOGETHER)
        return self.mechanism(spot) is not None

    def slots(self, spot: Spot, asked: Asked) -> Slots:
        """Where a call stands; refuses one that no mechanism can stand in for."""
        kept, passes, call = self.homes[spot.name].kept, self.attachment.passes, asked.call
        self.refuse(spot.layer, asked, kept)
        past = passes.handed(spot.inside, spot.name).past
        slots = Slots(past, past) if kept is not None else self.attachment.slots(spot, asked)
        if passes.crosses(spot.inside, spot.name, slots, asked):
            raise wrong("layers", f"{spot.layer}, which attends to another sequence", "layers of self-attention")
        if slots is None:
            raise wrong("past_key_values", f"{call.m} keys of {past + call.n} tokens", STARTS)
        return slots

    def compute(self, spot: Spot, asked: Asked, slots: Slots) -> tuple[Tensor, ImplicitAttention | None, str]:
        """``(A v, what its rows follow from, what computes it)``; no rows follow from a past that was not watched."""
        call, home, handed = asked.call, self.homes[spot.name], self.attachment.passes.handed(spot.inside, spot.name)
        chosen = self.mechanism(spot)
        assert chosen is not None
        mechanism = self.fit(spot.layer, chosen[0], asked.window)
        text = chosen[1] if mechanism is chosen[0] else f"{chosen[1]} within {asked.window}"
        q = call.q * (call.scaling * call.q.shape[3] ** 0.5)
        if home.kept is None and call.n > 1 and not asked.causal(handed.past):
            layout = bidirectional(mechanism, call.mask)
            return mechanism(q, call.k, asked.v, layout), ImplicitAttention(mechanism, q, call.k, layout), text
        own = (
            home.replaceable
            and self.owners[handed.cache][home.index] == spot.name
            and (asked.window is not None or not getattr(home.layer, "is_sliding", False))
        )
        fresh = own and handed.given and handed.past == 0 and call.n == call.m
        turn = Turn(spot.layer, home, slots.query, spot.inside.keys, fresh)
        return *self.run(mechanism, q, asked, turn), text

    def refuse(self, layer: int, asked: Asked, kept: StateCacheLayer | None) -> None:
        """Raises a ValueError for a call that no mechanism can stand in for."""
        if kept is not None and kept.owner() is not self:
            raise wrong("past_key_values", "a cache that another swap filled", "a new cache", RuntimeError)
        if kept is not None and layer not in kept.held and kept.slots > asked.call.n:
            raise wrong("layers", f"{layer} apart from a swapped one, whose keys it reads", TOGETHER)
        told = {"softcap": asked.call.softcap, "s_aux": asked.call.sinks, "dropout": asked.dropout or None}
        told |= {"position_bias": asked.call.bias if asked.biased == "position_bias" else None}
        for keyword, given in told.items():
            if given is not None:
                raise wrong("layers", f"{layer}, whose attention has a {keyword}", "layers without: no swap follows it")
        if asked.biased is not None:
            wanted = "a mask that hides or shows, of True and False or of zeros and −inf: no swap adds to scores"
            raise wrong("attention_mask", "numbers that are added to the scores", wanted)
        if self.attachment.passes.weights:
            raise wrong("output_attentions", f"True, with layer {layer} swapped", "False: no weights are formed there")

    def fit(self, layer: int, mechanism: Mechanism, window: int | None) -> Mechanism:
        """The mechanism under the sliding window that the model gives this layer."""
        if window is None:
            return mechanism
        if (layer, window) not in self.fitted:
            self.fitted[layer, window] = within_window(mechanism, window)
        return self.fitted[layer, window]

    def run(self, mechanism: Mechanism, q: Tensor, asked: Asked, turn: Turn) -> tuple[Tensor, ImplicitAttention | None]:
        """A causal call: on from the layer's state where its cache can hold one, else over all keys."""
        call, kept = asked.call, turn.home.kept
        n, total = call.n, turn.past + call.n
        keys = real_tokens_of(turn.padding, call.mask, total)
        layout = Layout(causal=True, key_mask=keys)
        regular = says(call.mask, layout, n, total, asked.window)
        if kept is None and not (turn.fresh and regular):
            if call.m != total:
                raise wrong("past_key_values", f"{call.m} keys of {total} tokens", STARTS)
            layout = layout if regular else masked(mechanism, call.mask, True)
            return mechanism(q, call.k, asked.v, layout), ImplicitAttention(mechanism, q, call.k, layout)
        if not regular:
            what = "a mask of its own for tokens that a swapped cache goes on with"
            raise wrong("attention_mask", what, "causality and padding (2 axes)")
        kept = turn.home.replace(self, n) if kept is None else kept
        if turn.layer not in kept.held:
            kept.held[turn.layer] = Held(mechanism, mechanism.start(q.shape[0], device=q.device, dtype=q.dtype))
        new = None if keys is None else keys[:, turn.past :]
        held = kept.held[turn.layer]
        if self.attachment.watching is not None:
            held = held.showing(call.k)
        out, held = held.extend(q, call.k, asked.v, new)
        kept.held[turn.layer] = held
        every = held.keys if held.keys is not None and held.keys.shape[2] == total else None
        return out, None if every is None else ImplicitAttention(mechanism, q, every, layout)


@dataclass(frozen=True)
class Turn:
    """A causal call of a swapped layer.

    Args:
        layer: its index. home: where its past is kept. past: number of tokens of that.
        padding: of the pass, ``(batch, slots)`` bool, None where it was given no such mask.
        fresh: whether a state can begin with it.
    """

    layer: int
    home: Home
    past: int
    padding: Tensor | None
    fresh: bool


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
    length's; tokens of its latest pass can be taken back. The model's sliding window is kept to: a pattern sees what
    both let it see. A boolean mask of pairs reaches mechanisms that weigh pairs, in whole passes. A layer of a cache
    that holds a recurrence's state beside its keys, as Zamba2's, keeps them: the mechanism then computes over all.
    Attention that a model computes in its own code stays as it is, and a warning names it.

    Args:
        model: any Transformers model that calls its attention through the attention interface.
        mechanism: a name, a text such as ``"window(size=256)"`` or ``"Window(64) | Sinks(4)"``, a mechanism, a pattern;
            or one for each layer.
        layers: indices of attention layers, in order of execution; None for all. config: the mechanism's arguments.

    Raises:
        TypeError: not a Transformers model. ValueError: a mechanism with signals or parameters that would have to be
            trained, or that its block has to host in a way that the model does not; a layer with softcap, sink logits
            or position bias; a mask that adds to scores, or one of pairs for a mechanism that weighs none.
            RuntimeError: the model is watched or swapped.
    """
    model = host(model)
    if isinstance(mechanism, Mapping):
        chosen: dict[int | None, tuple[Mechanism, str]] = {
            layer: (instantiate(given, config, layer, head_dim_of(model, layer)), said(given, config))
            for layer, given in mechanism.items()
        }
    else:
        one = (instantiate(mechanism, config, head_dim=head_dim_of(model)), said(mechanism, config))
        chosen = {None: one} if layers is None else dict.fromkeys(layers, one)
    for layer in chosen:
        if layer is not None and layer < 0:
            raise wrong("layers", str(layer), "indices from 0")
    return Swap(model, chosen)


def head_dim_of(model: PreTrainedModel, layer: int = 0) -> int:
    """The size of a layer's heads, for which mechanisms with numbers of it are made; 64 where no configuration says it.

    Layers of Gemma 4 differ in it: a mechanism that depends on it and is given for all of them fails in the others.
    """
    config: Any = model.config.get_text_config()
    each = getattr(config, "per_layer_config", None) if getattr(config, "is_heterogeneous", False) else None
    if each is not None and 0 <= layer < len(each):
        config = each[layer]
    given = getattr(config, "head_dim", None)
    width, heads = (getattr(config, name, None) for name in ("hidden_size", "num_attention_heads"))
    return given or (width // heads if isinstance(width, int) and isinstance(heads, int) and heads else 64)


def instantiate(
    given: str | Mechanism | Pattern, config: Mapping[str, Any], layer: int | None = None, head_dim: int = 64
) -> Mechanism:
    """The mechanism that is meant, of one layer or of all, refused if it would have to be trained."""
    if isinstance(given, str) and PATTERN.search(given):
        given = parse_pattern(given)
    if isinstance(given, Pattern):
        given = PatternAttention(given, **config)
    elif isinstance(given, str):
        given = build_text(given, {"head_dim": head_dim, **({} if layer is None else {"layer_index": layer})}, **config)
    elif config:
        raise wrong(next(iter(config)), "an argument", "none: the mechanism is made already", TypeError)
    mechanism: Any = given
    needs = [*mechanism.signals, *(name for name, _ in mechanism.named_parameters())]
    if mechanism.layer == LayerSpec(rotary=False):
        needs.append("queries and keys without rotary positions")
    elif mechanism.layer != LayerSpec():
        needs.append("a block of its own (convolution, activation, norm or gate)")
    if needs:
        name = type(mechanism).__name__
        raise wrong("mechanism", f"{name}, which needs {', '.join(needs)}", "one that needs no training, as a window")
    return mechanism


def said(given: str | Mechanism | Pattern, config: Mapping[str, Any]) -> str:
    """A mechanism as a text from which it can be made again, or, where it was given as an object, what it is."""
    if isinstance(given, str) and not PATTERN.search(given):
        spec = parse(given)
        return str(Spec(spec.name, {**spec.arguments, **config}))
    if isinstance(given, str):
        return str(Spec("pattern", {"of": given, **config}))
    return f"a {type(given).__name__}"


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


def bidirectional(mechanism: Mechanism, mask: Tensor | None) -> Layout:
    """What a mask ``(b, h, n, m)`` says that does not hide all later keys: padding, or pairs of its own."""
    if mask is None:
        return Layout()
    keys = mask[:, 0].any(1)
    if bool((mask == keys[:, None, None]).all()):
        return Layout(key_mask=keys.expand(len(keys), -1))
    return masked(mechanism, mask, False)


def masked(mechanism: Mechanism, mask: Tensor | None, causal: bool) -> Layout:
    """A layout with a mask of pairs, refused by name for a mechanism that does not weigh pairs."""
    if mask is None or not mechanism.traits.masked:
        what = "none for several queries over more keys" if mask is None else "a mask of its own"
        wanted = f"causality and padding (2 axes): {type(mechanism).__name__} follows no other"
        raise wrong("attention_mask", what, wanted)
    return Layout(causal=causal, mask=mask)
