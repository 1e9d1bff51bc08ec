"""Following the layers of a Transformers model that are no attention calls: reading some, naming the others."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.hosts import caches
from regard.hosts.forward_pass import Pass, PassTracker, arguments, recomputing
from regard.hosts.mechanism_call import ImplicitAttention
from regard.hosts.recurrent_layers import Activations, RecurrentLayer, recurrent_layer_of
from regard.hosts.session import Session

PACKAGES = {"fla": "fla-core", "mamba_ssm": "mamba-ssm", "causal_conv1d": "causal-conv1d"}
"""Modules of GPU kernels that Transformers takes wherever they are installed, and what is installed."""
CLOSE = 1e-4
"""Relative error between a layer's scan and the rows read of it, as the law of definition has it in float32."""
CLOSE_HALF = 2e-2
"""The same in half precision, relative to what is summed: bfloat16 rounds by up to 2^-9 each of the five or so products
that a fused layer makes of a token before and after its scan, and outputs may cancel to far less than their terms."""


@dataclass
class TokenHistory:
    """What a layer's tokens so far were, kept while a cache goes on.

    Args:
        parts: each ``(b, tokens, …)``. keys: ``(b, tokens)`` bool, False = padding.
        state: what the cache held of the layer afterwards, where it shows that.
    """

    parts: list[Tensor]
    keys: Tensor
    state: Tensor | None = None

    def going_on(self, state: Tensor | None) -> TokenHistory | None:
        """The memory of the sequences that a cache holds by now, which a search may have exchanged or dropped.

        Args:
            state: that the cache holds by now. None is given back if one of its sequences is none of those before.
        """
        if state is self.state or state is None or self.state is None:
            return self
        if state.shape[1:] != self.state.shape[1:]:
            return None
        same = torch.stack([(self.state == row).flatten(1).all(1) for row in state])
        rows = same.int().argmax(1)
        return TokenHistory([part[rows] for part in self.parts], self.keys[rows]) if bool(same.any(1).all()) else None


class RecurrentHooks:
    """Hooks in the layers of ``model`` that are no attention calls, until `remove`.

    Args:
        session: that is shown what can be read. passes: in which the model is.
    """

    def __init__(self, model: PreTrainedModel, session: Session, passes: PassTracker) -> None:
        self.model, self.session, self.passes = model, session, passes
        self.memories: WeakKeyDictionary[Any, dict[str, TokenHistory]] = WeakKeyDictionary()
        self.handles: list[Any] = []
        for name, module in model.named_modules():
            scan = recurrent_layer_of(module)
            if scan is not None:
                self.follow(name, module, scan)

    def remove(self) -> None:
        """Takes the hooks out."""
        for handle in self.handles:
            handle.remove()

    def unread(self, done: Pass) -> list[str]:
        """Modules that are given the past and ran, but neither hold nor stand in one that was read; the innermost.

        Short convolutions are left out: of a token's past they see a few neighbours, each channel its own.
        """
        read = [call + "." for call in done.calls]
        holding = {name for name in done.ran if any(call.startswith(f"{name}.") for call in read)}
        left = [name for name in sorted(done.ran - holding) if not any(f"{name}.".startswith(call) for call in read)]
        innermost = [name for name in left if not any(other.startswith(f"{name}.") for other in left)]
        holders = {self.kind(name) for name in holding}  # a block around attention here and around an MLP there
        left = [name for name in innermost if self.kind(name) not in holders]
        return [name for name in left if not convolves(self.model.get_submodule(name))]

    def kind(self, name: str) -> str:
        """The class of a module."""
        return type(self.model.get_submodule(name)).__name__

    def follow(self, name: str, layer: nn.Module, scan: RecurrentLayer) -> None:
        """Listens to a layer that can be read."""
        notes, kernels = Activations(), kernels_of(layer)

        def enter(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if kernels and not interpreted() and next(layer.parameters()).device.type == "cpu":
                what = f"{name}, whose {type(layer).__name__} runs its scan by {kernels}'s GPU kernels, on a CPU"
                wanted = f"it on a GPU, or an environment without {kernels}: Transformers then runs it by PyTorch"
                raise wrong("model", what, wanted, RuntimeError)
            notes.clear()
            notes.given = arguments(layer, args, kwargs)
            notes.cache = next(caches.found(notes.given.values()), None)
            notes.begun = scan.begun(layer, notes)
            if notes.begun:
                self.go_on(name, notes.cache, scan.state(layer, notes.cache))

        def listen(part: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                notes.into[part], notes.out[part] = args[0].detach(), output.detach()

            return hook

        def leave(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if not recomputing():
                with saved_tensors_hooks(lambda x: x, lambda x: x):  # checkpointing counts what its own have seen
                    self.show(name, layer, scan, notes, coarse=bool(kernels))
            notes.clear()

        self.handles += [
            layer.register_forward_pre_hook(enter, with_kwargs=True),
            layer.register_forward_hook(leave),
            *(layer.get_submodule(part).register_forward_hook(listen(part)) for part in scan.heard(layer)),
        ]

    @torch.no_grad()
    def show(self, name: str, layer: nn.Module, scan: RecurrentLayer, notes: Activations, coarse: bool) -> None:
        """Shows the session what a layer's scan, which has just run, attended to.

        ``coarse``: it ran by GPU kernels, which multiply float32 as TF32.
        """
        if not set(notes.into) >= set(scan.parts):
            what = f"{name}, whose {type(layer).__name__} ran as one fused kernel"
            raise wrong("model", what, "it in evaluation mode, where its parts can be listened to", RuntimeError)
        place, turn = self.passes.locate(name)
        name = name if turn == 0 else f"{name}#{turn}"
        with alike(name, layer):
            passed = scan.tokens(layer, notes)
        memory = self.remember(name, passed, notes)
        memory.state = None if notes.cache is None else scan.state(layer, notes.cache)
        keys = None if memory.keys.all() else memory.keys
        with alike(name, layer):
            reading = scan.read(layer, memory.parts, notes)
        n = reading.given.shape[2]
        queries = reading.q[:, :, reading.q.shape[2] - n :]
        source = ImplicitAttention(reading.mechanism, queries, reading.k, Layout(True, keys), reading.signals)
        tokens = place.tokens if place.tokens is not None and place.tokens.ids.shape == memory.keys.shape else None
        dtype = memory.parts[0].dtype
        half = torch.finfo(dtype).bits < 32
        rounded = half or coarse
        most = CLOSE_HALF if rounded else CLOSE

        def check(rows: Tensor, weights: Tensor) -> None:
            error = reading.error(rows, weights, memory.keys[:, rows + source.shift], rounded)
            if not error <= most:
                what = f"{name}, whose {type(layer).__name__} gave outputs {error:.0e} off the rows of {reading.name}"
                wanted = f"at most {most:g}: it does not go on from the tokens that this watch has seen"
                wanted += f", or loses as much by rounding to {dtype if half else 'TF32'}" if rounded else ""
                raise wrong("model", what, wanted, RuntimeError)

        self.session.implied(name, reading.name, source, tokens, self.passes.sequence, check)

    def go_on(self, name: str, cache: Any, state: Tensor | None) -> None:
        """Puts what is remembered of a layer into the order of the sequences in the cache, which is ``state``."""
        held = self.memories.get(cache, {})
        for turn in [turn for turn in held if turn.split("#")[0] == name]:
            now = held[turn].going_on(state)
            if now is None:
                what = f"one whose state of {name} is not what this watch has seen it become"
                raise wrong(
                    "past_key_values", what, "a cache that was changed by the model alone, or reordered", RuntimeError
                )
            held[turn] = now

    def remember(self, name: str, parts: list[Tensor], notes: Activations) -> TokenHistory:
        """The layer's tokens so far, with the new ``parts``."""
        cache, mask = notes.cache, notes.given.get("attention_mask")
        keys = torch.ones(parts[0].shape[:2], dtype=torch.bool, device=parts[0].device)
        keys = keys if mask is None else mask[:, -parts[0].shape[1] :].bool()
        held = {} if cache is None else self.memories.setdefault(cache, {})
        before = held.pop(name, None)
        if notes.begun:
            if before is None:
                what = f"one that {name} goes on with, begun outside of the watch"
                raise wrong("past_key_values", what, "a cache that begins inside", RuntimeError)
            parts = [torch.cat(pair, dim=1) for pair in zip(before.parts, parts, strict=True)]
            keys = torch.cat([before.keys, keys], dim=1)
        held[name] = TokenHistory(parts, keys)
        if cache is not None:
            self.passes.counted[cache] = keys.shape[1]
        return held[name]


@contextmanager
def alike(name: str, layer: nn.Module) -> Iterator[None]:
    """Names a layer that has the parts of a known kind, but of other shapes."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        what = f"{name}, whose {type(layer).__name__} has the parts of a layer that can be read, but not their shapes"
        raise wrong("model", f"{what} ({error})", "one that is made like those", RuntimeError) from error


def kernels_of(layer: nn.Module) -> str:
    """The package of GPU kernels by which Transformers runs a layer's scan, "" where it runs it by PyTorch."""
    forward = inspect.unwrap(type(layer).forward)
    named = [forward.__globals__.get(name) or vars(layer).get(name) for name in forward.__code__.co_names]
    cells = [cell.cell_contents for one in named for cell in getattr(one, "__closure__", None) or ()]
    sources = {getattr(one, "__module__", None) or "" for one in (*named, *cells) if callable(one)}
    return next((PACKAGES[name] for name in PACKAGES if name in {source.split(".")[0] for source in sources}), "")


def interpreted() -> bool:
    """Whether Triton's kernels run on a CPU too."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def convolves(module: nn.Module) -> bool:
    """Whether all that a module can do across tokens is a depthwise convolution: it holds some, and else only maps."""
    parts = [part for part in module.modules() if part is not module]
    depthwise = [part for part in parts if isinstance(part, nn.Conv1d) and part.groups == part.in_channels > 1]
    others = [
        part
        for part in parts
        if not isinstance(part, nn.Linear) and next(part.parameters(recurse=False), None) is not None
    ]
    return bool(depthwise) and len(others) == len(depthwise) and next(module.parameters(recurse=False), None) is None
