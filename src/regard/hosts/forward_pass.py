"""Where in its sequence a forward pass of a Transformers model stands."""

from __future__ import annotations

import inspect
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from regard.core.errors import wrong
from regard.core.tile import Tokens
from regard.hosts import caches
from regard.hosts.attention_arguments import Asked
from regard.hosts.cache_history import History, Past
from regard.hosts.slots import Handed, Slots, slots_of

TOKENS = ("input_ids", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds")
"""Arguments that give a pass its tokens, one of them for each slot."""


@dataclass
class Pass:
    """One forward pass of a model or of a model inside it.

    Args:
        module: whose pass it is; None for an attention call outside of any.
        cache: that it was given, None for none. past: number of slots that this held before.
        tokens: of all slots so far, where they are known.
        keys: ``(batch, slots)`` bool, False = padding, where the pass was given a mask of two axes. masked: whether it,
            or that which it is part of, was given any.
        new: number of tokens that it was given, None where it was given none.
        encoded: whether it was given another sequence to attend to. target: the ids for the decoder inside of it.
        weights: whether it is asked for its weights.
        handed: what the modules in it were given, by their names, those of passes inside it too. latest: what the last
            of its own was.
        calls: how often each attention module was called in an outermost pass. ran: other modules that are given the
            past, and ran in it. begun: what its cache held before, in an outermost one.
    """

    module: nn.Module | None = None
    cache: Any = None
    past: int = 0
    tokens: Tokens | None = None
    keys: Tensor | None = None
    masked: bool = False
    new: int | None = None
    encoded: bool = False
    target: Tensor | None = None
    weights: bool = False
    handed: dict[str, Handed] = field(default_factory=dict)
    latest: Handed | None = None
    calls: Counter[str] = field(default_factory=Counter)
    ran: set[str] = field(default_factory=set)
    begun: Past = field(default_factory=lambda: Past(-1))

    @property
    def itself(self) -> Handed:
        """What it was given."""
        return Handed(self.cache, self.past, self.cache is not None, self.new)


class PassTracker:
    """Follows the forward passes of ``model`` and of the models inside it by hooks, which `remove` takes out.

    The innermost running pass says where an attention call stands: an encoder inside an encoder-decoder has no
    past, its decoder has that of its cache.

    Args:
        finished: called with every outermost pass that raised nothing.
    """

    def __init__(self, model: PreTrainedModel, finished: Callable[[Pass], None]) -> None:
        self.finished = finished
        self.stack: list[Pass] = []
        self.history = History()
        self.running = threading.Lock()
        self.owner: int | None = None
        self.handles: list[Any] = []
        self.counted: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # tokens in caches that do not know it
        for name, module in model.named_modules():
            if isinstance(module, PreTrainedModel):
                self.handles.append(module.register_forward_pre_hook(self.enter, with_kwargs=True))
                self.handles.append(module.register_forward_hook(self.leave, always_call=True))
            elif caches.may_take(module) and not caches.embeds(module):
                hook = self.hand(name, caches.takes(module))
                self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def remove(self) -> None:
        """Takes the hooks out of the model."""
        for handle in self.handles:
            handle.remove()

    @property
    def here(self) -> bool:
        """Whether this thread is in a forward pass."""
        return bool(self.stack) and self.owner == threading.get_ident()

    @property
    def real(self) -> dict[str, Tensor]:
        """Which tokens of the running sequence are no padding: see `cache_history.Past`."""
        return self.stack[0].begun.real if self.stack else {}

    @property
    def notes(self) -> dict[str, Tensor]:
        """What edits remember of the running sequence: see `cache_history.Past`."""
        return self.stack[0].begun.notes if self.stack else {}

    @property
    def sequence(self) -> int:
        """The number of the sequence that is in the running pass."""
        return self.stack[0].begun.sequence if self.stack else -1

    def locate(self, name: str) -> tuple[Pass, int]:
        """``(the innermost running pass, how often the attention module was called before in the outermost)``."""
        if self.owner not in (None, threading.get_ident()):
            raise RuntimeError(BUSY)
        if not self.stack:
            return Pass(), 0
        calls = self.stack[0].calls
        calls[name] += 1
        return self.stack[-1], calls[name] - 1

    def turn(self, name: str) -> int:
        """How often the attention module was called so far in the outermost running pass."""
        return self.stack[0].calls[name] if self.stack else 0

    def handed(self, place: Pass, name: str) -> Handed:
        """What an attention module was given in a pass, or else the pass itself."""
        return place.handed.get(name, place.itself)

    def slots(self, place: Pass, name: str, module: nn.Module, n: int, m: int) -> Slots | None:
        """Where ``n`` queries over ``m`` keys of an attention module stand, None if the keys are another sequence."""
        handed, index = self.handed(place, name), getattr(module, "layer_idx", None)
        found = slots_of(n, m, handed, index)
        return slots_of(n, m, place.itself, index) if found is None and handed.cache is None else found

    def crosses(self, place: Pass, name: str, slots: Slots | None, asked: Asked) -> bool:
        """Whether a module attends to another sequence: it is not causal in a pass that was given one, say."""
        if slots is not None:
            return place.encoded and not asked.declared and not asked.call.causal
        handed = self.handed(place, name)
        return not asked.declared or place.encoded or asked.call.m in handed.others or handed.cache is None

    @property
    def weights(self) -> bool:
        """Whether the running pass is asked for its attention weights."""
        return bool(self.stack) and self.stack[-1].weights

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The hook before a pass."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            what = f"a pass of {type(module).__name__} that is traced, as for export"
            raise wrong("model", what, "it outside of a watch or swap, which run in Python", RuntimeError)
        if self.owner != threading.get_ident():
            if not self.running.acquire(blocking=False):
                raise RuntimeError(BUSY)
            self.owner = threading.get_ident()
        opened = Pass(module)
        self.stack.append(opened)
        given = arguments(module, args, kwargs)
        opened.cache = next(caches.found(given.values()), None)
        opened.past, opened.keys = self.length(opened.cache), padding(given)
        outer = self.stack[-2] if len(self.stack) > 1 else Pass()
        opened.masked = outer.masked or given.get("attention_mask") is not None
        if opened.keys is None and made_already(given):
            opened.keys = outer.keys
        opened.encoded = given.get("encoder_hidden_states") is not None
        opened.target = given.get("decoder_input_ids", outer.target)
        opened.new = next((given[name].shape[1] for name in TOKENS if isinstance(given.get(name), Tensor)), None)
        opened.weights = self.asks_for_weights(module, given)
        if len(self.stack) == 1 and not recomputing():
            opened.begun = self.history.of(opened.cache, opened.past)
        opened.tokens = self.tokens(opened, outer, given.get("input_ids"))

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """The hook after a pass, also after one that raised."""
        if self.owner != threading.get_ident():
            return
        done = self.stack.pop()
        if self.stack:
            self.stack[-1].handed |= done.handed
            return
        self.owner = None
        self.running.release()
        if recomputing():
            return
        for cache in {id(held.cache): held.cache for held in [done, *done.handed.values()]}.values():
            if cache is not None:
                self.history.put(cache, done.begun)
        if output is not None:
            self.finished(done)

    def hand(self, name: str, listed: bool) -> Callable[..., None]:
        """The hook before a module that may be given the past, as its parameters say where they are ``listed``."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self.stack or self.owner != threading.get_ident():
                return
            cache, lengths = None, []
            for value in (*args, *kwargs.values()):
                if is_states(value):
                    lengths.append(value.shape[1])
                elif cache is None and value is not None:
                    cache = next(caches.found((value,)), None)
            if listed or cache is not None:
                self.stack[0].ran.add(name)
            inner, others = self.stack[-1], frozenset(lengths[1:])
            last = inner.latest
            if last is None or last.cache is not cache or last.others != others:
                known = [held.past for held in (inner.itself, *inner.handed.values()) if held.cache is cache]
                past = known[0] if known else self.length(cache)
                last = Handed(cache, past, any(cache is held.cache for held in self.stack), inner.new, others)
            inner.handed[name] = inner.latest = last

        return hook

    def asks_for_weights(self, module: nn.Module, given: Mapping[str, Any]) -> bool:
        """Whether the pass, or that which it is part of, is asked to return its attention weights."""
        asked = given.get("output_attentions")
        if asked is None and len(self.stack) > 1:
            return self.stack[-2].weights
        return bool(getattr(module.config, "output_attentions", False) if asked is None else asked)

    def length(self, cache: Any) -> int:
        """Slots that a cache holds; 0 for none."""
        if cache is None:
            return 0
        slots = caches.length(cache)
        return self.counted.get(cache, 0) if slots is None else slots

    def tokens(self, opened: Pass, outer: Pass, ids: Any) -> Tokens | None:
        """The ids of the slots so far: those of earlier passes with the same cache, then the new ones.

        A pass inside another has the tokens of that one, unless it is given another sequence and that one is not: then
        it is a decoder, of tokens of its own. A part that is given no tokens, as that which sees an image, has none.
        """
        if opened.new is None:
            return None
        past, same = opened.past, outer.module is not None and (outer.encoded or not opened.encoded)
        if same and past == outer.past and (outer.tokens is not None or not isinstance(ids, Tensor)):
            return outer.tokens
        ids = ids if isinstance(ids, Tensor) or same else outer.target
        if not isinstance(ids, Tensor):
            return None
        written, module = self.stack[0].begun.ids, id(opened.module)
        earlier = written.get(module)
        if past and (earlier is None or earlier.shape[0] != ids.shape[0] or earlier.shape[1] < past):
            return None
        ids = ids if not past or earlier is None else torch.cat([earlier[:, :past], ids], dim=1)
        written[module] = ids
        return Tokens(ids)


BUSY = str(
    wrong("model", "a forward pass from a second thread", "one at a time under a watch: give each thread its own model")
)


def recomputing() -> bool:
    """Whether this thread runs backward, where checkpointing computes again what the model did."""
    return torch._C._current_graph_task_id() != -1


def is_states(value: Any) -> bool:
    """Whether it is a sequence of hidden states, ``(batch, length, channels)``."""
    return isinstance(value, Tensor) and value.dim() == 3 and value.is_floating_point()


def arguments(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a module is called with, by name."""
    if not args:
        return dict(kwargs)
    return dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | dict(kwargs)


def padding(given: Mapping[str, Any]) -> Tensor | None:
    """The pass's two-dimensional attention mask as bool."""
    mask = given.get("attention_mask")
    return mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None


def made_already(given: Mapping[str, Any]) -> bool:
    """Whether the pass is given masks that the pass around it has made of its own padding."""
    mask = given.get("attention_mask")
    return isinstance(mask, Mapping) or (isinstance(mask, Tensor) and mask.dim() == 4)
