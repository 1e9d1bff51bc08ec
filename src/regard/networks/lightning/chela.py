"""The language model of short-long convolutions and gated linear attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample
from regard.networks.lightning.chela_block import ChelaBlock
from regard.networks.lightning.lm import LightningLM
from regard.networks.lm import Config, text_sample


@published(
    "chela",
    family="linear",
    kind="network",
    row=42,
    title="Short-Long Convolutions Help Hardware-Efficient Linear Attention to Focus on Long Sequences",
    arxiv="2406.08128",
    year=2024,
    aliases=("short_long_convolution",),
    fidelity="hand values",
    claim=(
        Claim(
            "the merged kernel equals the two convolutions",
            cells="long_texts.merged_kernel",
            holds="common.within(most=1e-5)",
        ),
        Claim(
            "tiles equal quadratic linear attention",
            cells="long_texts.chela_block",
            holds="long_texts.is_its_equations",
        ),
        Claim(
            "time a token within 15% from 1k to 16k tokens",
            cells="long_texts.time_of(block=chela)",
            holds="long_texts.within_15_percent",
        ),
        Claim(
            "nested lists 3 points above linear attention alone",
            cells="long_texts.nested_lists",
            holds="long_texts.three_points_above",
        ),
    ),
)
class ChelaLM(LightningLM):
    """A causal language model of gated linear attention whose layers read a short and a long convolution.

    `LM` with `ChelaBlock` for every layer.

    Args:
        config: the sizes; its layers are ``"lightning*L"``, its rotary positions and kv heads are not used.
        length, taps: of the long and the short kernel. seed: of the weights, None for PyTorch's running generator.

    Raises:
        ValueError: layers of another mechanism, or what `ChelaBlock` refuses.

    Paper: Liu et al., arXiv 2406.08128.
    """

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        found = text_sample("2 layers", cls(Config(29, 24, "lightning*2", heads=3, inner=17), length=7, seed=0))
        return [replace(found, given={**found.given, "counted": False})]

    def __init__(self, config: Config, length: int, taps: int = 3, seed: int | None = None) -> None:
        sizes = config.width, config.heads, config.inner_width
        super().__init__(config, seed, lambda _: ChelaBlock(*sizes, length, taps))

    def merge(self) -> ChelaLM:
        """The model itself, from now on with one kernel a layer."""
        for block in self.blocks:
            assert isinstance(block, ChelaBlock)
            block.merge()
        return self
