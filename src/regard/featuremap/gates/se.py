"""Squeeze and excitation, and its effective form."""

from __future__ import annotations

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample
from regard.featuremap.composed import Composed


@published(
    "se",
    family="featuremap",
    kind="gate",
    title="Squeeze-and-Excitation Networks",
    arxiv="1709.01507",
    year=2017,
    fidelity="third-party code",
    aliases=("squeeze_excitation",),
    claim=Claim(
        "in the 16 blocks of ResNet-50 it has the 2.5 million parameters that the paper prints",
        cells="featuremap.adds(gate='se(bias=False)')",
        holds="featuremap.is_printed(printed=2.5)",
    ),
)
class SqueezeExcitation(Composed):
    """Channels are weighed by two layers over their means: ``σ(W_2 relu(W_1 mean(x)))``.

    Parameters: 2 c h + (h + c with biases), h = c / ratio rounded to the divisor.

    Args:
        channels: c. ratio, divisor: of the bottleneck, see `Mlp`; timm's default divisor is 8. bias: of both layers.
        activation: between them, relu or silu.

    Paper: Hu et al., arXiv 1709.01507.
    """

    def __init__(
        self, channels: int, ratio: float = 16, divisor: int = 1, bias: bool = True, activation: str = "relu"
    ) -> None:
        mix = f"mlp(ratio={ratio}, divisor={divisor}, bias={bias}, activation={activation})"
        super().__init__(channels, mix=mix)

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("se", cls(12, ratio=4)), Sample("se, no bias", cls(24, 3, 8, False, "silu"))]


@published(
    "ese",
    family="featuremap",
    kind="gate",
    title="CenterMask: Real-Time Anchor-Free Instance Segmentation",
    arxiv="1911.06667",
    year=2019,
    fidelity="third-party code",
    claim=Claim(
        "one matrix in place of two loses no channel: the factors depend on all of the channels' means "
        "independently, where those of SE do on as many numbers as its bottleneck has",
        cells="featuremap.ranks",
        holds="featuremap.keeps_all_channels(gate='ese')",
    ),
)
class EffectiveSqueezeExcitation(Composed):
    """Channels are weighed by one matrix over their means, which reduces none: ``hard σ(W mean(x) + b)``.

    Parameters: c² + c.

    Paper: Lee and Park (CenterMask), arXiv 1911.06667.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, mix="dense", squash="hard_sigmoid")

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("ese", cls(11))]
