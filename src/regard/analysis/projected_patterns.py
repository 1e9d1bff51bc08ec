"""Patterns given to a pretrained encoder: narrow attention layers of patterns beside each of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from regard.analysis.human_patterns import InjectedAttention, pattern_masks, sentences_of
from regard.core.errors import wrong
from regard.hosts.sites import blocks_of

PADDING = "keys"
"""Under which name the keys that are no padding stand beside the masks, ``(b, n)``."""


class RealKeys(InjectedAttention):
    """`InjectedAttention` of padded texts, whose rows give nothing to padding."""

    def weights(self, x: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
        a = super().weights(x, masks)
        if PADDING not in masks:
            return a
        real = a * masks[PADDING][:, None, None]
        return real / real.sum(3, keepdim=True)


class ProjectedPatterns(nn.Module):
    """Projected attention layers whose heads have patterns: each block of an encoder adds D · attention(E · h).

        h' = norm(h + block(h) + D InjectedAttention(E h)),   E (s, c) and D (c, s) shared by all blocks

    What is added goes in where a block normalises at its end, as BERT's do, or behind it where it does not. D starts
    from zero, so that the encoder is as it was.

    Args:
        model: a pretrained encoder of Transformers. patterns: of the heads of each layer, None for learned ones.
            narrow: s, a multiple of the heads. stop: the token that ends sentences.

    Raises:
        ValueError: a model that generates, whose rows must not see what follows; heads that do not divide s.

    Papers: Li et al., arXiv 2112.05364; the layers: Stickland and Murray, 1902.02671.
    """

    def __init__(
        self, model: Any, patterns: Sequence[str | None], narrow: int = 48, stop: int = 0, seed: int = 0
    ) -> None:
        super().__init__()
        if model.can_generate() or getattr(model.config, "is_decoder", False):
            raise wrong("model", type(model).__name__, "an encoder: patterns look at what follows")
        width, layers = model.config.hidden_size, model.config.num_hidden_layers
        self.stop = stop
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encode = nn.Linear(width, narrow, bias=False)
            self.attention = nn.ModuleList(RealKeys(narrow, patterns) for _ in range(layers))
            self.decode = nn.Linear(narrow, width, bias=False)
        nn.init.zeros_(self.decode.weight)

    def added(self, layer: int, h: Tensor, ids: Tensor, keys: Tensor | None) -> Tensor:
        """What the layer adds to the states ``h (b, n, c)`` that come into it."""
        masks = pattern_masks(ids, sentences_of(ids, self.stop))
        if keys is not None:
            masks = {name: shown & keys[:, None] for name, shown in masks.items()} | {PADDING: keys}
        out, _ = self.attention[layer](self.encode(h), masks)
        return self.decode(out)

    @contextmanager
    def inside(self, model: Any) -> Iterator[None]:
        """The encoder with these layers while the block lasts; its gradients reach them, and it is as it was after."""
        seen: dict[Any, Any] = {}

        def noted(module: nn.Module, inputs: Any, given: dict[str, Any]) -> None:
            mask = given.get("attention_mask")
            seen["ids"] = given["input_ids"] if "input_ids" in given else inputs[0]
            seen["keys"] = None if mask is None else mask.bool()

        def states(layer: int) -> Any:
            def hook(module: nn.Module, inputs: Any, given: dict[str, Any]) -> None:
                seen[layer] = inputs[0] if inputs else given["hidden_states"]

            return hook

        def adds(layer: int) -> Any:
            def hook(module: nn.Module, inputs: Any, out: Any) -> Any:
                more = self.added(layer, seen.pop(layer), seen["ids"], seen["keys"])
                return (out[0] + more, *out[1:]) if isinstance(out, tuple) else out + more

            return hook

        with ExitStack() as stack:
            stack.callback(model.register_forward_pre_hook(noted, with_kwargs=True).remove)
            for layer, block in enumerate(blocks_of(model)):
                stack.callback(block.module.register_forward_pre_hook(states(layer), with_kwargs=True).remove)
                stack.callback(end_of(block.module).register_forward_hook(adds(layer)).remove)
            yield


def end_of(block: nn.Module) -> nn.Module:
    """The module behind which is added: that before the norm of a block which ends with one, else the block."""
    last: Any = getattr(block, "output", None)
    return last.dense if hasattr(last, "dense") and hasattr(last, "LayerNorm") else block
