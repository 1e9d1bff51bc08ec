"""What language models of other blocks around Lightning attention share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from regard.core.errors import wrong
from regard.core.spec import Layer, Spec, parse_layers
from regard.networks.lm import LM, Config


class LightningLM(LM):
    """`LM` with a block of its own for every layer.

    Args:
        config: the sizes; its layers are ``"lightning*L"``. seed: of the weights, None for PyTorch's running generator.
        made: the block of a layer, from its number.

    Raises:
        ValueError: layers of another mechanism.
    """

    def __init__(self, config: Config, seed: int | None, made: Callable[[int], nn.Module]) -> None:
        if any(layer != Layer(Spec("lightning")) for layer in parse_layers(config.layers)):
            raise wrong("layers", repr(config.layers), "lightning in each layer, such as 'lightning*2'")
        super().__init__(config, seed)
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.blocks = nn.ModuleList(made(layer) for layer in range(config.depth))
