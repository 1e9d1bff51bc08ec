"""P2AT: classes of cells, from attention between rows and between columns of a pyramid of pools."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.build import build
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.parts.layers import Convolved
from regard.featuremap.resize import resize
from regard.networks.base import Network
from regard.networks.vision.vit import image_sample, settled

POOLS, HEADS, KEY, VALUE, PLACES = (3, 5, 7), 8, 16, 32, 16
"""Sides of the pools; heads of attention, sizes of their keys and values, and places that are learned."""

EXPANSION = 4
"""How many times as many channels leave a bottleneck as are within."""


def activated(inside: int, out: int, kernel: int = 1, groups: int = 1) -> Convolved:
    """A convolution with a norm and a learned slope below zero for each channel."""
    return Convolved(inside, out, kernel, groups=groups, activation=partial(nn.PReLU, out))


def point(inside: int, out: int, bias: bool = False) -> nn.Conv2d:
    """A convolution 1 × 1."""
    return nn.Conv2d(inside, out, 1, bias=bias)


class PyramidPool(nn.Module):
    """``W [m_3(y), m_5(m_3(y)), m_7(m_5(m_3(y)))] ⊙ y``, y = W' x, m_k the mean of k × k cells, zeros outside.

    W is 3 × 3; each of its outputs reads three neighbouring channels of the three maps.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.mix = activated(width, width), activated(3 * width, width, 3, width)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        found, pooled = [], first
        for side in POOLS:
            pooled = F.avg_pool2d(pooled, side, 1, side // 2)
            found.append(pooled)
        return self.mix(torch.cat(found, 1)) * first


class AxisAttention(nn.Module):
    """Softmax attention between the means of rows, or of columns, with learned places, brought to their number.

    Args:
        inner: of queries and keys.
    """

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.q, self.k = (nn.Parameter(torch.randn(1, inner, PLACES)) for _ in range(2))
        self.mechanism = build("softmax")

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``(b, c, n)`` each -> ``(b, values, n)``."""
        q, k = (x + F.interpolate(p, x.shape[2], mode="linear") for x, p in ((q, self.q), (k, self.k)))
        heads = (each.unflatten(1, (HEADS, -1)).mT for each in (q, k, v))
        return self.mechanism(*heads).mT.flatten(1, 2)


class AxialAttention(nn.Module):
    """``f(V + R_rows + C_columns) ⊙ local(x)``: what rows and columns read of each other, added to all of their cells.

        q, k, v = matrices of pool(x),   R = g(A_rows mean_x(v)),   C = W A_columns mean_y(v)

    A are softmax attentions of y² and x² scores. local is ``c + norm(W_3 c)``, c = norm(W_1 x).

    Args:
        width: of the map.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        values = HEADS * VALUE
        plain = partial(Convolved, width, width, activation=None)
        self.local, self.detail, self.pool = plain(1), plain(3), PyramidPool(width)
        self.to_q, self.to_k, self.to_v = point(width, HEADS * KEY), point(width, HEADS * KEY), point(width, values)
        self.rows, self.columns = AxisAttention(HEADS * KEY), AxisAttention(HEADS * KEY)
        self.of_rows, self.of_columns = activated(values, values), point(values, values)
        self.out = activated(values, width)

    def forward(self, x: Tensor) -> Tensor:
        local = self.local(x)
        local, pooled = self.detail(local) + local, self.pool(x)
        q, k, v = self.to_q(pooled), self.to_k(pooled), self.to_v(pooled)
        rows = self.of_rows(self.rows(q.mean(3), k.mean(3), v.mean(3))[..., None])
        columns = self.of_columns(self.columns(q.mean(2), k.mean(2), v.mean(2))[:, :, None])
        return self.out(v + rows + columns) * local


class Layer(nn.Module):
    """``y = x + attention(x)``, ``y + W_2 relu(D W_1 y)``, D a depthwise convolution 3 × 3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 4 * width
        self.attention, self.first, self.second = AxialAttention(width), point(width, inner), point(inner, width)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.second(torch.relu(self.depthwise(self.first(x))))


class Decode(nn.Module):
    """``x + γ W_2 hardswish(W_1 norm(D x))``, D depthwise, γ small at first."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width, 1, 1), 1e-6))
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.BatchNorm2d(width)
        self.first, self.second = point(width, 4 * width, True), point(4 * width, width, True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.second(F.hardswish(self.first(self.norm(self.depthwise(x)))))


class Fusion(nn.Module):
    """A finer map d, the next coarser s and a deep one u as ``norm(W [d, u, s]) + s ⊙ u + σ(s ⊙ d)``.

        d = W_4 (W_2 mean(c) + σ(W_3 c)),   c = g(fine)
        u = g(deep) ⊙ softmax over channels (W deep),   s = norm(W coarse)

    Args:
        fine, coarse, width: channels of the first two, and of the deep one and what comes out.
    """

    def __init__(self, fine: int, coarse: int, width: int) -> None:
        super().__init__()
        self.fine, self.mean, self.near, self.both = activated(fine, width), *(point(width, width) for _ in range(3))
        self.deep, self.channels = activated(width, width), point(width, width, True)
        self.coarse = Convolved(coarse, width, activation=None)
        self.join = Convolved(3 * width, width, activation=None)

    def forward(self, fine: Tensor, coarse: Tensor, deep: Tensor) -> Tensor:
        c = self.fine(fine)
        mean = self.mean(c.mean((2, 3), keepdim=True).expand_as(c))
        d = self.both(mean + torch.sigmoid(self.near(c)))
        u = self.deep(deep) * torch.softmax(self.channels(deep), 1)
        s = resize(self.coarse(coarse), d, "bilinear")
        u = resize(u, d, "bilinear")
        return self.join(torch.cat((d, u, s), 1)) + s * u + torch.sigmoid(s * d)


class Scaled(nn.Module):
    """``γ x + β`` for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width, 1, 1)), nn.Parameter(torch.zeros(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.shift


class Context(nn.Module):
    """``x + f(γ W mean(x) + β)``, f a convolution with a norm and a slope; of both 3 × 3 and 7 × 7 cells the middle one
    alone is read."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.scaled, self.second = Scaled(width), activated(width, width, 7)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.scaled(self.first(x.mean((2, 3), keepdim=True))))


class Classes(nn.Module):
    """``W_2 relu(norm(W_1 relu(norm(x)))) + b``, W_1 3 × 3."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1, bias=False), point(width, classes, True)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.norm2(self.first(torch.relu(self.norm1(x))))))


class BasicBlock(nn.Module):
    """``relu(norm(W_2 relu(norm(W_1 x))) + skip(x))``, W 3 × 3."""

    def __init__(self, inside: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = Convolved(inside, out, 3, stride)
        self.second = Convolved(out, out, 3, activation=None)
        same = stride == 1 and inside == out
        self.skip = nn.Identity() if same else Convolved(inside, out, 1, stride, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.skip(x))


class BottleneckBlock(nn.Module):
    """``relu(norm(W_3 relu(norm(W_2 relu(norm(W_1 x))))) + skip(x))``, W_2 3 × 3 of a quarter of the channels.

    Paper: He et al., arXiv 1512.03385, with the stride at W_2.
    """

    def __init__(self, inside: int, out: int, stride: int) -> None:
        super().__init__()
        inner = out // EXPANSION
        self.first, self.second = Convolved(inside, inner), Convolved(inner, inner, 3, stride)
        self.third = Convolved(inner, out, activation=None)
        same = stride == 1 and inside == out
        self.skip = nn.Identity() if same else Convolved(inside, out, 1, stride, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.third(self.second(self.first(x))) + self.skip(x))


def residual_stages(width: int, blocks: Sequence[int], bottlenecks: bool) -> tuple[nn.ModuleList, list[int]]:
    """The stages of a residual network of blocks or bottlenecks, each but the first of half the resolution, and the
    channels that they give: ``width``, twice as many at each, four times all of these with bottlenecks."""
    kind, inside, stages, widths = (BottleneckBlock if bottlenecks else BasicBlock), width, nn.ModuleList(), []
    for stage, count in enumerate(blocks):
        made, out = [], width * 2**stage * (EXPANSION if bottlenecks else 1)
        for block in range(count):
            made.append(kind(inside, out, 2 if stage and not block else 1))
            inside = out
        stages.append(nn.Sequential(*made))
        widths.append(out)
    return stages, widths


@published(
    "p2at",
    family="featuremap",
    kind="network",
    row=197,
    title="P2AT: Pyramid Pooling Axial Transformer for Real-time Semantic Segmentation",
    arxiv="2310.15025",
    year=2023,
    aliases=("pyramid_pooling_axial",),
    fidelity="authors' code",
    claim=(
        Claim(
            "its attention has y² + x² scores for each head and layer, of a map of any size",
            cells="axial.scores",
            holds="axial.are_of_both_axes",
        ),
        Claim(
            "places are read between the learned ones, so that as many as there are give those themselves",
            cells="axial.places",
            holds="common.within(most=1e-12)",
        ),
    ),
)
class P2AT(Network):
    """A residual network, axial attention at its coarsest map, and a decoder that fuses three levels at a time.

    Shapes: ``images (b, 3, y, x)`` of any height and width -> ``(b, classes, y, x)``.

    Args:
        classes: to tell apart. blocks: of the four stages; ResNet-18's are the small network's, ResNet-34's, (3, 4, 6,
            3), the medium one's, and the large one has as many bottlenecks, as ResNet-50. width: of the first stage.
            inner: of attention and the decoder. layers: of attention. auxiliary: whether, in training, two more maps of
            classes come out, before and after. bottlenecks: in place of basic blocks. seed: of the weights.

    Raises:
        ValueError: other than four stages, or a size below one.

    Paper: Elhassan et al., arXiv 2310.15025. The authors' code reads the first pool twice and the second not; here the
    mixture reads all three.
    """

    def __init__(
        self,
        classes: int = 19,
        blocks: Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        inner: int = 64,
        layers: int = 2,
        auxiliary: bool = False,
        bottlenecks: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(blocks) != 4 or min(*blocks, classes, width, inner, layers) < 1:
            came = f"{classes}, {tuple(blocks)}, {width}, {inner}, {layers}"
            raise wrong("classes, blocks, width, inner, layers", came, "four stages, one or more of each")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem, self.pool = Convolved(3, width, 7, 2), nn.MaxPool2d(3, 2, 1)
            self.stages, widths = residual_stages(width, blocks, bottlenecks)
            self.reduce = activated(widths[3], inner)
            self.layers = nn.Sequential(*(Layer(inner) for _ in range(layers)))
            self.decode = nn.ModuleList(Decode(inner, side) for side in POOLS)
            self.fuse = nn.ModuleList(Fusion(widths[n], widths[n + 1], inner) for n in (1, 0))
            self.context = nn.ModuleList(Context(inner) for _ in range(2))
            self.refine = nn.ModuleList(activated(inner, inner, 3) for _ in range(3))
            self.join = nn.ModuleList(activated(2 * inner, inner, 3) for _ in range(2))
            self.classes = Classes(inner, classes)
            self.more = nn.ModuleList(Classes(inner, classes) for _ in range(2 if auxiliary else 0))

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        def made(seed: int = 0, bottlenecks: bool = False) -> P2AT:
            network = cls(5, (1, 1, 1, 1), 4, 8, 1, bottlenecks=bottlenecks, seed=seed)
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():  # past what a norm begins with
                for parameter in network.parameters():
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
            return settled(network, torch.randn(3, 3, 75, 99, generator=generator))

        return [
            image_sample("p2at", made(), (75, 99), 3, output=(5, 75, 99), again=lambda: made(7)),
            image_sample("p2at, bottlenecks", made(bottlenecks=True), (35, 41), 3, output=(5, 35, 41)),
        ]

    def features(self, images: Tensor) -> list[Tensor]:
        """The maps of the four stages."""
        x, found = self.pool(self.stem(images)), []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def forward(self, images: Tensor) -> Any:
        maps, size = self.features(images), (images.shape[2], images.shape[3])
        decoded, found = [self.decode[0](self.layers(self.reduce(maps[3])))], []
        for step, (fuse, context) in enumerate(zip(self.fuse, self.context, strict=True)):
            level = 1 - step
            fused = fuse(maps[level], maps[level + 1], decoded[-1])
            if self.more and self.training:
                found.append(self.more[step](fused))
            decoded.append(self.decode[step + 1](context(fused)))
        x = self.refine[0](decoded[2])
        for refine, join, deep in zip(list(self.refine)[1:], self.join, decoded[1::-1], strict=True):
            x = refine(join(torch.cat((resize(deep, x, "bilinear"), x), 1)))
        out = resize(self.classes(x), size, "aligned")
        if not found:
            return out
        first, last = (resize(each, size, "aligned") for each in found)
        return [first, out, last]
