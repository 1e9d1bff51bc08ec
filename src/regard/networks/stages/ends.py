"""What stands before, between and behind stages: stems, steps down and heads, by name."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.build import build_part
from regard.core.errors import wrong
from regard.featuremap.gates.se import SqueezeExcitation
from regard.networks.stages.norms import ConvNorm, norm_of, whole
from regard.networks.stages.steps.base import Added
from regard.networks.stages.steps.convolution import Local, NormedMLP, activation_of
from regard.networks.stages.steps.scanned import DeepStem, Summarised


class Patches(nn.Module):
    """One convolution of stride ``side`` with a norm behind or before it: patches, or half of the resolution.

    Args:
        inside, width: channels. norm: see `norm_of`. side: the stride. kernel: its side, padded by half; None for
            patches that do not overlap. before: whether the norm comes first. bias: of the convolution. filled: whether
            the map is filled up with zeros to a multiple of the stride; None for where patches do not overlap.
    """

    def __init__(
        self,
        inside: int,
        width: int,
        norm: str,
        side: int = 2,
        kernel: int | None = None,
        before: bool = False,
        bias: bool = True,
        filled: bool | None = None,
    ) -> None:
        super().__init__()
        size, padding = (side, 0) if kernel is None else (kernel, kernel // 2)
        self.side, self.before, self.filled = side, before, kernel is None if filled is None else filled
        self.norm = norm_of(norm, inside if before else width)
        self.convolution = nn.Conv2d(inside, width, size, side, padding, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.before:
            x = self.norm(x)
        x = self.convolution(whole(x, self.side) if self.filled else x)
        return x if self.before else self.norm(x)


class Merge(nn.Module):
    """Half of the resolution: ``W norm([x_00, x_10, x_01, x_11])``, the four cells of a square, row before column.

    Args:
        inside, width: channels. norm: see `norm_of`. Sides that are odd are filled up with zeros.

    Paper: Liu et al. (Swin), arXiv 2103.14030.
    """

    def __init__(self, inside: int, width: int, norm: str) -> None:
        super().__init__()
        self.norm, self.matrix = norm_of(norm, 4 * inside), nn.Conv2d(4 * inside, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = whole(x, 2)
        cells = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.matrix(self.norm(torch.cat(cells, 1)))


class Convolutions(nn.Module):
    """Convolutions 3 × 3 of stride two, each with twice the channels of the one before it.

    Args:
        inside, width: channels. norm: behind the last, and between. count: of them. activation: between. between:
            whether there are norms and activations between them. bias: of the convolutions. after: another norm at the
            end.
    """

    def __init__(
        self,
        inside: int,
        width: int,
        norm: str,
        count: int = 2,
        activation: str = "gelu",
        between: bool = True,
        bias: bool = True,
        after: str = "none",
    ) -> None:
        super().__init__()
        if count < 1 or width % 2 ** (count - 1):
            raise wrong("count", str(count), f"at least 1, and a power of two of so many less one divides {width}")
        widths = [inside, *(width // 2 ** (count - 1 - place) for place in range(count))]
        pairs = itertools.pairwise(widths)
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1, bias=bias) for a, b in pairs)
        normed = widths[1:] if between else widths[-1:]
        self.norms, self.act = nn.ModuleList(norm_of(norm, each) for each in normed), activation_of(activation)
        self.after = norm_of(after, width)

    def forward(self, x: Tensor) -> Tensor:
        between = len(self.norms) > 1
        for place, convolution in enumerate(self.convolutions):
            if place and between:
                x = self.act(self.norms[place - 1](x))
            x = convolution(x)
        return self.after(self.norms[-1](x))


class Pair(nn.Module):
    """A convolution 3 × 3 of stride two, a batch norm, an activation, and a convolution 3 × 3.

    Both are padded as TensorFlow does: at the far border first.

    Args:
        inside, width: channels. out: of what comes out, ``width`` where None. activation, eps: between.
    """

    def __init__(
        self, inside: int, width: int, out: int | None = None, activation: str = "gelu_tanh", eps: float = 1e-3
    ) -> None:
        super().__init__()
        self.out = width = out or width
        self.first, self.norm = nn.Conv2d(inside, width, 3, 2), nn.BatchNorm2d(width, eps)
        self.second, self.act = nn.Conv2d(width, width, 3, 1), activation_of(activation)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.first(same(x, 3, 2))))
        return self.second(same(x, 3, 1))


class MergeNormed(nn.Module):
    """Half of the resolution between two pairs of steps: `Local`, `NormedMLP`, merging, `Local`, `NormedMLP`.

    merging: norm W relu(norm conv_{3, stride 2}(relu(norm W' x))) with squeeze and excitation before W, of four
    times the channels
    """

    def __init__(self, inside: int, width: int) -> None:
        super().__init__()
        inner = 4 * inside
        self.before = nn.Sequential(*(plain(step) for step in (Local(inside), NormedMLP(inside))))
        self.first, self.second = ConvNorm(inside, inner), ConvNorm(inner, inner, 3, 2, inner)
        self.gate, self.third = SqueezeExcitation(inner, 4, 8), ConvNorm(inner, width)
        self.after = nn.Sequential(*(plain(step) for step in (Local(width), NormedMLP(width))))
        for module in (*self.before.modules(), *self.after.modules()):
            if isinstance(module, Local):  # which begins at zero in blocks alone
                nn.init.ones_(module.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(self.before(x)))))
        return self.after(self.third(self.gate(x)))


class MBConv(nn.Module):
    """The inverted bottleneck of MaxViT, which may halve the resolution and change the channels.

        y = W_3 gate(act(norm(conv_3(act(norm(W_1 norm(x))))))) + skip,   skip = W mean_2×2(x) with a stride, else x

    Args:
        inside, width: channels. stride: 1 or 2. ratio: of the inner channels to ``width``; the gate's bottleneck has a
            quarter of ``width``. activation, eps: of the norms.

    Paper: Tu et al., arXiv 2204.01697; padded as TensorFlow does.
    """

    def __init__(
        self,
        inside: int,
        width: int,
        stride: int = 2,
        ratio: int = 4,
        activation: str = "gelu_tanh",
        eps: float = 1e-3,
    ) -> None:
        super().__init__()
        inner, self.stride = width * ratio, stride
        self.skip = nn.Conv2d(inside, width, 1) if stride > 1 and inside != width else nn.Identity()
        self.norms = nn.ModuleList(nn.BatchNorm2d(c, eps) for c in (inside, inner, inner))
        self.first = nn.Conv2d(inside, inner, 1, bias=False)
        self.second = nn.Conv2d(inner, inner, 3, stride, groups=inner, bias=False)
        self.gate = SqueezeExcitation(inner, 4 * ratio, activation="silu")
        self.third, self.act = nn.Conv2d(inner, width, 1), activation_of(activation)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.act(self.norms[1](self.first(self.norms[0](x))))
        inner = self.act(self.norms[2](self.second(same(inner, 3, self.stride))))
        half = x if self.stride == 1 else F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
        return self.third(self.gate(inner)) + self.skip(half)


class Mean(nn.Module):
    """Classes of the mean of the cells, which is normed, or the mean of normed cells.

    Args:
        width: c. classes: to tell apart. norm: see `norm_of`. before: whether cells are normed, not their mean.
    """

    def __init__(self, width: int, classes: int, norm: str, before: bool = True) -> None:
        super().__init__()
        self.norm, self.classes, self.before = norm_of(norm, width), nn.Linear(width, classes), before

    def forward(self, x: Tensor) -> Tensor:
        if self.before:
            return self.classes(self.norm(x).mean((2, 3)))
        return self.classes(self.norm(x.mean((2, 3), keepdim=True)).flatten(1))


class Perceptron(nn.Module):
    """Classes of the normed mean of the cells by two matrices with an activation between, and a norm if ``again``.

    Args:
        width: c. classes: to tell apart. norm: see `norm_of`. ratio: of the inner width to c. activation, again: see
            above.
    """

    def __init__(
        self, width: int, classes: int, norm: str, ratio: float = 4, activation: str = "gelu", again: bool = True
    ) -> None:
        super().__init__()
        inner = int(ratio * width)
        self.norm, self.first, self.act = norm_of(norm, width), nn.Linear(width, inner), activation_of(activation)
        self.again = norm_of(norm, inner) if again else None
        self.classes = nn.Linear(inner, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(self.norm(x.mean((2, 3), keepdim=True)).flatten(1)))
        return self.classes(x if self.again is None else self.again(x[:, :, None, None]).flatten(1))


class Projected(nn.Module):
    """Classes of the mean of the cells, which one matrix without a bias and an activation make wider before.

    Args:
        width: c. classes: to tell apart. inner: the wider width. activation: see above.
    """

    def __init__(self, width: int, classes: int, inner: int = 1280, activation: str = "relu") -> None:
        super().__init__()
        self.first, self.act = nn.Linear(width, inner, bias=False), activation_of(activation)
        self.classes = nn.Linear(inner, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.act(self.first(x.mean((2, 3)))))


def plain(step: nn.Module) -> Added:
    """A step that is added as it is."""
    return Added(step, nn.Identity(), 0, None, 0.0)  # pyright: ignore[reportArgumentType]


def same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """``x`` filled up so that a convolution gives ⌈size / stride⌉ cells, one more zero at the far border if odd."""
    padding: list[int] = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding)


STEMS: dict[str, type[nn.Module]] = {"patch": Patches, "convolutions": Convolutions, "pair": Pair, "deep": DeepStem}
DOWNS: dict[str, type[nn.Module]] = {"patch": Patches, "merge": Merge, "merge_normed": MergeNormed, "mbconv": MBConv}
HEADS: dict[str, type[nn.Module]] = {"mean": Mean, "mlp": Perceptron, "projected": Projected, "summarised": Summarised}


def end_of(kind: str, text: str, **sizes: object) -> nn.Module:
    """The stem, step down or head of a text.

    Raises:
        ValueError: no such one. TypeError: an argument that it does not take.
    """
    known = {"stem": STEMS, "down": DOWNS, "head": HEADS}[kind]
    return build_part(sizes, kind, text, known)  # pyright: ignore[reportArgumentType]
