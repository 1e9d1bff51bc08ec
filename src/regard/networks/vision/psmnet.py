"""PSMNet: depth from two images by matching what a pyramid of pools sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.networks.base import Network

POOLS = (64, 32, 16, 8)
LOSS_WEIGHTS = (0.5, 0.7, 1.0)


def normed(inside: int, out: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """A convolution over rows and columns, of as many cells, and a batch norm."""
    convolution = nn.Conv2d(inside, out, kernel, stride, kernel // 2 * dilation, dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out))


def normed3d(inside: int, out: int, stride: int = 1) -> nn.Sequential:
    """A 3 × 3 × 3 convolution over disparities, rows and columns, and a batch norm."""
    return nn.Sequential(nn.Conv3d(inside, out, 3, stride, 1, bias=False), nn.BatchNorm3d(out))


class ResidualBlock(nn.Module):
    """Two convolutions and what came in, without an activation after the sum."""

    def __init__(self, inside: int, out: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.first = nn.Sequential(normed(inside, out, 3, stride, dilation), nn.ReLU())
        self.second = normed(out, out, dilation=dilation)
        self.skip = normed(inside, out, 1, stride) if stride > 1 or inside != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) + self.skip(x)


class PooledFeatures(nn.Module):
    """Features ``(b, 32, y / 4, x / 4)`` of an image that know its surroundings: means of four sizes of window.

    Args:
        aligned: whether corners are aligned where means are brought back to the map's size.
    """

    def __init__(self, aligned: bool) -> None:
        super().__init__()
        self.aligned = aligned
        first = [
            layer
            for inside, stride in ((3, 2), (32, 1), (32, 1))
            for layer in (normed(inside, 32, 3, stride), nn.ReLU())
        ]
        self.first = nn.Sequential(*first)
        sizes = ((32, 32, 3, 1, 1), (32, 64, 16, 2, 1), (64, 128, 3, 1, 1), (128, 128, 3, 1, 2))
        self.layers = nn.ModuleList(self.layer(*size) for size in sizes)
        self.pools = nn.ModuleList(nn.Sequential(normed(128, 32, 1), nn.ReLU()) for _ in POOLS)
        self.last = nn.Sequential(normed(320, 128), nn.ReLU(), nn.Conv2d(128, 32, 1, bias=False))

    @staticmethod
    def layer(inside: int, out: int, blocks: int, stride: int, dilation: int) -> nn.Sequential:
        """Blocks of one width."""
        widths = ((inside, stride), *((out, 1),) * (blocks - 1))
        return nn.Sequential(*(ResidualBlock(width, out, s, dilation) for width, s in widths))

    def forward(self, images: Tensor) -> Tensor:
        raw = self.layers[1](self.layers[0](self.first(images)))
        deep = self.layers[3](self.layers[2](raw))
        around = [self.around(deep, window, pool) for window, pool in zip(POOLS, self.pools, strict=True)]
        return self.last(torch.cat((raw, deep, *reversed(around)), 1))

    def around(self, x: Tensor, window: int, pool: nn.Module) -> Tensor:
        """The means of windows, or of the whole map where it is smaller, at the map's size again."""
        size = (min(window, x.shape[2]), min(window, x.shape[3]))
        return F.interpolate(pool(F.avg_pool2d(x, size)), x.shape[2:], mode="bilinear", align_corners=self.aligned)


class Hourglass(nn.Module):
    """A volume ``(b, c, d, y, x)`` to a quarter of its sides and back, with what other hourglasses had on the way."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = 2 * width
        self.down1, self.pre = nn.Sequential(normed3d(width, wide, 2), nn.ReLU()), normed3d(wide, wide)
        self.down2 = nn.Sequential(normed3d(wide, wide, 2), nn.ReLU())
        self.deep = nn.Sequential(normed3d(wide, wide), nn.ReLU())
        self.up2, self.norm2 = nn.ConvTranspose3d(wide, wide, 3, 2, 1, bias=False), nn.BatchNorm3d(wide)
        self.up1, self.norm1 = nn.ConvTranspose3d(wide, width, 3, 2, 1, bias=False), nn.BatchNorm3d(width)

    def forward(self, x: Tensor, earlier: Tensor | None, later: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """What comes out, and the volumes at half of the sides before and after the deepest."""
        pre = self.pre(self.down1(x))
        pre = F.relu(pre if later is None else pre + later)
        deep = self.norm2(self.up2(self.deep(self.down2(pre)), output_size=pre.shape[2:]))
        post = F.relu(deep + (pre if earlier is None else earlier))
        return self.norm1(self.up1(post, output_size=x.shape[2:])), pre, post


@published(
    "psmnet",
    family="featuremap",
    kind="network",
    row=162,
    title="Pyramid Stereo Matching Network",
    arxiv="1803.08669",
    year=2018,
    fidelity="authors' code",
    claim=(
        Claim(
            "as many parameters as the authors' network",
            cells="map_networks.psmnet",
            holds="map_networks.has(parameters=5224768)",
        ),
        Claim(
            "the expected disparity of a sure cost is exact, and of two that are alike the one between them",
            cells="map_networks.disparity",
            holds="map_networks.is_exact",
        ),
    ),
)
class PSMNet(Network):
    """Disparities of the left image's cells: the expectation under a softmax over what every shift costs.

        v_d = [f_left(p), f_right(p − d)],   disparity = Σ_d d softmax_d(c_d),   c three stacked `Hourglass` of v

    f are `PooledFeatures`, at a quarter of the rows, columns and disparities; costs are brought to the image's size.
    With a volume of features, c may be a cost or a likeness: the sign is learned.

    Shapes: ``left, right (b, 3, y, x)`` -> ``(b, 1, y, x)``; in training one for each hourglass.

    Args:
        disparities: how many, a multiple of 4. aligned: whether corners are aligned where maps and costs grow, as in
            the library that the authors trained with; with today's default their weights give 1 / 1.17 of the
            disparity.

    Raises:
        ValueError: disparities that 4 does not divide; in a call, images of different sizes.

    Paper: Chang and Chen, arXiv 1803.08669.
    """

    def __init__(self, disparities: int = 192, aligned: bool = True) -> None:
        super().__init__()
        if disparities < 4 or disparities % 4:
            raise wrong("disparities", str(disparities), "a multiple of 4")
        self.disparities, self.aligned = disparities, aligned
        self.features = PooledFeatures(aligned)
        self.start = nn.Sequential(normed3d(64, 32), nn.ReLU(), normed3d(32, 32), nn.ReLU())
        self.residual = nn.Sequential(normed3d(32, 32), nn.ReLU(), normed3d(32, 32))
        self.hourglasses = nn.ModuleList(Hourglass(32) for _ in LOSS_WEIGHTS)
        self.costs = nn.ModuleList(
            nn.Sequential(normed3d(32, 32), nn.ReLU(), nn.Conv3d(32, 1, 3, padding=1, bias=False)) for _ in LOSS_WEIGHTS
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                fan = module.out_channels * module.weight[0, 0].numel()
                nn.init.normal_(module.weight, std=(2 / fan) ** 0.5)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        def made() -> PSMNet:
            return cls(8)

        def inputs(batch: int, seed: int) -> tuple[Tensor, Tensor]:
            generator = torch.Generator().manual_seed(seed)
            left, right = torch.randn(2, batch, 3, 17, 30, generator=generator)
            return left, right

        def whole() -> PSMNet:
            with torch.device("meta"):
                return cls()

        given = {"inputs": inputs, "output": (1, 17, 30), "again": made, "published": (whole, 5.2)}
        return [Sample("psmnet", made(), given)]

    def intermediates(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The likeness of each disparity at each cell ``(b, 1, y · x, d)``, which sums to one."""
        costs = self.grown(left, right)[-1]
        return {"disparities": torch.softmax(costs, 1).flatten(2).mT[:, None]}

    def forward(self, left: Tensor, right: Tensor) -> Tensor | list[Tensor]:
        found = [expected(costs) for costs in self.grown(left, right)]
        return found if self.training else found[-1]

    def grown(self, left: Tensor, right: Tensor) -> list[Tensor]:
        """The likeness of each disparity ``(b, d, y, x)`` after each hourglass; in evaluation after the last."""
        if left.shape != right.shape:
            raise wrong("right", f"shape {tuple(right.shape)}", f"the left image's, {tuple(left.shape)}")
        volume = volume_of(self.features(left), self.features(right), self.disparities // 4)
        start = self.start(volume)
        start = self.residual(start) + start
        found, out, pre, post, first, cost = [], start, None, None, None, 0
        for hourglass, head in zip(self.hourglasses, self.costs, strict=True):
            out, pre, post = hourglass(out, first, post)
            first = pre if first is None else first
            out = out + start
            cost = head(out) + cost
            found.append(cost)
        size, wanted = (self.disparities, *left.shape[2:]), found if self.training else found[-1:]
        return [F.interpolate(c, size, mode="trilinear", align_corners=self.aligned)[:, 0] for c in wanted]


def volume_of(left: Tensor, right: Tensor, disparities: int) -> Tensor:
    """Both features at every shift ``(b, 2 c, d, y, x)``, zeros where the right image has ended."""
    b, c, rows, columns = left.shape
    volume = left.new_zeros(b, 2 * c, disparities, rows, columns)
    for d in range(min(disparities, columns)):
        volume[:, :c, d, :, d:] = left[..., d:]
        volume[:, c:, d, :, d:] = right[..., : columns - d]
    return volume


def expected(costs: Tensor) -> Tensor:
    """The expected disparity ``(b, 1, y, x)`` under a softmax of ``costs (b, d, y, x)``."""
    steps = torch.arange(costs.shape[1], device=costs.device, dtype=costs.dtype)
    return (torch.softmax(costs, 1) * steps[:, None, None]).sum(1, keepdim=True)


def stereo_loss(disparities: list[Tensor], truth: Tensor, known: Tensor) -> Tensor:
    """Smooth absolute errors of the three disparities where the truth is ``known``, weighed by 0.5, 0.7 and 1."""
    errors = (F.smooth_l1_loss(each[known], truth[known]) for each in disparities)
    return torch.stack([w * error for w, error in zip(LOSS_WEIGHTS, errors, strict=True)]).sum()
