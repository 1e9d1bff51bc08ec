"""Ultra-lightweight subspace attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.gate import Factors, Gate, GateTraits, MapShape
from regard.featuremap.parts.squashes import over_space


@published(
    "ulsam",
    family="featuremap",
    kind="gate",
    row=43,
    title="ULSAM: Ultra-Lightweight Subspace Attention Module for Compact Convolutional Neural Networks",
    arxiv="2006.15102",
    year=2020,
    fidelity="authors' code",
    claim=Claim(
        "two convolution weights a channel; one attention for the channels of a subspace, which sums to one",
        cells="featuremap.subspaces",
        holds="featuremap.is_two_a_channel",
    ),
)
class Subspaces(Gate):
    """Each group of channels has an attention over cells, which is added to it: ``y = x + A ⊙ x``, Σ_p A_p = 1.

        A_g = softmax over cells of relu(norm(w · max_3×3(relu(norm(v ⊙ x_g + b))) + b'))

    Parameters: 2 c convolution weights, c + g biases, 2 (c + g) of norms. All groups are computed together.

    Args:
        channels: c. subspaces: g, a divisor of c.

    Paper: Saini et al., arXiv 2006.15102.
    """

    rule = "residual"
    traits = GateTraits(sums="space", batch_norm=True)

    def __init__(self, channels: int, subspaces: int = 4) -> None:
        super().__init__(channels)
        if subspaces < 1 or channels % subspaces:
            raise wrong("subspaces", str(subspaces), f"a divisor of the {channels} channels")
        self.subspaces = subspaces
        self.depthwise = nn.Conv2d(channels, channels, 1, groups=channels)
        self.pointwise = nn.Conv2d(channels, subspaces, 1, groups=subspaces)
        self.norm, self.last = (nn.BatchNorm2d(n, momentum=0.9) for n in (channels, subspaces))

    def factors(self, x: Tensor, past: Sequence[Tensor] | None = None) -> Factors:
        hidden = F.max_pool2d(torch.relu(self.norm(self.depthwise(x))), 3, stride=1, padding=1)
        numbers = torch.relu(self.last(self.pointwise(hidden)))
        attention = over_space(numbers, (2, 3))
        return {"cyx": attention.repeat_interleave(self.channels // self.subspaces, 1)}

    @property
    def parameter_count(self) -> int:
        return 5 * self.channels + 3 * self.subspaces

    def flops(self, shape: MapShape) -> int:
        return 4 * shape[0] * self.channels * shape[2] * shape[3]

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("ulsam", cls(12)), Sample("ulsam(subspaces=1)", cls(5, 1))]
