"""The language model of TransNormer blocks."""

from __future__ import annotations

from regard.networks.lightning.lm import LightningLM
from regard.networks.lightning.transnormer_block import RootNorm, TransnormerBlock
from regard.networks.lm import Config


class TransnormerLM(LightningLM):
    """`LM` with `TransnormerBlock` for every layer, and their norm before the logits.

    Args:
        config: the sizes; its layers are ``"lightning*L"``, its rotary positions and kv heads are not used. seed: of
            the weights, None for PyTorch's running generator.

    Raises:
        ValueError: layers of another mechanism.

    Papers: Qin et al., arXiv 2405.17381 and 2307.14995.
    """

    def __init__(self, config: Config, seed: int | None = None) -> None:
        sizes, depth = (config.width, config.heads, config.inner_width), config.depth
        super().__init__(config, seed, lambda layer: TransnormerBlock(*sizes, layer, depth))
        self.norm = RootNorm()
