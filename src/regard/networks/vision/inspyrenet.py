"""InSPyReNet: salient objects as a pyramid, whose fine details are put together with those of a larger image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.build import build
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.parts.layers import Convolved
from regard.featuremap.resize import Size, resize
from regard.networks.base import Network
from regard.networks.stages.norms import whole
from regard.networks.vision.laplacian import blend, expanded
from regard.networks.vision.p2at import residual_stages
from regard.networks.vision.saliency_backbones import Res2Net, SwinMaps
from regard.networks.vision.vit import image_sample, settled

BLOCK = 32
"""Images are filled up to whole blocks of so many pixels."""
Kernel = tuple[int, int]


def normed(inside: int, out: int, kernel: Kernel = (1, 1), rate: int = 1, relu: bool = False) -> nn.Sequential:
    """A convolution without a bias that keeps the map's size, a batch norm and, if told, a relu."""
    pad = (kernel[0] // 2 * rate, kernel[1] // 2 * rate)
    layers = [nn.Conv2d(inside, out, kernel, 1, pad, rate, bias=False), nn.BatchNorm2d(out)]
    return nn.Sequential(*layers, *((nn.ReLU(),) if relu else ()))


SQUARE = (3, 3)


class LineAttention(nn.Module):
    """``x + γ A v`` where rows, or columns, attend to each other: a token is all numbers of a row.

    Scores are not scaled; queries and keys have an eighth of the channels; γ begins as zero.

    Args:
        width: of the map. rows: whether rows attend, else columns.
    """

    def __init__(self, width: int, rows: bool) -> None:
        super().__init__()
        self.rows, self.gamma = rows, nn.Parameter(torch.zeros(1))
        self.q, self.k, self.v = normed(width, width // 8), normed(width, width // 8), normed(width, width)
        self.mechanism = build("softmax", scale=1.0)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each(x).movedim(2 if self.rows else 3, 1) for each in (self.q, self.k, self.v))
        out = self.mechanism(*(each.flatten(2)[:, None] for each in (q, k, v)))
        return x + self.gamma * out[:, 0].view_as(v).movedim(1, 2 if self.rows else 3)


class Lines(nn.Module):
    """The sum of the attention of rows and of columns."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.of_rows, self.of_columns = LineAttention(width, True), LineAttention(width, False)

    def forward(self, x: Tensor) -> Tensor:
        return self.of_rows(x) + self.of_columns(x)


class Encoder(nn.Module):
    """``relu(norm(W [y_1, y_3, y_5, y_7]) + norm(W' x))``, y_1 a matrix of x, y_k what k cells and lines show.

    Args:
        inside, out: channels.
    """

    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        parts = []
        for side in (3, 5, 7):
            strips = (normed(out, out, (1, side)), normed(out, out, (side, 1)))
            parts.append(nn.Sequential(normed(inside, out), *strips, Lines(out), normed(out, out, SQUARE, side)))
        self.parts = nn.ModuleList([normed(inside, out), *parts])
        self.join, self.skip = normed(4 * out, out, SQUARE), normed(inside, out)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.join(torch.cat([each(x) for each in self.parts], 1)) + self.skip(x))


class Decoder(nn.Module):
    """Three levels as one map and its saliency, before the sigmoid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.lines = normed(3 * width, width, SQUARE), Lines(width)
        self.rest = nn.Sequential(*(normed(width, width, SQUARE) for _ in range(3)))
        self.last = nn.Conv2d(width, 1, 3, padding=1, bias=False)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        joined = torch.cat([resize(each, maps[0], "aligned") for each in reversed(maps)], 1)
        x = self.rest(self.lines(self.first(joined)))
        return x, self.last(x)


class Details(nn.Module):
    """Softmax attention of cells to a few contexts: what the coarser saliency calls object, background and unsure,
    and what its own details call object and background; each is the sum of the map weighed by that.

        fg = clip(σ(s) − t),  bg = clip(t − σ(s)),  unsure = t − |σ(s) − t|;   the same of the details, with t'

    Args:
        inside: channels of the map. width: within. finer: whether there are details of a coarser level.
        base: rows and columns that maps are brought to for the sums, None for their own.
    """

    def __init__(self, inside: int, width: int, finer: bool, base: Size | None) -> None:
        super().__init__()
        self.base, self.threshold = base, nn.Parameter(torch.tensor([0.5]))
        self.other = nn.Parameter(torch.tensor([0.5])) if finer else None
        self.q = nn.Sequential(normed(inside, width, SQUARE, relu=True), normed(width, width, SQUARE, relu=True))
        point = partial(normed, relu=True)
        self.k, self.v = (nn.Sequential(point(inside, width), point(width, width)) for _ in range(2))
        self.mechanism = build("softmax")
        self.first, self.second = (
            normed(width, width, SQUARE, relu=True),
            normed(inside + width, width, SQUARE, relu=True),
        )
        self.third, self.last = normed(width, width, SQUARE, relu=True), normed(width, 1)

    def shares(self, x: Tensor, saliency: Tensor, details: Tensor | None) -> Tensor:
        """How much of each context each cell is ``(b, 3 or 5, y, x)``."""
        p = torch.sigmoid(resize(saliency, x, "bilinear")) - self.threshold
        found = [p.clip(0, 1), (-p).clip(0, 1), self.threshold - p.abs()]
        if self.other is not None and details is not None:
            p = torch.sigmoid(resize(details, x, "bilinear")) - self.other
            found += [p.clip(0, 1), (-p).clip(0, 1)]
        return torch.cat(found, 1)

    def forward(self, x: Tensor, saliency: Tensor, details: Tensor | None = None) -> tuple[Tensor, Tensor]:
        size = self.base or (x.shape[2], x.shape[3])
        shares = resize(self.shares(x, saliency, details), size, "bilinear").flatten(2)
        contexts = (shares @ resize(x, size, "bilinear").flatten(2).mT).mT[..., None]
        q, k, v = (
            made(each).flatten(2).mT[:, None] for made, each in ((self.q, x), (self.k, contexts), (self.v, contexts))
        )
        read = self.mechanism(q, k, v)[:, 0].mT.unflatten(2, x.shape[2:])
        x = self.third(self.second(torch.cat((x, self.first(read)), 1)))
        return x, self.last(x)


class Residual(nn.Module):
    """A residual network whose pooled first map and four stages are read.

    Args:
        first: width of the first stage, which doubles. blocks: of each stage.
    """

    def __init__(self, first: int, blocks: Sequence[int]) -> None:
        super().__init__()
        self.stem, self.pool = Convolved(3, first, 7, 2), nn.MaxPool2d(3, 2, 1)
        self.stages, widths = residual_stages(first, blocks, False)
        self.widths = [first, *widths]

    def forward(self, images: Tensor) -> list[Tensor]:
        found = [self.pool(self.stem(images))]
        for stage in self.stages:
            found.append(stage(found[-1]))
        return found


BACKBONES: dict[str, type[Res2Net | SwinMaps]] = {"res2net": Res2Net, "swin": SwinMaps}


@published(
    "inspyrenet",
    family="featuremap",
    kind="network",
    row=154,
    title="Revisiting Image Pyramid Structure for High Resolution Salient Object Detection",
    arxiv="2209.09475",
    year=2022,
    aliases=("inverse_saliency_pyramid",),
    fidelity="authors' code",
    claim=(
        Claim(
            "a map is rebuilt exactly of its half and what the halving loses, whatever its size",
            cells="saliency.pyramids",
            holds="common.within(most=1e-5)",
        ),
        Claim(
            "blended, details of the larger image count along edges of the smaller one's saliency alone",
            cells="saliency.blended",
            holds="saliency.is_of_edges",
        ),
    ),
)
class InSPyReNet(Network):
    """Saliency of a quarter of the size and, level by level, the details that make the next finer one.

        s_3 = decoder(x_3, x_4, x_5)
        f_j, u_j = details(f_{j+1}, x_j | s_{j+1}, u_{j+1}),   s_j = expand(s_{j+1}) + u_j

    Shapes: ``images (b, 3, y, x)`` of any height and width -> the four s ``(b, 1, y / 2^j, x / 2^j)``, fine to coarse,
    before the sigmoid; no gradient flows from a level to a coarser one's saliency.

    Args:
        width: d, a multiple of 8. blocks, first: of the residual network's stages, and their first width. base: rows
            and columns, at the finest level, that the sums of contexts are made at, 384 × 384 in the authors'
            networks; None for the map's own. backbone: the authors' ``res2net`` (of 50 layers) or ``swin`` (base), or
            the smaller ``residual`` network. seed: of the weights.

    Raises:
        ValueError: a width that 8 does not divide, other than four stages, or another backbone.

    Paper: Kim et al., arXiv 2209.09475. The authors' code reads rows as columns, and the cells of contexts as channels,
    where it should turn a map's axes; here both are what they are called.
    """

    def __init__(
        self,
        width: int = 64,
        blocks: Sequence[int] = (2, 2, 2, 2),
        first: int = 64,
        base: Size | None = (384, 384),
        backbone: str = "residual",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if width < 1 or width % 8 or len(blocks) != 4 or min(*blocks, first) < 1:
            raise wrong("width, blocks, first", f"{width}, {tuple(blocks)}, {first}", "a multiple of 8, four stages")
        if backbone not in ("residual", *BACKBONES):
            raise wrong("backbone", repr(backbone), f"residual, {', '.join(BACKBONES)}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.backbone = Residual(first, blocks) if backbone == "residual" else BACKBONES[backbone]()
            widths = self.backbone.widths
            self.encoders = nn.ModuleList(Encoder(each, width) for each in widths)
            self.decoder, sizes = Decoder(width), (2 * width, 2 * width, width)
            self.details = nn.ModuleList(
                Details(each, width, level < 2, None if base is None else (base[0] >> level, base[1] >> level))
                for level, each in zip((2, 1, 0), sizes, strict=True)
            )

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        def made(seed: int = 0) -> InSPyReNet:
            network, generator = cls(8, (1, 1, 1, 1), 4, (24, 16), seed=seed), torch.Generator().manual_seed(seed)
            with torch.no_grad():  # past the zeros that it begins with
                for parameter in network.parameters():
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
            return settled(network, torch.randn(3, 3, 64, 96, generator=generator))

        sizes = [(1, 51, 83), (1, 26, 42), (1, 13, 21), (1, 7, 11)]
        return [image_sample("inspyrenet", made(), (51, 83), 3, output=sizes, again=lambda: made(7))]

    def features(self, images: Tensor) -> list[Tensor]:
        """Five maps, 4, 4, 8, 16 and 32 pixels a cell."""
        return list(self.backbone(images))

    def pyramid(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Saliency of four levels and details of three, fine to coarse, before the sigmoid, of whole blocks."""
        images = whole(images, BLOCK)
        return self.decoded([encode(x) for encode, x in zip(self.encoders, self.features(images), strict=True)])

    def decoded(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """`pyramid` of the five encoded maps."""
        deep, saliency = self.decoder(maps[2:])
        sizes = [(saliency.shape[2] << n, saliency.shape[3] << n) for n in (1, 2, 3)]
        found, lost, last = [saliency], [], None
        for place, (size, part) in enumerate(zip(sizes, self.details, strict=True)):
            x = resize(deep, size, "bilinear")
            if place < 2:
                x = torch.cat((resize(maps[1 - place], size, "bilinear"), x), 1)
            deep, details = part(x, found[-1].detach(), last)
            found.append(expanded(found[-1].detach()) + details)
            lost.append(details)
            last = details.detach()
        return found[::-1], lost[::-1]

    def forward(self, images: Tensor) -> list[Tensor]:
        y, x = images.shape[2:]
        return [each[:, :, : -(-y // 2**n), : -(-x // 2**n)] for n, each in enumerate(self.pyramid(images)[0])]

    def blended(self, images: Tensor, small: Size = (384, 384)) -> Tensor:
        """As ``forward``, for images larger than ``small``, the size that it was trained at: the smaller image's
        saliency with the details of the larger one along its edges."""
        coarse = self.forward(F.interpolate(images, small, mode="bilinear", align_corners=False))[0]
        saliency, details = self.pyramid(images)
        found = blend(resize(coarse, saliency[3], "bilinear"), details)
        return found[:, :, : images.shape[2], : images.shape[3]]
