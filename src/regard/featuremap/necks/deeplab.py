"""Atrous pyramid pooling and the decoder of DeepLabv3+."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.neck import Neck, NeckTraits
from regard.featuremap.resize import Size, resize


def convolved(inside: int, out: int, kernel: int = 1, rate: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without a bias whose taps stand ``rate`` cells apart, a norm and a relu."""
    pad = kernel // 2 * rate
    convolution = nn.Conv2d(inside, out, kernel, padding=pad, dilation=rate, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU())


def spread(inside: int, out: int, rate: int, separable: bool) -> nn.Sequential:
    """A 3 × 3 convolution of a rate: one for each channel and then a matrix, or dense."""
    if not separable:
        return convolved(inside, out, 3, rate)
    return nn.Sequential(convolved(inside, inside, 3, rate, inside), convolved(inside, out))


@published(
    "deeplabv3plus",
    family="featuremap",
    kind="neck",
    row=191,
    title="Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation",
    arxiv="1802.02611",
    year=2018,
    fidelity="hand values",
    claim=(
        Claim(
            "separable convolutions take at most a third of the multiply-adds of dense ones in the pyramid of "
            "rates on 2,048 channels",
            cells="necks.separable",
            holds="necks.is_a_third",
        ),
        Claim(
            "a convolution of a rate is that of a kernel with zeros between its taps",
            cells="necks.rates",
            holds="common.within(most=1e-9)",
        ),
    ),
)
class DeepLabV3Plus(Neck):
    """One fine map of a coarse one, which is looked at with several rates, and a fine one.

        a = C [C_1 x, S_6 x, S_12 x, S_18 x, mean(x)],   y = S S [up(a), C_low x_fine]

    x is the coarsest map, x_fine the finest; others are not read. S_r are 3 × 3 convolutions of rate r, separable: one
    for each channel, then a matrix; a norm and a relu follow every convolution. Up is bilinear and aligns the corners,
    as in the authors' code; a tenth of what is joined, a, is dropped in training. With Xception and classes of cells it
    is the network `deeplabv3plus_network`.

    Parameters: 2 c d + Σ_r (9 c + c d) + 5 d² + c_0 l + 9 (d + l) + (d + l) d + 9 d + d² and two for each norm's
    channel.

    Args:
        channels: of the maps, fine to coarse, two at least. out: d. rates: r. low: l, channels of the fine map in the
            sum. separable: False for dense convolutions of each rate. dropout: of a.

    Raises:
        ValueError: one map alone, or a rate below one.

    Paper: Chen et al., arXiv 1802.02611.
    """

    traits = NeckTraits(batch_norm=True)

    def __init__(
        self,
        channels: Sequence[int],
        out: int,
        rates: tuple[int, ...] = (6, 12, 18),
        low: int = 48,
        separable: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(channels, out)
        if len(channels) < 2 or not rates or min(rates) < 1:
            raise wrong(
                "channels, rates", f"{tuple(channels)}, {rates}", "two levels and one rate of one or more at least"
            )
        deep, self.rates, self.low, self.separable = channels[-1], tuple(rates), low, separable
        self.point, self.mean = convolved(deep, out), convolved(deep, out)
        self.spread = nn.ModuleList(spread(deep, out, rate, separable) for rate in rates)
        self.join, self.fine = convolved((2 + len(rates)) * out, out), convolved(channels[0], low)
        self.dropout = nn.Dropout(dropout)
        self.decode = nn.Sequential(spread(out + low, out, 1, True), spread(out, out, 1, True))

    def fused(self, maps: list[Tensor]) -> list[Tensor]:
        fine, deep = maps[0], maps[-1]
        mean = self.mean(deep.mean((2, 3), keepdim=True)).expand(-1, -1, *deep.shape[2:])
        pyramid = self.join(torch.cat([self.point(deep), *(each(deep) for each in self.spread), mean], 1))
        pyramid = resize(self.dropout(pyramid), fine, "aligned")
        return [self.decode(torch.cat((pyramid, self.fine(fine)), 1))]

    @property
    def reads(self) -> list[tuple[int, ...]]:
        return [(0, len(self.channels) - 1)]

    @property
    def parameter_count(self) -> int:
        c, d, low, count = self.channels[-1], self.out, self.low, len(self.rates)
        each = 9 * c + 2 * c + c * d + 2 * d if self.separable else 9 * c * d + 2 * d
        joined = (2 + count) * d * d + 2 * d + self.channels[0] * low + 2 * low
        decoded = 11 * (d + low) + (d + low) * d + 2 * d + 11 * d + d * d + 2 * d
        return 2 * (c * d + 2 * d) + count * each + joined + decoded

    def flops(self, given: Sequence[Size], batch: int = 1) -> int:
        c, d, low, count = self.channels[-1], self.out, self.low, len(self.rates)
        (fine, deep), each = (given[0], given[-1]), (9 * c + c * d if self.separable else 9 * c * d)
        decoded = self.channels[0] * low + 9 * (d + low) + (d + low) * d + 9 * d + d * d
        coarse = c * d + count * each + (2 + count) * d * d
        return 2 * batch * (deep[0] * deep[1] * coarse + c * d + fine[0] * fine[1] * decoded)

    @classmethod
    def examples(cls) -> list[Sample]:
        return [
            Sample("deeplabv3plus", cls((3, 5, 7), 4, (2, 3), 2)),
            Sample("deeplabv3plus, dense", cls((3, 5), 4, (1,), 2, False)),
        ]
