"""Softmax attention that a model computes in its own code, caught where its weights meet the values.

A function mode hears what the watched model calls of PyTorch in a forward pass. A softmax is attention if what it
gives, whole, is multiplied with values over the axis that it sums to one; then that factor is A. Routers, classifiers
and codebooks are not: they meet a parameter, or a choice. What a softmax weighs in any other way is no A that could be
read, and its module is named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Protocol
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from regard.hosts.forward_pass import PassTracker
from regard.hosts.softmax_call import SoftmaxCall, masked_scores
from regard.hosts.softmax_traces import PRODUCTS, RESHAPING, Source, Trace, contracted, moved, tensors

FAR = 5000.0
"""A score this far below the largest of its row is a hidden one: a mask's numbers are larger, scores never."""
SOFTMAX = {F.softmax, torch.softmax, Tensor.softmax, torch.special.softmax}
CHOICES = {"argmax", "argsort", "gather", "log", "max", "min", "multinomial", "sort", "topk"}
"""Functions that choose by a softmax instead of weighing with it."""
LENGTHENING = {
    F.avg_pool1d, F.avg_pool2d, F.conv1d, F.conv2d, F.conv3d, F.embedding, F.interpolate, F.layer_norm, F.linear,
    F.max_pool2d, F.pad, F.rms_norm, torch.addmm, torch.cat, torch.conv1d, torch.conv2d,
}  # fmt: skip
"""Functions whose results have the tokens as an axis, or as two."""
HEARD = {*SOFTMAX, *LENGTHENING, F.scaled_dot_product_attention, F.multi_head_attention_forward}
"""Functions that are of interest before any softmax was traced."""


class Reader(Protocol):
    """What is shown the attention that was caught."""

    def caught(self, module: nn.Module, weights: Tensor, visible: Tensor | None) -> None:
        """Takes A ``(batch, heads, n, m)`` and what of it may be seen, None for all."""
        ...


class Softmaxes(TorchFunctionMode):
    """The function mode, and the hooks that say which module runs, until `remove`.

    Args:
        model: whose passes are heard. passes: in which it is. reader: who is shown A.
    """

    def __init__(self, model: PreTrainedModel, passes: PassTracker, reader: Reader) -> None:
        super().__init__()
        self.passes, self.reader = passes, reader
        self.running: list[nn.Module] = []
        self.batches: list[int] = []
        self.deaf = False
        self.traces: dict[int, tuple[Any, Trace]] = {}
        self.shapes: set[torch.Size] = set()
        self.lost: list[nn.Module] = []
        self.handles: list[Any] = []
        for module in model.modules():
            if not is_leaf(module):
                self.handles.append(module.register_forward_pre_hook(self.enter, with_kwargs=True))
                self.handles.append(module.register_forward_hook(self.leave, always_call=True, prepend=True))

    def remove(self) -> None:
        """Takes the hooks out."""
        for handle in self.handles:
            handle.remove()

    def aside(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, not heard while it runs."""

        @wraps(function)
        def quiet(*args: Any, **kwargs: Any) -> Any:
            before, self.deaf = self.deaf, True
            try:
                return function(*args, **kwargs)
            finally:
                self.deaf = before

        return quiet

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The hook before a module; the mode begins with the outermost model."""
        if not self.passes.here:
            return
        if not self.running:
            self.traces, self.shapes, self.lost, self.deaf = {}, set(), [], False
            self.__enter__()
        self.running.append(module)
        batch = self.batches[-1] if self.batches else 1
        if isinstance(module, PreTrainedModel):
            batch = next((one.shape[0] for one in tensors((*args, *kwargs.values())) if one.dim() > 1), batch)
        self.batches.append(batch)

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """The hook after a module, also after one that raised."""
        if not self.passes.here or not any(one is module for one in self.running):
            return
        while self.running[-1] is not module:
            self.drop()
        self.drop()
        if not self.running:
            self.traces = {}
            self.__exit__(None, None, None)

    def drop(self) -> None:
        self.running.pop()
        self.batches.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self.deaf and (func in HEARD or self.traces):
            with torch.no_grad():
                self.hear(func, args, kwargs, result)
        return result

    def hear(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Takes in one call of PyTorch."""
        name = getattr(func, "__name__", "")
        if func in SOFTMAX:
            self.begin(args, kwargs, result)
        elif func is F.scaled_dot_product_attention:
            if not self.give(*weights_of_call(*args, **kwargs)):
                self.lost.append(self.running[-1])
        elif func is F.multi_head_attention_forward:
            self.reader.caught(self.running[-1], *weights_of_heads(args, kwargs))
        else:
            if func in LENGTHENING and isinstance(result, Tensor):
                self.shapes.add(result.shape)
            if self.traces:
                self.follow(name, args, kwargs, result)

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        """Takes in a softmax; without an axis of sequences, its rows are no queries."""
        axis = kwargs["dim"] if "dim" in kwargs else args[1]
        if result.dim() > 2 and axis is not None:
            source = Source(self.running[-1], next(tensors((*args, *kwargs.values()))).detach())
            self.note(result, Trace(source, axis if axis < 0 else axis - result.dim()))

    def of(self, tensor: Tensor) -> Trace | None:
        """What is known of a tensor."""
        held = self.traces.get(id(tensor))
        return held[1] if held is not None and held[0]() is tensor else None

    def note(self, result: Any, trace: Trace) -> None:
        """Remembers a tensor, or each of several."""
        for one in tensors((result,)):
            self.traces[id(one)] = (ref(one), trace)

    def lose(self, *traces: Trace | None) -> None:
        """Names the modules of softmaxes that weigh something in a way that is not read."""
        for trace in traces:
            if trace is not None and (trace.product or not trace.source.read):
                self.lost.append(trace.source.module)

    def unread(self, names: Mapping[int, str]) -> list[str]:
        """The names of modules whose softmax weighed something in the last pass, and was not read."""
        return list(dict.fromkeys(names[id(module)] for module in self.lost))

    def follow(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Takes in a call that may have been given weights, or something made of them."""
        operands = list(tensors((*args, *kwargs.values())))
        given, trace = next(((one, t) for one in operands if (t := self.of(one)) is not None), (None, None))
        if given is None or trace is None:
            return
        if name in PRODUCTS:
            self.consume(name, args, operands[-2:], result)
        elif trace.product:
            if name in RESHAPING or name in ("transpose", "permute", "contiguous", "to", "squeeze"):
                self.note(result, trace)
        elif name in ("sum", "mean"):
            self.lose(trace if trace.weighed else None)
        elif name in CHOICES or (name == "linear" and trace.key == -1):
            return
        elif isinstance(result, Tensor):
            self.note(result, moved(name, trace, given, args, result))
        else:
            self.note(result, Trace(trace.source, None, False, weighed=trace.weighed))

    def consume(self, name: str, args: tuple[Any, ...], factors: list[Tensor], result: Tensor) -> None:
        """Takes in a product: of weights and values, or of what cannot be read."""
        if len(factors) < 2 or any(isinstance(one, nn.Parameter) or one.dim() < 3 for one in factors):
            return
        traced = [self.of(one) for one in factors]
        which = 0 if traced[0] is not None else 1
        trace = traced[which]
        assert trace is not None
        if trace.product or traced[1 - which] is not None:
            self.lose(*traced)
        elif not trace.source.read:
            weights = contracted(name, args, factors, which, trace)
            if weights is None or not self.show(weights.detach(), trace):
                self.lose(trace)
            else:
                trace.source.read = True
                self.note(result, Trace(trace.source, None, product=True))

    def show(self, weights: Tensor, trace: Trace) -> bool:
        """Shows A to the reader, if it is of tokens; returns whether it is."""
        n, m = weights.shape[-2:]
        known = {length for shape in self.shapes for length in lengths(shape)} | {n + self.passes.stack[-1].past}
        if weights.dim() > 4 or n not in known or m not in known:
            return False
        if weights.dim() == 3:
            if weights.shape[0] % self.batches[-1]:
                return False
            weights = weights.unflatten(0, (self.batches[-1], -1))
        visible = weights != 0
        if trace.plain and trace.source.scores.numel() == weights.numel():
            scores = trace.source.scores.float()
            visible = scores > scores.amax(-1, keepdim=True) - FAR
        visible = None if bool(visible.all()) else visible.reshape(weights.shape)
        return self.give(weights, visible)

    def give(self, weights: Tensor, visible: Tensor | None) -> bool:
        """Gives A ``(b, h, n, m)`` to the reader; not if its heads are the tokens, each with several streams in it."""
        tokens = self.passes.stack[-1].new
        if weights.shape[1] == tokens and tokens not in weights.shape[2:]:
            return False
        self.reader.caught(self.running[-1], weights, visible)
        return True


def is_leaf(module: nn.Module) -> bool:
    """Whether it is one of PyTorch's own modules that mixes no tokens."""
    own = type(module).__module__.startswith("torch.nn.") and not isinstance(module, nn.MultiheadAttention)
    return own and next(module.children(), None) is None


def lengths(shape: torch.Size) -> set[int]:
    """What may be a number of tokens in a result: an axis that is not of channels, or those of a grid together."""
    grids = [shape[-4:-1], shape[-3:-1], shape[-2:], shape[-3:]] if len(shape) > 3 else []
    return {*shape[-3:-1], *(shape[-1:] if len(shape) == 3 else ()), *(grid.numel() for grid in grids)}


def weights_of_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """A ``(batch, heads, n, m)`` of PyTorch's fused attention, of one head where none are apart, and its mask."""
    q, k = (one.flatten(0, -4) if one.dim() > 3 else one.reshape(-1, 1, *one.shape[-2:]) for one in (query, key))
    mask, bias = None, None
    if attn_mask is not None:
        every = attn_mask.expand(*query.shape[:-1], key.shape[-2]).reshape(*q.shape[:3], -1)
        mask = every if every.dtype == torch.bool else every > every.amax(-1, keepdim=True) - FAR
        bias = None if every.dtype == torch.bool else every.masked_fill(~mask, 0)
    scaling = query.shape[-1] ** -0.5 if scale is None else scale
    call = SoftmaxCall(q, k, scaling, is_causal, mask=mask, bias=bias)
    rows = torch.arange(call.n, device=q.device)
    visible = call.visible(rows, 0, call.m)
    weights = masked_scores(call, rows).softmax(-1).nan_to_num(0)
    return weights, None if visible is None else visible.expand_as(weights)


def weights_of_heads(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """A ``(batch, heads, n, m)`` of PyTorch's module of several heads, and what of it is not zero."""
    asked = {"training": False, "need_weights": True, "average_attn_weights": False}
    weights = F.multi_head_attention_forward(*args, **kwargs | asked)[1]
    assert weights is not None
    weights = weights if weights.dim() == 4 else weights[None]
    visible = weights != 0
    return weights, None if bool(visible.all()) else visible
