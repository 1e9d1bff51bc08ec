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
    claim=Claim(
        text="the merged kernel equals the two convolutions to 1e-5; tiles equal quadratic linear attention to 1e-4; "
        "time a token within 15% from 1k to 16k tokens; nested lists 3 points above linear attention alone",
        status="partly",
        figure="equal within 1e-5 and 1e-4, 1e-9 in float64; forward and backward of 16,384 tokens on a CPU thread: "
        "time a token at 4k and 16k over that at 1k 0.93 and 1.11 with 1,024 taps, 1.05 and 1.30 with as many taps as "
        "tokens; nested lists of 24 tokens, 400 steps: 42.2% and 42.7% against 40.2% and 40.8% without "
        "convolutions: 2 points, not 3",
        command="pytest tests/claims/test_chela.py",
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
