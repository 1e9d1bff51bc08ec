"""DeepLabv3+ as a network: the aligned Xception, its pyramid of rates and decoder, and classes of cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.necks.deeplab import DeepLabV3Plus
from regard.featuremap.resize import resize
from regard.networks.base import Network, told_by
from regard.networks.stages.norms import ConvNorm
from regard.networks.vision.vit import image_sample, settled

EPS = 1e-3
"""Of the backbone's norms."""


class SeparableConvolution(nn.Module):
    """``norm(W f(norm(D x)))``, D a 3 × 3 convolution of each channel; f nothing, with a relu first, or relus after.

    Args:
        inside, out: channels. stride, rate: of D. after: relus after both norms, else one before D.
    """

    def __init__(self, inside: int, out: int, stride: int, rate: int, after: bool) -> None:
        super().__init__()
        self.after, self.depthwise = after, ConvNorm(inside, inside, 3, stride, inside)
        self.depthwise.convolution.dilation = self.depthwise.convolution.padding = (rate, rate)
        self.pointwise = ConvNorm(inside, out)

    def forward(self, x: Tensor) -> Tensor:
        if not self.after:
            return self.pointwise(self.depthwise(torch.relu(x)))
        return torch.relu(self.pointwise(torch.relu(self.depthwise(x))))


class XceptionBlock(nn.Module):
    """Three separable convolutions, the last of the block's stride, and what came in, where it is added.

    Args:
        inside: channels. widths: of what each of the three gives. stride, rate: see above. last: relus after the
            convolutions and no sum, as the last block of all has it.
    """

    def __init__(self, inside: int, widths: Sequence[int], stride: int, rate: int, last: bool = False) -> None:
        super().__init__()
        sources, strides = (inside, *widths[:2]), (1, 1, stride)
        self.convolutions = nn.ModuleList(
            SeparableConvolution(a, b, step, rate, last) for a, b, step in zip(sources, widths, strides, strict=True)
        )
        same = stride == 1 and inside == widths[2]
        self.skip = None if last else nn.Identity() if same else ConvNorm(inside, widths[2], 1, stride)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What comes out, and what the second convolution gives, at the stride that came in."""
        first, second, third = self.convolutions
        near = second(first(x))
        out = third(near)
        return (out if self.skip is None else out + self.skip(x)), near


class Xception(nn.Module):
    """The modified aligned Xception: blocks of separable convolutions whose strides stand where others have pools.

    Shapes: ``images (b, 3, y, x)`` -> the fine map ``(b, 4 w, y / 4, x / 4)`` inside its second block, and the last
    one ``(b, deep, y / stride, x / stride)``.

    Args:
        width: w, twice the first convolution's channels, 64. middle: channels of the middle blocks, 728. blocks: how
            many of them. deep: channels of the last two blocks' ends, 1024 and 2048. stride: 32, 16 or 8: beyond it
            blocks keep the resolution and those behind them read at a distance, at the same cells.

    Raises:
        ValueError: another stride.

    Paper: Chollet, arXiv 1610.02357, as Chen et al., 1802.02611, modify it.
    """

    def __init__(
        self,
        width: int = 64,
        middle: int = 728,
        blocks: int = 16,
        deep: tuple[int, int] = (1024, 2048),
        stride: int = 16,
    ) -> None:
        super().__init__()
        if stride not in (8, 16, 32):
            raise wrong("stride", str(stride), "8, 16 or 32")
        self.stem = nn.Sequential(ConvNorm(3, width // 2, 3, 2), nn.ReLU(), ConvNorm(width // 2, width, 3), nn.ReLU())
        mean = deep[0] * 3 // 2
        plan = [((each,) * 3, 2) for each in (2 * width, 4 * width, middle)] + [((middle,) * 3, 1)] * blocks
        plan += [((middle, deep[0], deep[0]), 2), ((mean, mean, deep[1]), 1)]
        self.blocks, inside, reached, rate = nn.ModuleList(), width, 2, 1
        for place, (widths, step) in enumerate(plan):
            kept = reached * step > stride
            last = place == len(plan) - 1
            self.blocks.append(XceptionBlock(inside, widths, 1 if kept else step, rate, last))
            reached, rate = (reached, rate * step) if kept else (reached * step, rate)
            inside = widths[2]
        for norm in (each for each in self.modules() if isinstance(each, nn.BatchNorm2d)):
            norm.eps = EPS

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x, fine = self.stem(images), images
        for place, block in enumerate(self.blocks):
            x, near = block(x)
            fine = near if place == 1 else fine
        return fine, x


@published(
    "deeplabv3plus_network",
    family="featuremap",
    kind="network",
    title="Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation",
    arxiv="1802.02611",
    year=2018,
    fidelity="third-party code",
    claim=Claim(
        "a backbone that keeps a 16th of the resolution gives, at every other cell, exactly what one that goes down to "
        "a 32nd gives, with the same weights",
        cells="map_networks.atrous",
        holds="common.within(most=1e-9)",
    ),
)
class DeepLabV3PlusNetwork(Network):
    """Classes of each cell: `Xception`, whose last map a pyramid of rates reads and whose fine map the decoder,
    `deeplabv3plus`, then a matrix and the image's size again.

        y = up(W decoder(fine, deep) + b)

    Shapes: ``images (b, 3, y, x)`` of any height and width -> ``(b, classes, y, x)``.

    Args:
        classes: to tell apart. out: channels of the decoder. low: of the fine map in it. width, middle, blocks, deep,
            stride: of `Xception`. seed: of the weights. The rates are 6, 12, 18 at stride 16, twice as much at 8 and
            half at 32.

    Paper: Chen et al., arXiv 1802.02611.
    """

    def __init__(
        self,
        classes: int = 21,
        out: int = 256,
        low: int = 48,
        width: int = 64,
        middle: int = 728,
        blocks: int = 16,
        deep: tuple[int, int] = (1024, 2048),
        stride: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.backbone = Xception(width, middle, blocks, deep, stride)
            rates = tuple(each * 16 // stride for each in (6, 12, 18))
            self.neck = DeepLabV3Plus((4 * width, deep[1]), out, rates, low)
            self.classes = nn.Conv2d(out, classes, 1)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        def made(seed: int = 0) -> DeepLabV3PlusNetwork:
            network = cls(5, 8, 3, 4, 12, 1, (10, 14), seed=seed)
            generator = torch.Generator().manual_seed(seed)
            return settled(network, torch.randn(3, 3, 75, 49, generator=generator))

        return [image_sample("deeplabv3plus", made(), (75, 49), 3, output=(5, 75, 49), again=lambda: made(7))]

    def features(self, images: Tensor) -> list[Tensor]:
        """The fine map and the deep one, which necks take."""
        return list(self.backbone(images))

    def intermediates(self, images: Tensor) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What each part of the pyramid gives the decoder: ``point``, ``mean`` and every ``rate``,
        ``(b, out, y / stride, x / stride)``, the mean of one cell. There is no attention."""
        pairs = zip(self.neck.rates, self.neck.spread, strict=True)
        parts = {f"rate {rate}": part for rate, part in pairs}
        with told_by({"point": self.neck.point, **parts, "mean": self.neck.mean}, lambda _, __, out: out) as found:
            self(images)
        return found

    def forward(self, images: Tensor) -> Tensor:
        (out,) = self.neck(self.features(images))
        return resize(self.classes(out), (images.shape[2], images.shape[3]), "aligned")
