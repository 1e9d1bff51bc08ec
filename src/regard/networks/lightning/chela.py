"""The language model of short-long convolutions and gated linear attention."""

from __future__ import annotations

from regard.networks.lightning.chela_block import ChelaBlock
from regard.networks.lightning.lm import LightningLM
from regard.networks.lm import Config


class ChelaLM(LightningLM):
    """`LM` with `ChelaBlock` for every layer.

    Args:
        config: the sizes; its layers are ``"lightning*L"``, its rotary positions and kv heads are not used.
        length, taps: of the long and the short kernel. seed: of the weights, None for PyTorch's running generator.

    Raises:
        ValueError: layers of another mechanism, or what `ChelaBlock` refuses.

    Paper: Liu et al., arXiv 2406.08128.
    """

    def __init__(self, config: Config, length: int, taps: int = 3, seed: int | None = None) -> None:
        sizes = config.width, config.heads, config.inner_width
        super().__init__(config, seed, lambda _: ChelaBlock(*sizes, length, taps))

    def merge(self) -> ChelaLM:
        """The model itself, from now on with one kernel a layer."""
        for block in self.blocks:
            assert isinstance(block, ChelaBlock)
            block.merge()
        return self
