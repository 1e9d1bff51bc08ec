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

CACHES = ("past_key_values", "cache_params")
"""Arguments under which a model is given its cache."""


@dataclass
class Pass:
    """One forward pass of a model or of a model inside it.

    Args:
        module: whose pass it is; None for an attention call outside of any.
        past: number of slots that its cache held before. tokens: of all slots so far, where they are known.
        keys: ``(batch, slots)`` bool, False = padding, where the pass was given a mask.
        encoded: whether it was given another sequence to attend to. cache: that it was given, None for none.
        calls: how often each attention module was called in an outermost pass. ran: other modules that are given the
            past, and ran in it.
    """

    module: nn.Module | None = None
    past: int = 0
    tokens: Tokens | None = None
    keys: Tensor | None = None
    encoded: bool = False
    cache: Any = None
    calls: Counter[str] = field(default_factory=Counter)
    ran: set[str] = field(default_factory=set)


class Passes:
    """Follows the forward passes of ``model`` and of the models inside it by hooks, which `remove` takes out.

    The innermost running pass says where an attention call stands: an encoder inside an encoder-decoder has no
    past, its decoder has that of its cache.

    Args:
        finished: called with every outermost pass that raised nothing.
    """

    def __init__(self, model: PreTrainedModel, finished: Callable[[Pass], None]) -> None:
        self.finished = finished
        self.stack: list[Pass] = []
        self.sequence = -1
        self.history: dict[int, Tensor] = {}
        self.running = threading.Lock()
        self.owner: int | None = None
        self.handles: list[Any] = []
        self.counted: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # tokens in caches that do not know it
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                self.handles.append(module.register_forward_pre_hook(self.enter, with_kwargs=True))
                self.handles.append(module.register_forward_hook(self.leave, always_call=True))

    def remove(self) -> None:
        """Takes the hooks out of the model."""
        for handle in self.handles:
            handle.remove()

    @property
    def here(self) -> bool:
        """Whether this thread is in a forward pass."""
        return bool(self.stack) and self.owner == threading.get_ident()

    def locate(self, name: str) -> tuple[Pass, int]:
        """``(the innermost running pass, how often the attention module was called before in the outermost)``."""
        if self.owner not in (None, threading.get_ident()):
            raise RuntimeError(BUSY)
        if not self.stack:
            return Pass(), 0
        calls = self.stack[0].calls
        calls[name] += 1
        return self.stack[-1], calls[name] - 1

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The hook before a pass."""
        if self.owner != threading.get_ident():
            if not self.running.acquire(blocking=False):
                raise RuntimeError(BUSY)
            self.owner = threading.get_ident()
        opened = Pass(module)
        self.stack.append(opened)
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        given = given | given.get("kwargs", {})
        opened.cache = next((given[name] for name in CACHES if given.get(name) is not None), None)
        opened.past, opened.keys = self.length(opened.cache), padding(given)
        opened.encoded = given.get("encoder_hidden_states") is not None
        if len(self.stack) == 1 and opened.past == 0:
            self.sequence += 1
        opened.tokens = self.tokens(module, opened.past, given)

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """The hook after a pass, also after one that raised."""
        if self.owner != threading.get_ident():
            return
        done = self.stack.pop()
        if self.stack:
            return
        self.owner = None
        self.running.release()
        if output is not None:
            self.finished(done)

    def length(self, cache: Any) -> int:
        """Slots that a Transformers cache holds; 0 for none. One of recurrent states alone does not know."""
        if cache is None:
            return 0
        try:
            return int(cache.get_seq_length())
        except ValueError:
            return self.counted.get(cache, 0)

    def tokens(self, module: nn.Module, past: int, given: Mapping[str, Any]) -> Tokens | None:
        """The ids of the slots so far: those of earlier passes with the same cache, then the new ones."""
        outer = self.stack[-2] if len(self.stack) > 1 else None
        ids = given.get("input_ids")
        if not isinstance(ids, Tensor):
            return outer.tokens if outer is not None and past == outer.past else None
        if outer is not None and outer.tokens is not None and past == outer.past:
            return outer.tokens
        earlier = self.history.get(id(module))
        if past and (earlier is None or earlier.shape[0] != ids.shape[0] or earlier.shape[1] < past):
            return None
        ids = ids if not past or earlier is None else torch.cat([earlier[:, :past], ids], dim=1)
        self.history[id(module)] = ids
        return Tokens(ids)


BUSY = str(
    wrong("model", "a forward pass from a second thread", "one at a time under a watch: give each thread its own model")
)


def padding(given: Mapping[str, Any]) -> Tensor | None:
    """The pass's two-dimensional attention mask as bool."""
    mask = given.get("attention_mask")
    return mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None
