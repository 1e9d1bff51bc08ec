"""The weights that a model computes by itself: every softmax over keys of its eager attention, and what it returns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax, torch.special.softmax)
DEPTH_OF_A = 4


@dataclass(frozen=True)
class Weights:
    """A of one call ``(batch, heads, n, m)`` and where it was computed; ``sure`` unless it may be no attention."""

    place: str
    weights: Tensor
    sure: bool = True


class Softmaxes(TorchFunctionMode):
    """Notes what every softmax gives that may be attention, and the module that computed it.

    Attention has an axis of heads, alone or folded into the batch; without one it may be a router.
    """

    def __init__(self, batch: int) -> None:
        self.batch, self.modules, self.noted = batch, [""], list[Weights]()
        self.results: list[ref[Tensor]] = []
        self.used: set[int] = set()
        super().__init__()

    @property
    def found(self) -> list[Weights]:
        """Those of which something was made: a softmax whose result is thrown away attends to nothing."""
        return [one for place, one in enumerate(self.noted) if place in self.used]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.use(func, (*args, *kwargs.values()), result)
        if func in SOFTMAX:
            axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if axis in (-1, result.dim() - 1):
                self.note(result, result)
        elif func is F.scaled_dot_product_attention:
            self.note(definition(*args, **kwargs))
        elif func is F.multi_head_attention_forward:
            self.note(func(*args, **kwargs | {"need_weights": True, "average_attn_weights": False})[1])
        return result

    def use(self, func: Any, operands: tuple[Any, ...], result: Any) -> None:
        """Notes what is made of a softmax; its copy in another precision is the same yet."""
        for place, kept in enumerate(self.results):
            if kept() is not None and any(operand is kept() for operand in operands):
                if func is Tensor.to and isinstance(result, Tensor):
                    self.results[place] = ref(result)
                else:
                    self.used.add(place)

    def note(self, weights: Tensor, result: Tensor | None = None) -> None:
        sure = weights.dim() > 3 or weights.shape[0] != self.batch
        if weights.dim() == 3 and weights.shape[0] % self.batch == 0:
            weights = weights.unflatten(0, (self.batch, -1))
        if weights.dim() >= DEPTH_OF_A:
            weights = weights.flatten(0, -DEPTH_OF_A)
            self.noted.append(Weights(self.modules[-1], weights.detach().nan_to_num(0), sure))
            self.results.append(ref(weights if result is None else result))
            if result is None:  # PyTorch's operators multiply with the values themselves
                self.used.add(len(self.noted) - 1)


def definition(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """A of PyTorch's fused attention."""
    k = k.repeat_interleave(q.shape[-3] // k.shape[-3], -3) if enable_gqa else k
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1)


@contextmanager
def eagerly(model: PreTrainedModel) -> Iterator[None]:
    """The model with its own eager attention."""
    from regard.hosts.attention_interface import configurations

    before = [(config, config._attn_implementation) for config in configurations(model)]
    for config, _ in before:
        config._attn_implementation = "eager"
    try:
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation


def truth(model: PreTrainedModel, inputs: dict[str, Tensor], eager: bool = True) -> tuple[Any, list[Weights]]:
    """What a forward pass gives, by the model's eager attention or as it runs, and A of every call, in order."""
    mode = Softmaxes(len(next(iter(inputs.values()))))
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: mode.modules.append(name)))
        handles.append(module.register_forward_hook(lambda *_: mode.modules.pop() and None, always_call=True))
    try:
        with eagerly(model) if eager else nullcontext(), torch.no_grad(), mode:
            torch.manual_seed(0)
            out = model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return out, mode.found
