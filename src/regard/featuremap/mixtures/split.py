"""Split attention, the mixture of ResNeSt."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.gate import MapShape
from regard.featuremap.mixture import Mixture, MixtureTraits


@published(
    "split_attention",
    family="featuremap",
    kind="mixture",
    title="ResNeSt: Split-Attention Networks",
    arxiv="2004.08955",
    year=2020,
    fidelity="third-party code",
    claim=Claim(
        "the block in which all groups and splits are one tensor equals loops over them; the splits' weights "
        "sum to one in each channel",
        cells="mixtures.splits_and_groups",
        holds="mixtures.is_its_loops",
    ),
)
class SplitAttention(Mixture):
    """A grouped convolution gives R maps of each group of channels, which are weighed channel by channel.

        [b_1 … b_R] = relu(norm(conv(x))),   w = softmax over splits of V relu(norm(U mean(Σ_i b_i) + u)) + v

    With one split the softmax is a sigmoid. U and V are of each of the G groups alone.

    Shapes: ``x (b, c, y, x)`` -> ``(b, c', y, x)``, fewer rows and columns with a stride. Parameters:
    c' c k² / G (convolution) + 2 R c' + c' h / G + 3 h + h R c' / G + R c', h = max(R c / ratio, 32).

    Args:
        channels: c. out: c', None for c. splits: R. groups: G. kernel: k. stride: of the convolution. ratio: of the
            bottleneck h, a multiple of 8, at least ``least``.

    Raises:
        ValueError: channels that splits and groups do not divide.

    Paper: Zhang et al., arXiv 2004.08955.
    """

    def __init__(
        self,
        channels: int,
        out: int | None = None,
        splits: int = 2,
        groups: int = 1,
        kernel: int = 3,
        stride: int = 1,
        ratio: float = 4,
        least: int = 32,
    ) -> None:
        super().__init__(channels)
        self.out, self.splits, self.groups = out or channels, splits, groups
        if splits < 1 or groups < 1 or channels % (splits * groups) or self.out % groups:
            raise wrong("splits, groups", f"{splits}, {groups}", f"divisors of {channels} and {self.out} channels")
        self.hidden = max(least, int(channels * splits / ratio + 4) // 8 * 8)
        if self.hidden % groups:
            raise wrong("groups", str(groups), f"a divisor of the {self.hidden} units of the bottleneck")
        wide = self.out * splits
        self.convolution = nn.Conv2d(channels, wide, kernel, stride, kernel // 2, groups=groups * splits, bias=False)
        self.norm, self.hidden_norm = nn.BatchNorm2d(wide), nn.BatchNorm2d(self.hidden)
        self.down = nn.Conv2d(self.out, self.hidden, 1, groups=groups)
        self.up = nn.Conv2d(self.hidden, wide, 1, groups=groups)

    @property
    def traits(self) -> MixtureTraits:  # pyright: ignore[reportIncompatibleVariableOverride]
        """One split alone is weighed by a sigmoid."""
        return MixtureTraits(sums=self.splits > 1, batch_norm=True)

    def branches(self, x: Tensor) -> list[Tensor]:
        return list(torch.relu(self.norm(self.convolution(x))).chunk(self.splits, 1))

    def weights(self, x: Tensor, branches: list[Tensor]) -> Tensor:
        pooled = reduce(torch.add, branches).mean((2, 3), keepdim=True)
        numbers = self.up(torch.relu(self.hidden_norm(self.down(pooled))))
        apart = numbers.view(x.shape[0], self.groups, self.splits, -1).transpose(1, 2)
        weights = torch.softmax(apart, 1) if self.splits > 1 else torch.sigmoid(apart)
        return weights.reshape(x.shape[0], self.splits, self.out, 1, 1)

    @property
    def parameter_count(self) -> int:
        wide, kernel = self.out * self.splits, self.convolution.weight[0].numel()
        both = (self.out * self.hidden + self.hidden * wide) // self.groups
        return wide * kernel + 2 * wide + both + 3 * self.hidden + wide

    def flops(self, shape: MapShape) -> int:
        stride, wide = self.convolution.stride[0], self.out * self.splits
        cells = -(-shape[2] // stride) * -(-shape[3] // stride)
        both = (self.out * self.hidden + self.hidden * wide) // self.groups
        return 2 * shape[0] * (cells * wide * self.convolution.weight[0].numel() + both)

    @classmethod
    def examples(cls) -> list[Sample]:
        return [
            Sample("split_attention", cls(8, least=8)),
            Sample("one split, two groups", cls(8, splits=1, groups=2, least=8)),
            Sample("three splits, stride 2", cls(12, 10, splits=3, groups=2, stride=2, least=8)),
        ]
