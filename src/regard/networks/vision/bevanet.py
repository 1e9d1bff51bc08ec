"""BEVANet: a branch of details and a branch of meaning that attend with large kernels, joined along boundaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample
from regard.featuremap.gates.sdlska import LargeKernel
from regard.featuremap.resize import resize
from regard.networks.base import Network, modules_of, told_by
from regard.networks.stages.norms import ChannelNorm, ConvNorm
from regard.networks.vision.vit import image_sample

NEAR, FAR = 23, 35
"""The spans of the large kernels of the two branches."""


class Basic(nn.Module):
    """``act(norm(conv(relu(norm(conv(x))))) + skip(x))`` with convolutions 3 × 3; act a relu, or nothing.

    Args:
        inside, out: channels. stride: of the first convolution. active: whether act is a relu.
    """

    def __init__(self, inside: int, out: int, stride: int = 1, active: bool = True) -> None:
        super().__init__()
        self.first, self.second, self.active = ConvNorm(inside, out, 3, stride), ConvNorm(out, out, 3), active
        self.skip = nn.Identity() if stride == 1 and inside == out else ConvNorm(inside, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.relu(self.first(x))) + self.skip(x)
        return torch.relu(x) if self.active else x


def basics(inside: int, out: int, count: int, stride: int = 1) -> nn.Sequential:
    """Several of them, of which the last has no relu at its end if it is not the only one."""
    first = Basic(inside, out, stride)
    return nn.Sequential(first, *(Basic(out, out, active=place < count - 1) for place in range(1, count)))


class Bottleneck(nn.Module):
    """``norm(W_3 relu(norm(conv_3×3(relu(norm(W_1 x)))))) + skip(x)``; skip is ``norm(W x)`` where channels differ.

    Args:
        inside, inner: channels that come in, and of the convolution; twice the latter come out.
    """

    def __init__(self, inside: int, inner: int) -> None:
        super().__init__()
        self.first, self.second = ConvNorm(inside, inner), ConvNorm(inner, inner, 3)
        self.third = ConvNorm(inner, 2 * inner)
        self.skip = nn.Identity() if inside == 2 * inner else ConvNorm(inside, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.relu(self.second(torch.relu(self.first(x))))) + self.skip(x)


class Activated(nn.Sequential):
    """A batch norm, a relu and a convolution without a bias."""

    def __init__(self, inside: int, out: int, side: int = 1, dilation: int = 1) -> None:
        pad = side // 2 * dilation
        convolution = nn.Conv2d(inside, out, side, padding=pad, dilation=dilation, bias=False)
        super().__init__(nn.BatchNorm2d(inside), nn.ReLU(), convolution)


class Separable(nn.Module):
    """Every entry weighed by four depthwise strips, one after the other, and a matrix: a span of 35 × 35.

        y = x ⊙ W C_2 R_2 C_1 R_1 x

    Args:
        width: c.

    Paper: Lau et al. (LSKA), arXiv 2309.01439.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        shapes = (((1, 5), (0, 2), 1), ((5, 1), (2, 0), 1), ((1, 11), (0, 15), 3), ((11, 1), (15, 0), 3))
        strips = (nn.Conv2d(width, width, k, 1, pad, step, width) for k, pad, step in shapes)
        self.strips, self.mix = nn.Sequential(*strips), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mix(self.strips(x))


class Attended(nn.Module):
    """``x + W_2 gate(gelu(W_1 x))``.

    Args:
        width: c. gate: what attends.
    """

    def __init__(self, width: int, gate: nn.Module) -> None:
        super().__init__()
        self.first, self.gate, self.second = nn.Conv2d(width, width, 1), gate, nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.gate(F.gelu(self.first(x))))


class LargeKernelBlock(nn.Module):
    """Attention of a large kernel and a perceptron with a depthwise convolution, then a norm of each cell.

        x ← x + α ⊙ attended(norm(x)),   x ← x + β ⊙ W_2 gelu(conv_3×3(W_1 norm(x))),   y = layernorm(x)

    Args:
        width: c. span: of the kernel. ratio: of the inner channels to c.
    """

    def __init__(self, width: int, span: int, ratio: int = 4) -> None:
        super().__init__()
        inner = ratio * width
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))
        self.attended = Attended(width, LargeKernel(width, span))
        self.first, self.second = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)
        self.near, self.last = nn.Conv2d(inner, inner, 3, padding=1, groups=inner), ChannelNorm(width)
        self.scales = nn.ParameterList(torch.full((width, 1, 1), 1e-2) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scales[0] * self.attended(self.norms[0](x))
        x = x + self.scales[1] * self.second(F.gelu(self.near(self.first(self.norms[1](x)))))
        return self.last(x)


class PixelFusion(nn.Module):
    """Takes from the coarser map where the two agree: ``(1 − s) x + s up(y)``, s = σ(Σ_c norm(W x) ⊙ up(norm(V y))).

    Args:
        width: c of both. inner: of W and V.

    Paper: Xu et al. (PIDNet), arXiv 2206.02066.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.own, self.other = ConvNorm(width, inner), ConvNorm(width, inner)

    def share(self, x: Tensor, y: Tensor) -> Tensor:
        """s ``(b, 1, y, x)``."""
        return torch.sigmoid((self.own(x) * resize(self.other(y), x, "bilinear")).sum(1, keepdim=True))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        s = self.share(x, y)
        return (1 - s) * x + s * resize(y, x, "bilinear")


class LargeKernelPyramid(nn.Module):
    """Means of 5 × 5, 9 × 9, halves and all cells, and `Separable` attention, each added to what came before it.

    Args:
        inside, width, out: channels that come in, of each level, and that come out.
    """

    def __init__(self, inside: int, width: int, out: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(Activated(inside, width) for _ in range(5))
        self.norm, self.attended = nn.BatchNorm2d(width), Attended(width, Separable(width))
        self.scale = nn.Parameter(torch.full((width, 1, 1), 1e-2))
        self.steps = nn.ModuleList(Activated(width, width, 3, dilation) for dilation in (2, 2, 1, 1, 1))
        self.joined, self.skip = Activated(6 * width, out), Activated(inside, out)

    def forward(self, x: Tensor) -> Tensor:
        pools = (
            F.avg_pool2d(x, 5, 2, 2),
            F.avg_pool2d(x, 9, 4, 4),
            F.adaptive_avg_pool2d(x, (2, 2)),
            F.adaptive_avg_pool2d(x, (1, 1)),
        )
        first, *others = self.levels
        start = first(x)
        levels = [resize(level(pool), x, "bilinear") for level, pool in zip(others, pools, strict=True)]
        levels.insert(2, start + self.scale * self.attended(self.norm(start)))
        found = [start]
        for step, level in zip(self.steps, levels, strict=True):
            found.append(step(level + found[-1]))
        return self.joined(torch.cat(found, 1)) + self.skip(x)


class BoundaryFusion(nn.Module):
    """Details along boundaries, meaning elsewhere, and both: ``f(e ⊙ p + (1 − e) ⊙ i + p + i)``, e = σ(d).

    Args:
        width: c of the details, of the meaning and of d.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.details, self.meaning, self.out = (Activated(width, width, 3) for _ in range(3))

    def share(self, p: Tensor, i: Tensor, d: Tensor) -> Tensor:
        """e ``(b, c, y, x)``."""
        return torch.sigmoid(d)

    def forward(self, p: Tensor, i: Tensor, d: Tensor) -> Tensor:
        e, p, i = self.share(p, i, d), self.details(p), self.meaning(i)
        return self.out(e * p + (1 - e) * i + p + i)


class Classes(nn.Sequential):
    """A convolution 3 × 3 and a matrix to classes, each after a norm and a relu; the last has a bias."""

    def __init__(self, inside: int, inner: int, classes: int) -> None:
        last = Activated(inner, classes)
        last[2] = nn.Conv2d(inner, classes, 1)
        super().__init__(Activated(inside, inner, 3), last)


class Bilateral(Network):
    """The two branches: details keep an eighth of the resolution, the meaning goes down to a 32nd, and the details take
    from it twice, by `PixelFusion`.

    Args:
        blocks: of the first four stages, the last two of meaning. width: w, of the first stage.
    """

    def __init__(self, blocks: Sequence[int], width: int) -> None:
        super().__init__()
        w = width
        halves = ((3, w), (w, w))
        self.stem = nn.Sequential(
            *(part for a, b in halves for part in (nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()))
        )
        self.first, self.second = basics(w, w, blocks[0]), basics(w, 2 * w, blocks[1], 2)
        self.meaning = nn.ModuleList((basics(2 * w, 4 * w, blocks[2], 2), deeper(4 * w, 8 * w)))
        near = nn.Sequential(Basic(2 * w, 2 * w), LargeKernelBlock(2 * w, NEAR))
        self.details = nn.ModuleList((basics(2 * w, 2 * w, blocks[0]), near, Bottleneck(2 * w, 2 * w)))
        self.narrow = nn.ModuleList(ConvNorm(inside, 2 * w) for inside in (4 * w, 8 * w))
        self.fusions = nn.ModuleList(PixelFusion(2 * w, w) for _ in range(2))

    def branches(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Details after each of their first two stages ``(b, 2 w, y / 8, x / 8)``, and the meaning after its second
        ``(b, 8 w, y / 32, x / 32)``."""
        x = torch.relu(self.second(torch.relu(self.first(self.stem(images)))))
        meaning, details, found = x, x, []
        for place in range(2):
            meaning, details = self.meaning[place](meaning), self.details[place](details)
            meaning = meaning if place else torch.relu(meaning)
            details = self.fusions[place](details, self.narrow[place](meaning))
            details = details if place else torch.relu(details)
            found.append(details)
        return found[0], found[1], meaning

    def intermediates(self, images: Tensor) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What large kernels weigh their map by ``(b, c, y, x)``, and the shares of both kinds of fusion."""

        def shares(module: Any, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
            return module.factors(given[0])["cyx"] if isinstance(module, LargeKernel) else module.share(*given)

        with told_by(modules_of(self, (LargeKernel, PixelFusion, BoundaryFusion)), shares) as found:
            self(images)
        return found


@published(
    "bevanet",
    family="featuremap",
    kind="network",
    title="BEVANet: Bilateral Efficient Visual Attention Network for Real-Time Semantic Segmentation",
    arxiv="2508.07300",
    year=2025,
    fidelity="authors' code",
    claim=(
        Claim(
            "it has the parameters that the authors print, and exactly as many as their network",
            cells="map_networks.bevanet",
            holds="map_networks.is_bevanet",
        ),
    ),
)
class BEVANet(Bilateral):
    """Classes of each cell by two branches: one keeps an eighth of the resolution, the other goes down to a 64th.

    The details take from the meaning twice, by `PixelFusion`; the meaning ends in a `LargeKernelPyramid`;
    `BoundaryFusion` joins both. Of kernels of span 35 and 23 see the gate `sdlska`.

    Shapes: ``images (b, 3, y, x)`` -> ``(b, classes, y, x)``, of any height and width.

    Args:
        classes: to tell apart. blocks: of the first four stages, the last two of meaning. width: of the first stage.
            pooled: of the pyramid's levels. head: of the last convolution. supervised: whether there are the two heads
            that only training reads, by `all_outputs`. seed: of the weights.

    Paper: Huang et al., arXiv 2508.07300. Its form for classes of whole images is `bevanet_classes`.
    """

    def __init__(
        self,
        classes: int = 19,
        blocks: Sequence[int] = (2, 2, 4),
        width: int = 64,
        pooled: int = 96,
        head: int = 128,
        supervised: bool = False,
        seed: int = 0,
    ) -> None:
        w = width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(blocks, width)
            self.meaning.append(deeper(8 * w, 16 * w))
            self.boundary, self.pyramid = Bottleneck(2 * w, 2 * w), LargeKernelPyramid(16 * w, pooled, 4 * w)
            self.joined, self.head = BoundaryFusion(4 * w), Classes(4 * w, head, classes)
            ends = {"details": Classes(2 * w, head, classes), "boundary": Classes(2 * w, w, 1)}
            self.supervised = nn.ModuleDict(ends if supervised else {})

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [image_sample("bevanet", cls(5, (2, 1, 2), 4, 5, 6), (75, 49), 3, output=(5, 75, 49))]

    def all_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """At an eighth of the resolution: ``classes (b, classes, y / 8, x / 8)``, and where there are heads for them
        ``details``, the same of the details alone, and ``boundary (b, 1, y / 8, x / 8)``, all before any squash."""
        early, details, meaning = self.branches(images)
        meaning = resize(self.pyramid(self.meaning[2](meaning)), details, "bilinear")
        joined = self.joined(self.details[2](details), meaning, self.boundary(details))
        read = {"details": early, "boundary": details}
        return {"classes": self.head(joined)} | {name: head(read[name]) for name, head in self.supervised.items()}

    def forward(self, images: Tensor) -> Tensor:
        return resize(self.all_outputs(images)["classes"], (images.shape[2], images.shape[3]), "bilinear")


@published(
    "bevanet_classes",
    family="featuremap",
    kind="network",
    title="BEVANet: Bilateral Efficient Visual Attention Network for Real-Time Semantic Segmentation",
    arxiv="2508.07300",
    year=2025,
    fidelity="authors' code",
    claim=Claim(
        "it has the parameters that the authors print for the networks that they pretrain",
        cells="map_networks.bevanet_classes",
        holds="map_networks.is_bevanet_classes",
    ),
)
class BEVANetClasses(Bilateral):
    """Classes of whole images by the two branches of `bevanet`, the form in which they are pretrained.

        y = W mean(relu(norm(V relu(deep(meaning) + down(details))))) + b

    deep are two bottlenecks around two blocks of the kernel of span 35, at a 32nd of the resolution; down are two
    convolutions 3 × 3 of stride two with norms.

    Shapes: ``images (b, 3, y, x)`` -> ``(b, classes)``, of any height and width.

    Args:
        classes: to tell apart. blocks, width: as of `bevanet`. last: channels of V. seed: of the weights.

    Paper: Huang et al., arXiv 2508.07300.
    """

    def __init__(
        self, classes: int = 1000, blocks: Sequence[int] = (2, 2, 4), width: int = 64, last: int = 2048, seed: int = 0
    ) -> None:
        w = width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(blocks, width)
            spans = (LargeKernelBlock(16 * w, FAR) for _ in range(2))
            self.meaning.append(nn.Sequential(Bottleneck(8 * w, 8 * w), *spans, Bottleneck(16 * w, 8 * w)))
            self.down = nn.Sequential(ConvNorm(4 * w, 8 * w, 3, 2), nn.ReLU(), ConvNorm(8 * w, 16 * w, 3, 2))
            self.last, self.head = ConvNorm(16 * w, last), nn.Linear(last, classes)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [image_sample("bevanet_classes", cls(5, (2, 1, 2), 4, 6), (75, 49), 3, output=(5,))]

    def forward(self, images: Tensor) -> Tensor:
        _, details, meaning = self.branches(images)
        deep = self.meaning[2](meaning)
        x = torch.relu(deep + resize(self.down(self.details[2](details)), deep))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


def deeper(inside: int, out: int) -> nn.Sequential:
    """Half of the resolution, and two blocks of the larger kernel."""
    return nn.Sequential(Basic(inside, out, 2), LargeKernelBlock(out, FAR), LargeKernelBlock(out, FAR))
