"""The language model of TransNormer blocks."""

from __future__ import annotations

from collections.abc import Sequence

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample
from regard.networks.lightning.lm import LightningLM
from regard.networks.lightning.transnormer_block import RootNorm, TransnormerBlock
from regard.networks.lm import Config, text_sample


@published(
    "transnormer",
    family="linear",
    kind="network",
    row=90,
    title="Various Lengths, Constant Speed: Efficient Language Modeling with Lightning Attention",
    arxiv="2405.17381",
    year=2024,
    aliases=("tnl", "transnormer_llm"),
    claim=Claim(
        text="equals the recurrent and the quadratic form to 1e-5, gradients too; tokens a second within 15% from 1k "
        "to 16k tokens at a fixed number of tokens a batch",
        status="works",
        figure="equal to 3e-15 in float64; forward and backward of 16,384 tokens a batch on a CPU thread: tokens a "
        "second at 4k and 16k over those at 1k 0.97 and 0.93",
        command="pytest tests/claims/test_transnormer.py",
    ),
)
class TransnormerLM(LightningLM):
    """A causal language model of gated lightning attention, forgetting faster in lower layers, and gated networks.

    `LM` with `TransnormerBlock` for every layer, and their norm before the logits.

    Args:
        config: the sizes; its layers are ``"lightning*L"``, its rotary positions and kv heads are not used. seed: of
            the weights, None for PyTorch's running generator.

    Raises:
        ValueError: layers of another mechanism.

    Papers: Qin et al., arXiv 2405.17381 and 2307.14995.
    """

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [text_sample("2 layers", cls(Config(29, 24, "lightning*2", heads=3, inner=17), seed=0))]

    def __init__(self, config: Config, seed: int | None = None) -> None:
        sizes, depth = (config.width, config.heads, config.inner_width), config.depth
        super().__init__(config, seed, lambda layer: TransnormerBlock(*sizes, layer, depth))
        self.norm = RootNorm()
