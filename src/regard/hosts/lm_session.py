"""Watching a language model of ours: the rows of A of every layer, whatever its mechanism."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from regard.core.errors import wrong
from regard.core.spec import parse_layers
from regard.core.tile import Tokens
from regard.hosts.mechanism_call import ImplicitAttention
from regard.hosts.session import Session
from regard.networks import LM


class LMSession(Session):
    """The session of an `LM`: hooks before its attention layers, from `install` to `remove`.

    Args:
        model: the watched model; the rest as for `Session`.
    """

    def __init__(self, model: LM, *about: Any) -> None:
        super().__init__(*about)
        self.model, self.sequence, self.tokens = model, -1, None
        self.handles: list[Any] = []

    def install(self) -> None:
        """Puts the hooks in.

        Raises:
            RuntimeError: those of another watch are in it.
        """
        if "extend" in vars(self.model):
            raise wrong("model", "an LM, which is being watched already", "one watch at a time", RuntimeError)
        self.handles = [
            self.model.register_forward_pre_hook(self.enter, with_kwargs=True),
            self.model.register_forward_hook(lambda *_: self.refuse_absent("the LM")),
        ]
        texts = [str(layer.mechanism) for layer in parse_layers(self.model.config.layers)]
        for index, (block, text) in enumerate(zip(self.model.layers, texts, strict=True)):
            self.handles.append(block.attention.register_forward_pre_hook(self.before(index, text), with_kwargs=True))
        self.model.extend = refuse

    def remove(self) -> None:
        """Takes them out."""
        if self.handles:
            del self.model.extend
        for handle in self.handles:
            handle.remove()

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The hook before a pass."""
        ids = args[0] if args else kwargs["ids"]
        self.sequence += 1
        self.tokens = Tokens(ids)

    def before(self, index: int, text: str) -> Callable[..., None]:
        """The hook before a layer's attention."""

        @torch.no_grad()
        def show(layer: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            x, layout = arguments
            told = {name: copy.copy(value) for name, value in named.items()}
            q, k, v, signals = layer.inputs(x, layout, **told)
            linear = layer.mechanism.traits.linear
            source = ImplicitAttention(layer.mechanism, q, k, layout, signals, None if linear else v)
            self.implied(f"blocks.{index}.attention", text, source, self.tokens, self.sequence)

        return show


def refuse(ids: Tensor, *others: Any, **named: Any) -> Any:
    """Stands in for `LM.extend` under a watch."""
    raise wrong(
        "extend", "a call under a watch", "a whole pass, model(ids): a state holds no rows of A to show", RuntimeError
    )
