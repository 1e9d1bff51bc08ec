"""Attention in attention, the mixture of A2N."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample
from regard.featuremap.gate import MapShape
from regard.featuremap.mixture import Mixture


@published(
    "attention_in_attention",
    family="featuremap",
    kind="mixture",
    title="Attention in Attention Network for Image Super-Resolution",
    arxiv="2104.09497",
    year=2021,
    fidelity="authors' code",
    claim=Claim(
        "the weights of its two branches sum to one and change with the map",
        cells="mixtures.shares",
        holds="mixtures.are_of_the_map",
    ),
)
class AttentionInAttention(Mixture):
    """A branch with attention to cells and one without, whose shares the map's means decide.

        w = softmax(V relu(U mean(x)) / t),   b_1 = C_4(C_3 x ⊙ σ(C_2 lrelu(C_1 x))),   b_2 = C_5 x

    C_1, C_3, C_4, C_5 are 3 × 3 convolutions without biases, C_2 is a 1 × 1 one; lrelu has a slope of 0.2.
    Parameters: 36 c² + c² + c + c h + 2 h, h = c / ratio.

    Args:
        channels: c. ratio: of the bottleneck. temperature: t.

    Paper: Chen et al., arXiv 2104.09497.
    """

    def __init__(self, channels: int, ratio: int = 4, temperature: float = 30) -> None:
        super().__init__(channels)
        self.hidden, self.temperature = max(channels // ratio, 1), temperature
        self.down, self.up = nn.Linear(channels, self.hidden, bias=False), nn.Linear(self.hidden, 2, bias=False)
        self.first, self.third, self.last, self.plain = (
            nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(4)
        )
        self.second = nn.Conv2d(channels, channels, 1)

    def attention(self, x: Tensor) -> Tensor:
        """The weight of each entry in the branch that has attention ``(b, c, y, x)``."""
        return torch.sigmoid(self.second(F.leaky_relu(self.first(x), 0.2)))

    def branches(self, x: Tensor) -> list[Tensor]:
        return [self.last(self.third(x) * self.attention(x)), self.plain(x)]

    def weights(self, x: Tensor, branches: list[Tensor]) -> Tensor:
        numbers = self.up(torch.relu(self.down(x.mean((2, 3)))))
        return torch.softmax(numbers / self.temperature, 1)[:, :, None, None, None]

    @property
    def parameter_count(self) -> int:
        return 37 * self.channels**2 + self.channels + (self.channels + 2) * self.hidden

    def flops(self, shape: MapShape) -> int:
        cells = shape[0] * shape[2] * shape[3]
        return 74 * cells * self.channels**2 + 2 * shape[0] * (self.channels + 2) * self.hidden

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("attention_in_attention", cls(8))]
