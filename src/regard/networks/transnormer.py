"""The language model of TransNormer blocks."""

from __future__ import annotations

import torch
from torch import nn

from regard.blocks.transnormer import RootNorm, TransnormerBlock
from regard.core.build import parse_layers
from regard.core.errors import wrong
from regard.networks.lm import LM, Config


class TransnormerLM(LM):
    """`LM` with `TransnormerBlock` for every layer, and their norm before the logits.

    Args:
        config: the sizes; its layers are ``"lightning*L"``, its rotary positions and kv heads are not used. seed: of
            the weights, None for PyTorch's running generator.

    Raises:
        ValueError: layers of another mechanism.

    Papers: Qin et al., arXiv 2405.17381 and 2307.14995.
    """

    def __init__(self, config: Config, seed: int | None = None) -> None:
        if any(layer != ("lightning", {}) for layer in parse_layers(config.layers)):
            raise wrong("layers", repr(config.layers), "lightning in each layer, such as 'lightning*2'")
        super().__init__(config, seed)
        sizes = config.width, config.heads, config.inner_width
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            blocks = (TransnormerBlock(*sizes, layer, config.depth) for layer in range(config.depth))
            self.blocks = nn.ModuleList(blocks)
        self.norm = RootNorm()
