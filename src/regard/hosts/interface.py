"""The attention interface of Transformers: putting a function of ours in, and taking it out again."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from regard.core.errors import wrong

PREFIX = "regard_"
REFUSED = {
    "cache": "a paged cache, whose keys are not in order",
    "indices": "a selection of keys",
    "block_indices": "a selection of keys",
}
"""Keywords of the interface that change A in ways that are not followed here."""

naming = threading.Lock()


class Installed:
    """An attention function in a model, until `remove`.

    Args:
        model: any Transformers model. function: what its attention modules call from now on.
        purpose: a word for what it does there, which errors repeat.

    Raises:
        TypeError: not a Transformers model. RuntimeError: another function of ours is in it already.
    """

    def __init__(self, model: PreTrainedModel, function: Callable[..., Any], purpose: str) -> None:
        check_model(model)
        configs = configurations(model)
        refuse_taken(model, configs)
        self.before = [(config, config._attn_implementation) for config in configs]
        self.name = register(function, purpose)
        model.config._attn_implementation = self.name
        for config in configs:
            config._attn_implementation = self.name

    def remove(self) -> None:
        """Gives every part of the model back the function that it had."""
        for config, implementation in self.before:
            config._attn_implementation = implementation
        del ALL_ATTENTION_FUNCTIONS[self.name]


def check_model(model: Any) -> None:
    """Raises a TypeError unless it is a Transformers model."""
    if not isinstance(model, PreTrainedModel):
        raise wrong("model", f"a {type(model).__name__}", "a Transformers model (PreTrainedModel)", TypeError)


def register(function: Callable[..., Any], purpose: str) -> str:
    """Makes an attention function known to Transformers under a free name, together with stock masks.

    Without a mask function of the same name Transformers would leave all masks out. It cannot be taken back by
    public means, so the few names that are ever in use at once stay, each for Transformers' own ``sdpa_mask``.
    """
    with naming:
        names = (f"{PREFIX}{purpose}_{i}" for i in itertools.count())
        name = next(name for name in names if name not in ALL_ATTENTION_FUNCTIONS)
        ALL_ATTENTION_FUNCTIONS[name] = function
    AttentionMaskInterface.register(name, sdpa_mask)
    return name


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


def refuse_taken(model: PreTrainedModel, configs: list[PreTrainedConfig]) -> None:
    """Raises a RuntimeError if a watch or a swap is on the model, or on another that shares a configuration with it."""
    for config in configs:
        given = str(config._attn_implementation)
        if given.startswith(PREFIX):
            doing = {"watch": "being watched", "swap": "swapped"}[given.removeprefix(PREFIX).split("_")[0]]
            raise wrong(
                "model",
                f"{label(model)}, which is {doing} already or shares its configuration with a model that is",
                "one watch or swap at a time: leave the other first, or give it all that you want",
                RuntimeError,
            )


def label(model: nn.Module) -> str:
    return type(model).__name__


def refuse_unknown(model: nn.Module, keywords: dict[str, Any], purpose: str) -> None:
    """Raises a ValueError for a keyword of the interface that changes A in a way that is not followed."""
    for name in REFUSED.keys() & keywords.keys():
        if keywords[name] is not None:
            raise wrong(name, REFUSED[name], f"a model without it: {purpose} cannot follow {label(model)}")


def split_mask(mask: Tensor | None, bias: Tensor | None, m: int) -> tuple[Tensor | None, Tensor | None]:
    """``(what may be seen, what is added to the scores)``: a float mask of a user is both."""
    bias = None if bias is None else bias[..., :m]
    if mask is None:
        return None, bias
    mask = mask[..., :m]
    if mask.dtype == torch.bool:
        return mask, bias
    seen = mask > torch.finfo(mask.dtype).min / 2
    added = mask.masked_fill(~seen, 0)
    if bias is not None:
        return seen, bias + added
    return seen, added if bool(added.any()) else None
