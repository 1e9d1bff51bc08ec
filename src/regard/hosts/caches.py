"""Caches of Transformers models, known by what they are and not by the argument in which they come."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from types import MethodType
from typing import Any

from torch import nn
from transformers.cache_utils import Cache

NAMES = frozenset({"cache", "cache_params", "layer_past", "past_key_value", "past_key_values"})
"""Parameters that take a cache also where nothing is said of their type."""
TYPE = re.compile(r"(?<!Padding)Cache\b")
"""What the annotations of the others say; what is left of a convolution's past is called a padding cache."""
PARTS = ("get_seq_length", "conv_states", "rnn_state")
"""What the caches of single models have, of which one at least."""


def is_cache(value: Any) -> bool:
    """Whether it is a cache of Transformers, or of one of its models."""
    sure, named = known(type(value))
    return sure or (named and any(hasattr(value, part) for part in PARTS))


@lru_cache(256)
def known(kind: type) -> tuple[bool, bool]:
    """Whether objects of a type are caches of Transformers, and whether they are called so in one of its models."""
    named = kind.__module__.startswith("transformers.") and TYPE.search(kind.__name__) is not None
    return issubclass(kind, Cache), named


def found(arguments: Iterable[Any]) -> Iterator[Any]:
    """The caches among the arguments of a call, and among those that come in one of them by their names."""
    for value in arguments:
        if is_cache(value):
            yield value
        elif type(value) is dict:
            yield from found(value.values())


def takes(module: nn.Module) -> bool:
    """Whether a module's parameters say that it is given the past, or keeps it itself."""
    return any(
        p.name in NAMES | {"use_cache"} or TYPE.search(inspect.formatannotation(p.annotation))
        for p in parameters(module).values()
    )


def may_take(module: nn.Module) -> bool:
    """Whether a cache could come to a module at all: one of PyTorch's own, or of one parameter, is given none."""
    if type(module).__module__.startswith("torch."):
        return False
    return len(parameters(module)) > 1


def parameters(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    """Those of a module's forward pass, looked up once for all modules of its class."""
    method: Any = module.forward
    if getattr(method, "__self__", None) is not module:
        return inspect.signature(method).parameters
    return parameters_of(method.__func__)


@lru_cache(1024)
def parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Those of a method, without the object whose it is."""
    return inspect.signature(MethodType(function, function)).parameters


def embeds(module: nn.Module) -> bool:
    """Whether it learns nothing but embeddings: such a module may be given the past to number its tokens by."""
    owners = [part for part in module.modules() if any(True for _ in part.parameters(recurse=False))]
    return bool(owners) and all(isinstance(part, nn.Embedding) for part in owners)


def given(model: nn.Module, cache: Any) -> dict[str, Any]:
    """The argument by which a model's forward pass is given a cache, as its version of Transformers calls it."""
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    return {name: cache}


def own(cache: Any) -> Any:
    """The part of a cache that holds a decoder's own past."""
    return getattr(cache, "self_attention_cache", cache)


def layer(cache: Any, index: Any) -> Any:
    """A cache's layer of this index, None where it has none."""
    layers = getattr(own(cache), "layers", [])
    return layers[index] if isinstance(index, int) and 0 <= index < len(layers) else None


def length(cache: Any) -> int | None:
    """Slots that a cache holds, None where it does not know, as one of recurrent states alone."""
    try:
        slots = cache.get_seq_length()
    except (AttributeError, ValueError):
        return None
    return None if slots is None else int(slots)
