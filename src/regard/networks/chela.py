"""The language model of short-long convolutions and gated linear attention."""

from __future__ import annotations

import torch
from torch import nn

from regard.blocks.short_long import ChelaBlock
from regard.core.build import parse_layers
from regard.core.errors import wrong
from regard.networks.lm import LM, Config


class ChelaLM(LM):
    """`LM` with `ChelaBlock` for every layer.

    Args:
        config: the sizes; its layers are ``"lightning*L"``, its rotary positions and kv heads are not used.
        length, taps: of the long and the short kernel. seed: of the weights, None for PyTorch's running generator.

    Raises:
        ValueError: layers of another mechanism, or what `ChelaBlock` refuses.

    Paper: Liu et al., arXiv 2406.08128.
    """

    def __init__(self, config: Config, length: int, taps: int = 3, seed: int | None = None) -> None:
        if any(layer != ("lightning", {}) for layer in parse_layers(config.layers)):
            raise wrong("layers", repr(config.layers), "lightning in each layer, such as 'lightning*2'")
        super().__init__(config, seed)
        sizes = config.width, config.heads, config.inner_width
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.blocks = nn.ModuleList(ChelaBlock(*sizes, length, taps) for _ in range(config.depth))

    def merge(self) -> ChelaLM:
        """The model itself, from now on with one kernel a layer."""
        for block in self.blocks:
            assert isinstance(block, ChelaBlock)
            block.merge()
        return self
