"""What a model asks of the attention function of Transformers' interface, read in one place."""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from regard.core.errors import wrong
from regard.hosts.caches import is_cache
from regard.hosts.softmax_call import SoftmaxCall

READ = (
    "query",
    "key",
    "value",
    "attention_mask",
    "dropout",
    "scaling",
    "is_causal",
    "softcap",
    "s_aux",
    "sinks",
    "position_bias",
    "sliding_window",
    "indices",
)
"""Arguments that are followed here, in the order in which the interface takes the first four."""
REFUSED = {"cache": "a paged cache, whose keys are not in order", "block_indices": "a selection of keys"}
"""Others that change A, whichever model gives them."""
HIDDEN = -9e3
"""What is that far below the largest entry of its row of an additive mask, or of zero, is hidden: models write −1e4,
−65504 or the lowest number of their precision, and the exponential of either is zero."""


@dataclass(frozen=True)
class Asked:
    """One call of the attention function.

    Args:
        module: that makes it. q, k, v: as in `Call`. call: what of it A follows from, the mask read into two.
        declared: whether the module says that it is causal. dropout: of the weights.
        window: how many keys back a row sees, where the model says so. biased: the argument that adds to the scores,
            None where none does.
    """

    module: nn.Module
    v: Tensor
    call: SoftmaxCall
    declared: bool
    dropout: float
    window: int | None
    biased: str | None

    def causal(self, before: int) -> bool:
        """Whether no query sees a later key, where ``before`` keys stand before the first query's own."""
        if self.call.causal or self.call.n == 1:
            return self.call.causal or self.declared
        mask = self.call.mask
        return mask is not None and not bool(mask.triu(before + 1).any())


class Reader:
    """Reads the calls of one model.

    Args:
        model: whose they are. verb: what is done with it, which errors repeat.
    """

    def __init__(self, model: nn.Module, verb: str) -> None:
        self.model, self.verb = model, verb
        self.forget()

    def forget(self) -> None:
        """Lets go of the latest mask."""
        self.latest: Any = lambda: None
        self.read_of_it = Mask()

    def read(
        self, eager: bool, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], before: int = 0
    ) -> Asked:
        """A call, made in the way of the model's eager attention or of PyTorch's: without a mask the first sees all.

        Its mask may be about ``before`` keys that the call is not given.
        """
        given: dict[str, Any] = dict(zip(READ, args, strict=False)) | dict(kwargs)
        self.refuse(module, given)
        q, k, v = (given[name] for name in READ[:3])
        n, m = q.shape[2], k.shape[2] + before
        declared = given.get("is_causal")
        declared = bool(getattr(module, "is_causal", True) if declared is None else declared)
        mask = self.mask(given.get("attention_mask"), n, m)
        alone = given.get("attention_mask") is None and declared and n > 1 and not eager
        if alone and m > n:
            k, v, m = k[:, :, :n], v[:, :, :n], n
        seen, bias = mask.seen, added(mask.bias, given.get("position_bias"), n, m)
        if given.get("indices") is not None:
            chosen = selected(given["indices"], m)
            seen = chosen if seen is None else seen & chosen
        sinks, scaling = given.get("sinks", given.get("s_aux")), given.get("scaling")
        call = SoftmaxCall(
            q,
            k,
            q.shape[3] ** -0.5 if scaling is None else float(scaling),
            alone or mask.causal,
            mask=seen,
            bias=bias,
            softcap=given.get("softcap"),
            sinks=sinks if sinks is None or sinks.dim() == 1 else sinks.flatten(2),
        )
        dropout = given.get("dropout", 0.0) if module.training else 0.0
        biased = "attention_mask" if mask.bias is not None else "position_bias" if bias is not None else None
        return Asked(module, v, call, declared, dropout, given.get("sliding_window"), biased)

    def mask(self, given: Tensor | None, n: int, m: int) -> Mask:
        """A mask, read once for all layers that are given the same one."""
        if given is None:
            return Mask()
        if given.requires_grad:
            return read_mask(given, n, m)
        if self.latest() is not given or self.read_of_it.sizes != (n, m, given._version):
            self.latest, self.read_of_it = weakref.ref(given), read_mask(given, n, m)
        return self.read_of_it

    def refuse(self, module: nn.Module, given: Mapping[str, Any]) -> None:
        """Raises a ValueError for an argument that changes A in a way that is not followed."""
        for name in [name for name, value in given.items() if name not in READ and value is not None]:
            what = REFUSED.get(name)
            if name == "cache" and is_cache(given[name]):
                continue
            if what is None and name in own_arguments(type(module).__module__):
                what = "an argument that the model's own attention function reads"
            if what is not None:
                wanted = f"a model without it: {self.verb} cannot follow {type(self.model).__name__}"
                raise wrong(name, what, wanted)


@cache
def own_arguments(file: str) -> frozenset[str]:
    """What the attention functions of a model's ``file`` and PyTorch's read of the arguments that they are given."""
    functions = [ALL_ATTENTION_FUNCTIONS["sdpa"], getattr(sys.modules[file], "eager_attention_forward", None)]
    names = {name for function in functions if callable(function) for name in inspect.signature(function).parameters}
    return frozenset(names - {"module", "kwargs"})


@dataclass(frozen=True)
class Mask:
    """What a mask means.

    Args:
        seen: ``(batch or 1, heads or 1, n, m)`` bool, what may be seen; None for all, or, if ``causal``, the keys up to
            the query. bias: the same shape, what is added to the scores. sizes: n, m and the version of what was read.
    """

    seen: Tensor | None = None
    bias: Tensor | None = None
    causal: bool = False
    sizes: tuple[int, int, int] = (0, 0, 0)


def read_mask(mask: Tensor, n: int, m: int) -> Mask:
    """Reads a mask of fewer axes or entries, too, which may be additive or boolean."""
    sizes = n, m, mask._version
    seen, bias = split_mask(spread(mask[..., :m], n, m, "attention_mask"))
    if bias is None and n == m > 1 and bool((seen == seen.new_ones(n, m).tril()).all()):
        return Mask(causal=True, sizes=sizes)
    return Mask(None if bool(seen.all()) else seen, bias, sizes=sizes)


def split_mask(mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """``(what may be seen, what is added to the scores)``: an additive mask is both."""
    if mask.dtype == torch.bool:
        return mask, None
    highest = mask.amax(-1, keepdim=True)
    seen = mask > highest.masked_fill(highest <= HIDDEN, 0) + HIDDEN
    bias = mask.masked_fill(~seen, 0)
    return seen, bias if bool(bias.any()) else None


def added(bias: Tensor | None, position_bias: Tensor | None, n: int, m: int) -> Tensor | None:
    """The sum of what a mask and a position bias add to the scores."""
    if position_bias is None:
        return bias
    position_bias = spread(position_bias[..., :m], n, m, "position_bias")
    return position_bias if bias is None else bias + position_bias


def spread(entries: Tensor, n: int, m: int, name: str) -> Tensor:
    """A mask or bias as ``(batch or 1, heads or 1, n, m)``, however few axes or entries it has."""
    entries = entries.reshape(*(1,) * (4 - entries.dim()), *entries.shape)
    if entries.shape[2] not in (1, n) or entries.shape[3] not in (1, m):
        wanted = f"(…, {n} or 1, {m} or 1): the queries and keys of the call"
        raise wrong(name, f"shape {tuple(entries.shape)}", wanted)
    return entries.expand(-1, -1, n, m)


def selected(indices: Tensor, m: int) -> Tensor:
    """``(batch, 1, n, m)`` bool of the keys that ``indices (batch, n, top)`` name, as sparse attention picks them."""
    chosen = torch.zeros(*indices.shape[:2], m, dtype=torch.bool, device=indices.device)
    return chosen.scatter_(2, indices.long(), True)[:, None]
