"""The bidirectional feature pyramid of EfficientDet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.neck import Neck, NeckTraits
from regard.featuremap.resize import Size, resize

EPS, MOMENTUM = 1e-3, 0.01


class Projection(nn.Sequential):
    """A 1 × 1 convolution and a batch norm."""

    def __init__(self, inside: int, out: int) -> None:
        super().__init__(nn.Conv2d(inside, out, 1), nn.BatchNorm2d(out, EPS, MOMENTUM))


class Node(nn.Module):
    """Maps summed under weights that are non-negative and sum to nearly one, then a separable convolution.

        norm(P D swish(Σ_i w_i x_i)),   w = relu(v) / (Σ relu(v) + 1e-4)

    D is depthwise, 3 × 3, without a bias; P is 1 × 1.
    """

    def __init__(self, count: int, out: int) -> None:
        super().__init__()
        self.strengths = nn.Parameter(torch.ones(count))
        self.depthwise = nn.Conv2d(out, out, 3, padding=1, groups=out, bias=False)
        self.pointwise, self.norm = nn.Conv2d(out, out, 1), nn.BatchNorm2d(out, EPS, MOMENTUM)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        weights = torch.relu(self.strengths)
        weights = weights / (weights.sum() + 1e-4)
        mixed = sum((w * x for w, x in zip(weights[1:], maps[1:], strict=True)), weights[0] * maps[0])
        return self.norm(self.pointwise(self.depthwise(F.silu(mixed))))


class Layer(nn.Module):
    """One way down and one way up; maps of other channels are projected anew wherever they are read."""

    def __init__(self, channels: Sequence[int], out: int) -> None:
        super().__init__()
        levels = len(channels)
        self.first = nn.ModuleList(self.projection(c, out) for c in channels)
        self.second = nn.ModuleList(self.projection(c, out) for c in channels[1:])
        self.down = nn.ModuleList(Node(2, out) for _ in range(levels - 1))
        self.up = nn.ModuleList(Node(3 if level < levels - 1 else 2, out) for level in range(1, levels))

    @staticmethod
    def projection(inside: int, out: int) -> nn.Module:
        """What brings a map to ``out`` channels: nothing where it has them."""
        return nn.Identity() if inside == out else Projection(inside, out)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        middle = [project(each) for project, each in zip(self.first, maps, strict=True)]
        for level in range(len(maps) - 2, -1, -1):
            middle[level] = self.down[level]([middle[level], resize(middle[level + 1], middle[level])])
        found = [middle[0]]
        for level, (project, node) in enumerate(zip(self.second, self.up, strict=True), 1):
            own = project(maps[level])
            halved = resize(F.max_pool2d(found[-1], 3, 2, 1), own)
            passed = [own, middle[level], halved] if level < len(maps) - 1 else [own, halved]
            found.append(node(passed))
        return found


@published(
    "bifpn",
    family="featuremap",
    kind="neck",
    title="EfficientDet: Scalable and Efficient Object Detection",
    arxiv="1911.09070",
    year=2019,
    fidelity="hand values",
    claim=(
        Claim(
            "every level of one layer depends on every map",
            cells="necks.depends(neck_text='bifpn(layers=1)')",
            holds="necks.reads(wanted='0123, 0123, 0123, 0123')",
        ),
        Claim(
            "the weights of a node sum to nearly one, and a map of negative strength counts nothing",
            cells="necks.node",
            holds="necks.is_nearly_a_mean",
        ),
    ),
)
class BiFPN(Neck):
    """Layers of a way down and a way up, each map a weighed sum of its neighbours and of the one that came in.

        down: t_l = f(c_l, up(t_{l+1})),   up: o_l = f(c_l, t_l, pool(o_{l−1})),   f a `Node`

    Up is the nearest cell, pool the maximum of 3 × 3 with stride 2. Parameters: a node of i maps has i + 9 d + d² + 3
    d, a projection c_l d + 3 d; only the first layer has projections, where c_l ≠ d: one of the finest map, two of
    others.

    Args:
        channels: c_l, fine to coarse, two levels at least. out: d. layers: one after the other.

    Paper: Tan et al., arXiv 1911.09070.
    """

    traits = NeckTraits(batch_norm=True)

    def __init__(self, channels: Sequence[int], out: int, layers: int = 3) -> None:
        super().__init__(channels, out)
        if layers < 1 or len(channels) < 2:
            raise wrong("layers, channels", f"{layers}, {tuple(channels)}", "one layer and two levels at least")
        widths = (tuple(channels), *((out,) * len(channels),) * (layers - 1))
        self.layers = nn.ModuleList(Layer(each, out) for each in widths)

    def fused(self, maps: list[Tensor]) -> list[Tensor]:
        for layer in self.layers:
            maps = layer(maps)
        return maps

    @property
    def parameter_count(self) -> int:
        d, levels = self.out, len(self.channels)
        node, strengths = 9 * d + d * d + 3 * d, 2 * (levels - 1) + 3 * (levels - 2) + 2
        projected = [(c * d + 3 * d) * (1 if level == 0 else 2) for level, c in enumerate(self.channels) if c != d]
        return len(self.layers) * (2 * (levels - 1) * node + strengths) + sum(projected)

    def flops(self, given: Sequence[Size], batch: int = 1) -> int:
        d, cells = self.out, [y * x for y, x in given]
        nodes = sum(cells[:-1]) + sum(cells[1:])
        pairs = zip(self.channels, cells, strict=True)
        projected = sum(c * d * n * (1 if level == 0 else 2) for level, (c, n) in enumerate(pairs) if c != d)
        return 2 * batch * (len(self.layers) * nodes * (9 * d + d * d) + projected)

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("bifpn", cls((3, 5, 4, 7), 4, 2)), Sample("bifpn, two levels", cls((4, 4), 4, 1))]
