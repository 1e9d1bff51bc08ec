"""Following the layers of a Transformers model that are no attention calls: reading some, naming the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.hosts import caches
from regard.hosts.implied import Implied
from regard.hosts.passes import Pass, Passes, arguments
from regard.hosts.scans import Notes, Scan, scan_of
from regard.hosts.session import Session

CLOSE = 1e-4
"""Relative error between a layer's scan and the rows read of it, as the law of definition has it in float32."""
CLOSE_HALF = 2e-2
"""The same in half precision."""


@dataclass
class Memory:
    """What a layer's tokens so far were, kept while a cache goes on.

    Args:
        cache: that goes on. parts: each ``(b, tokens, …)``. keys: ``(b, tokens)`` bool, False = padding.
    """

    cache: Any
    parts: list[Tensor]
    keys: Tensor


class Follower:
    """Hooks in the layers of ``model`` that are no attention calls, until `remove`.

    Args:
        session: that is shown what can be read. passes: in which the model is.
    """

    def __init__(self, model: PreTrainedModel, session: Session, passes: Passes) -> None:
        self.session, self.passes = session, passes
        self.memories: dict[str, Memory] = {}
        self.handles: list[Any] = []
        for name, module in model.named_modules():
            scan = scan_of(module)
            if scan is not None:
                self.follow(name, module, scan)

    def remove(self) -> None:
        """Takes the hooks out."""
        for handle in self.handles:
            handle.remove()

    def unread(self, done: Pass) -> list[str]:
        """Modules that are given the past and ran, but neither hold nor stand in one that was read; the innermost."""
        read = [call + "." for call in done.calls]
        left = [
            name
            for name in sorted(done.ran)
            if not any(f"{name}.".startswith(call) or call.startswith(f"{name}.") for call in read)
        ]
        return [name for name in left if not any(other.startswith(f"{name}.") for other in left)]

    def follow(self, name: str, layer: nn.Module, scan: Scan) -> None:
        """Listens to a layer that can be read."""
        notes = Notes()

        def enter(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            notes.clear()
            notes.given = arguments(layer, args, kwargs)
            notes.cache = next(caches.found(notes.given.values()), None)
            notes.begun = notes.cache is not None and notes.cache.has_previous_state(layer.layer_idx)

        def listen(part: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                notes.into[part], notes.out[part] = args[0].detach(), output.detach()

            return hook

        def leave(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.show(name, layer, scan, notes)

        self.handles += [
            layer.register_forward_pre_hook(enter, with_kwargs=True),
            layer.register_forward_hook(leave),
            *(layer.get_submodule(part).register_forward_hook(listen(part)) for part in scan.parts),
        ]

    @torch.no_grad()
    def show(self, name: str, layer: nn.Module, scan: Scan, notes: Notes) -> None:
        """Shows the session what a layer's scan, which has just run, attended to."""
        if set(notes.into) != set(scan.parts):
            what = f"{name}, whose {type(layer).__name__} ran as one fused kernel"
            raise wrong("model", what, "it in evaluation mode, where its parts can be listened to", RuntimeError)
        place, turn = self.passes.locate(name)
        name = name if turn == 0 else f"{name}#{turn}"
        memory = self.remember(name, scan.tokens(layer, notes), notes, notes.given.get("attention_mask"))
        keys = None if memory.keys.all() else memory.keys
        reading = scan.read(layer, memory.parts, keys, notes)
        n = reading.given.shape[2]
        queries = reading.q[:, :, reading.q.shape[2] - n :]
        source = Implied(reading.mechanism, queries, reading.k, Layout(True, keys), reading.signals)
        tokens = place.tokens if place.tokens is not None and place.tokens.ids.shape == memory.keys.shape else None
        most = CLOSE if memory.parts[0].dtype in (torch.float32, torch.float64) else CLOSE_HALF

        def check(rows: Tensor, weights: Tensor) -> None:
            error = reading.error(rows, weights, memory.keys[:, rows + source.shift])
            if not error <= most:
                what = f"{name}, whose {type(layer).__name__} gave outputs {error:.0e} off the rows of {reading.name}"
                wanted = f"at most {most:g}: it does not go on from the tokens that this watch has seen"
                raise wrong("model", what, wanted, RuntimeError)

        self.session.implied(name, reading.name, source, tokens, self.passes.sequence, check)

    def remember(self, name: str, parts: list[Tensor], notes: Notes, mask: Tensor | None) -> Memory:
        """The layer's tokens so far, with the new ``parts``."""
        new = parts[0].shape[1]
        keys = torch.ones(parts[0].shape[:2], dtype=torch.bool, device=parts[0].device)
        keys = keys if mask is None else mask[:, -new:].bool()
        before = self.memories.pop(name, None)
        if notes.begun:
            if before is None or before.cache is not notes.cache:
                what = f"one that {name} goes on with, begun outside of the watch"
                raise wrong("past_key_values", what, "a cache that begins inside", RuntimeError)
            parts = [torch.cat(pair, dim=1) for pair in zip(before.parts, parts, strict=True)]
            keys = torch.cat([before.keys, keys], dim=1)
        memory = Memory(notes.cache, parts, keys)
        if notes.cache is not None:
            self.memories[name] = memory
            self.passes.counted[notes.cache] = keys.shape[1]
        return memory
