"""The attention interface of Transformers: putting a function of ours in, and taking it out again."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any
from weakref import WeakMethod, finalize

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from regard.core.errors import wrong

PREFIX = "regard_"
naming = threading.Lock()


class Borrowed:
    """A method as Transformers' tables hold it: they know it for as long as its object lives, and do not keep that."""

    def __init__(self, method: MethodType, eager: bool) -> None:
        self.method, self.eager = WeakMethod(method), eager

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        method = self.method()
        assert method is not None, "hooks in the model keep it"
        return method(*args, eager=self.eager, **kwargs)

    @property
    def owner(self) -> Any:
        """The method's object."""
        return getattr(self.method(), "__self__", None)


class Quick(Borrowed):
    """An attention function that is tried before another one, which is called where it gives None.

    Args:
        first: an object that is called as such a function is, and is not kept. other: the function behind it.
    """

    def __init__(self, first: Any, other: Borrowed) -> None:
        super().__init__(first.__call__, other.eager)
        self.other = other

    def __call__(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        first = self.method()
        out = first(module, *args, **kwargs) if first is not None and len(args) == 4 else None
        return self.other(module, *args, **kwargs) if out is None else (out, None)

    @property
    def owner(self) -> Any:
        return self.other.owner


class Installed:
    """An attention function in a model, until `remove` or until nobody has the model any more.

    Parts of the model that PyTorch's attention can compute are given that one's masks, which are left out where they
    would be causal or empty; the others those of their eager attention, which knows no such way.

    Args:
        model: any Transformers model. function: the method that its attention modules call from now on; told as
            ``eager`` whether they are given the masks of eager attention. The model keeps its object.
    """

    def __init__(self, model: PreTrainedModel, function: MethodType) -> None:
        configs = configurations(model)
        self.interfaces = interfaces(model)
        before = [(config, config._attn_implementation) for config in configs]
        eager = eager_parts(model, configs)
        self.names = {kind: self.register(Borrowed(function, kind), kind) for kind in (False, True)}
        self.remove = finalize(function.__self__, given_back, before, self.interfaces, [*self.names.values()])
        model.config._attn_implementation = self.names[id(model.config) in eager]
        for config in configs:
            config._attn_implementation = self.names[id(config) in eager]

    def try_first(self, function: Any) -> None:
        """Has an object called before the method, see `Quick`; None for the method alone."""
        for interface in self.interfaces:
            for name in self.names.values():
                last = interface[name]
                last = last.other if isinstance(last, Quick) else last
                interface[name] = last if function is None else Quick(function, last)

    def register(self, function: Callable[..., Any], eager: bool) -> str:
        """Makes an attention function known to Transformers under a free name, together with stock masks.

        Without a mask function of the same name Transformers would leave all masks out. It cannot be taken back by
        public means, so the few names that are ever in use at once stay, each for Transformers' own mask functions.
        """
        kind, mask = ("eager", eager_mask) if eager else ("fused", sdpa_mask)
        with naming:
            names = (f"{PREFIX}{kind}_{i}" for i in itertools.count())
            name = next(name for name in names if name not in ALL_ATTENTION_FUNCTIONS)
            for interface in self.interfaces:
                interface[name] = function
        AttentionMaskInterface.register(name, mask)
        return name


def given_back(
    before: Sequence[tuple[PreTrainedConfig, str | None]], tables: Sequence[AttentionInterface], names: Sequence[str]
) -> None:
    """Gives every part of a model back the function that it had, and takes ours out of the tables."""
    for config, implementation in before:
        config._attn_implementation = implementation
    for table in tables:
        for name in names:
            if name in table:
                del table[name]


def interfaces(model: nn.Module) -> list[AttentionInterface]:
    """Where the model's attention modules look for their function: Transformers' table, and those of single models."""
    found = {id(ALL_ATTENTION_FUNCTIONS): ALL_ATTENTION_FUNCTIONS}
    for file in dict.fromkeys(type(module).__module__ for module in model.modules()):
        found |= {id(table): table for table in tables(file)}
    return list(found.values())


def tables(file: str) -> list[AttentionInterface]:
    """The tables of attention functions that a file of modules knows."""
    return [value for value in vars(sys.modules[file]).values() if isinstance(value, AttentionInterface)]


def eager_parts(model: nn.Module, configs: list[PreTrainedConfig]) -> set[int]:
    """The identities of those configurations whose part of the model PyTorch's attention cannot compute.

    Code that knows no table of attention functions takes the way of its eager attention under a name of ours.
    """
    owners = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    found = set()
    for config in configs:
        capable = [
            module._supports_sdpa and bool(tables(type(module).__module__))
            for module in owners
            if module.config is config
        ]
        if not all(capable) or (not capable and config._attn_implementation == "eager"):
            found.add(id(config))
    return found


def host(model: Any) -> PreTrainedModel:
    """The Transformers model that is meant: itself, or that which an adapter was put into.

    Raises:
        TypeError: no such model; the message says where others that hold one keep it. RuntimeError: it is compiled.
    """
    if callable(getattr(model, "get_base_model", None)):  # a PeftModel, whose layers stand in the model itself
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        inside = next((way for name, way in WAYS.items() if hasattr(model, name)), None)
        wanted = "a Transformers model (PreTrainedModel)" + ("" if inside is None else f": {inside}")
        raise wrong("model", f"a {type(model).__name__}", wanted, TypeError)
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            what = f"{label(model)}, of which {name or 'all'} is compiled"
            raise wrong("model", what, "it uncompiled, as hooks in what is compiled are not heard", RuntimeError)
    return model


WAYS = {
    "_orig_mod": "what was compiled, model._orig_mod, and to run that",
    "_first_module": "that of a SentenceTransformer, model[0].auto_model",
    "preprocess": "that of a pipeline, pipeline.model",
    "module": "what is run in parallel, model.module",
}
"""Where what is no Transformers model keeps one, by an attribute that tells it."""


def configurations(model: nn.Module) -> list[PreTrainedConfig]:
    """Every configuration that a part of the model reads, a whole before its parts."""
    found: dict[int, PreTrainedConfig] = {}

    def add(config: PreTrainedConfig) -> None:
        found.setdefault(id(config), config)
        for key in config.sub_configs:
            part = getattr(config, key, None)
            if isinstance(part, PreTrainedConfig):
                add(part)

    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig):
            add(config)
    return list(found.values())


def owner(model: PreTrainedModel, config: PreTrainedConfig) -> Any:
    """What has put its function into a part of a model, by the configuration that the part reads; None for nobody."""
    given = str(config._attn_implementation)
    if not given.startswith(PREFIX):
        return None
    function = next((table[given] for table in interfaces(model) if given in table), None)
    return function.owner if isinstance(function, Borrowed) else None


def label(model: nn.Module) -> str:
    return type(model).__name__
