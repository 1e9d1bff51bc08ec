"""Select and pack attention: the tokens of all images that a gate keeps, in one row, each image apart."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.blocks.attention import Attention
from regard.blocks.block import Block
from regard.blocks.spatial import flat, image
from regard.core.atlas import Claim, published
from regard.core.build import build_for
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.networks.base import Network
from regard.networks.stages.norms import whole
from regard.networks.vision.vit import image_sample
from regard.projections.base import Grouped


class SelectAndPack(nn.Module):
    """A transformer block of the tokens that a gate keeps; the others stay as they are.

        s = w · norm(x) + b,   y_t = x_t + σ(s_t) block_delta(x)_t where t is kept, else x_t

    What is kept of all images stands in one row, or in bins of one length, in which attention sees the tokens of its
    own image alone, so that images may keep as many tokens as they need. σ(s) is the only way for a gradient to the
    gate beside its own labels.

    Args:
        width: of the tokens. heads: of the attention. inner: of the perceptron. share: of an image's tokens that are
            kept, those with the largest s; None for all with s > 0, and the largest always. length: of the bins, or
            that of the image that keeps the most tokens where it needs more; None for one row.

    Raises:
        ValueError: a share that is none, a length below one.
    """

    def __init__(
        self, width: int, heads: int, inner: int, share: float | None = 0.5, length: int | None = None
    ) -> None:
        super().__init__()
        if length is not None and length < 1:
            raise wrong("length", str(length), "at least 1, or None")
        self.length = length
        if share is not None and not 0 < share <= 1:
            raise wrong("share", str(share), "above 0, up to 1, or None")
        self.share = share
        self.norm, self.gate = nn.LayerNorm(width), nn.Linear(width, 1)
        self.block = Block(Attention(build_for({}, "softmax"), Grouped(Sizes.even(width, heads))), width, inner)

    def scores(self, x: Tensor) -> Tensor:
        """s ``(b, n)``: what labels supervise."""
        return self.gate(self.norm(x))[..., 0]

    def kept(self, scores: Tensor) -> Tensor:
        """Which tokens go on ``(b, n)``."""
        if self.share is None:
            return (scores > 0) | (scores == scores.amax(1, keepdim=True))
        count = max(1, round(self.share * scores.shape[1]))
        return torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.topk(count, 1).indices, True)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.scores(x)
        kept = self.kept(scores)
        images = torch.arange(x.shape[0], device=x.device)[:, None].expand_as(kept)[kept]
        if self.length is None:
            packed = x[kept][None]
            added = (self.block(packed, Layout(segments=images[None])) - packed)[0]
        else:
            rows, places, length = in_bins(kept.sum(1).tolist(), self.length)
            size = (max(rows) + 1, length)
            bin_of, first = (torch.tensor(each, device=x.device)[images] for each in (rows, places))
            within = torch.arange(len(images), device=x.device) - (kept.sum(1).cumsum(0) - kept.sum(1))[images]
            spot = (bin_of, first + within)
            packed = x.new_zeros(*size, x.shape[2]).index_put(spot, x[kept])
            segments = torch.full(size, len(x), device=x.device).index_put(spot, images)
            added = (self.block(packed, Layout(segments=segments)) - packed)[spot]
        return x.index_put((kept,), x[kept] + torch.sigmoid(scores[kept])[:, None] * added)


def in_bins(counts: Sequence[int], length: int) -> tuple[list[int], list[int], int]:
    """Where tokens of each image stand together: the first bin that has room for all of them, its number and the place
    of the first token; and the bins' length."""
    length, room, rows, places = max(length, *counts), [], [], []
    for count in counts:
        row = next((number for number, left in enumerate(room) if left >= count), len(room))
        if row == len(room):
            room.append(length)
        rows.append(row)
        places.append(length - room[row])
        room[row] -= count
    return rows, places, length


def labels_of(kinds: Tensor, boxes: Tensor, grid: tuple[int, int], step: float) -> Tensor:
    """Labels of selection ``(b, n)`` from boxes of detection: 1 for a cell, row by row, that some box touches.

    Args:
        kinds: ``(b, k)``, −1 for no box. boxes: ``(b, k, 4)``, left, top, right, bottom in pixels. step: pixels of a
            cell's side.
    """
    low = [step * torch.arange(n, device=boxes.device) for n in grid]
    down = (boxes[..., 1:2] < low[0] + step) & (boxes[..., 3:] > low[0])
    across = (boxes[..., 0:1] < low[1] + step) & (boxes[..., 2:3] > low[1])
    touched = down[..., :, None] & across[..., None, :] & (kinds >= 0)[..., None, None]
    return touched.any(1).flatten(1).to(boxes.dtype)


@published(
    "select_pack",
    family="vit",
    kind="network",
    row=55,
    title="Context-Aware Token Selection and Packing for Enhanced Vision Transformer",
    arxiv="2410.23608",
    year=2024,
    aliases=("spa",),
    fidelity="abstract only",
    claim=(
        Claim(
            "packed, the tokens of all images come out as those of each image alone",
            cells="select_pack.packed",
            holds="common.within(most=1e-9)",
        ),
        Claim(
            "a gate that learned from labels tells patches with a shape from others: the area under its "
            "curve on unseen ones is at least 0.9",
            cells="select_pack.gate",
            holds="select_pack.tells_shapes",
        ),
        Claim(
            "keeping half of 196 tokens takes at most 60% of the multiply-adds of keeping all",
            cells="select_pack.work",
            holds="select_pack.is_cheaper",
        ),
    ),
)
class SelectPackViT(Network):
    """A vision transformer whose blocks are `SelectAndPack`, in one stage or several, each of half the rows and columns
    of the one before it.

    Shapes: ``images (b, channels, y, x)`` -> ``(b, classes)``, of any height and width; zeros fill up to whole patches.

    Args:
        classes: to tell apart. width, heads, inner: see `SelectAndPack`. depth: blocks. All four are one number, or one
            for each stage. share, length: see `SelectAndPack`. patch: its side. channels: of the images. seed: of the
            weights.

    Raises:
        ValueError: other numbers of stages in width, heads, inner and depth.

    Paper: Zhang et al., arXiv 2410.23608.
    """

    def __init__(
        self,
        classes: int = 1000,
        width: int | Sequence[int] = 192,
        heads: int | Sequence[int] = 3,
        inner: int | Sequence[int] = 512,
        depth: int | Sequence[int] = 12,
        share: float | None = 0.5,
        patch: int = 16,
        channels: int = 3,
        seed: int = 0,
        length: int | None = None,
    ) -> None:
        super().__init__()
        given = [(each,) if isinstance(each, int) else tuple(each) for each in (width, heads, inner, depth)]
        if len({len(each) for each in given}) != 1 or not given[0]:
            raise wrong("width, heads, inner, depth", ", ".join(map(str, given)), "one of each for each stage")
        widths, *_ = given
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.patches = nn.Conv2d(channels, widths[0], patch, patch)
            self.positions = nn.Conv2d(widths[0], widths[0], 3, padding=1, groups=widths[0])
            self.stages = nn.ModuleList(
                nn.ModuleList(SelectAndPack(w, h, i, share, length) for _ in range(d))
                for w, h, i, d in zip(*given, strict=True)
            )
            self.halves = nn.ModuleList(nn.Conv2d(a, b, 2, 2) for a, b in itertools.pairwise(widths))
            self.classes = nn.Linear(widths[-1], classes)
        self.norm, self.patch = nn.LayerNorm(widths[-1]), patch

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        sizes = {"width": 12, "heads": 2, "inner": 17, "depth": 2, "patch": 4}
        two = {"width": (6, 12), "heads": (1, 2), "inner": (7, 17), "depth": (1, 2), "patch": 2, "length": 11}
        return [
            *(image_sample(f"share={share}", cls(7, share=share, **sizes), (18, 11)) for share in (0.5, None)),
            image_sample("two stages", cls(7, share=None, **two), (18, 11)),
        ]

    @property
    def blocks(self) -> list[SelectAndPack]:
        """The blocks of all stages."""
        return [each for each in self.modules() if isinstance(each, SelectAndPack)]

    def walk(self, images: Tensor) -> Iterator[tuple[SelectAndPack | None, Tensor, tuple[int, int]]]:
        """Each block with what it reads ``(b, n, width)`` and the grid of its cells, and None at each stage's end."""
        more = [-size % self.patch for size in images.shape[2:]]
        maps = self.patches(F.pad(images, (0, more[1], 0, more[0])))
        maps = maps + self.positions(maps)
        for number, stage in enumerate(self.stages.children()):
            if number:
                maps = self.halves[number - 1](whole(maps, 2))
            grid, x = (maps.shape[2], maps.shape[3]), flat(maps)
            for block in stage.children():
                assert isinstance(block, SelectAndPack)
                yield block, x, grid
                x = block(x)
            yield None, x, grid
            maps = image(x, grid)

    def features(self, images: Tensor) -> list[Tensor]:
        """The map of each stage ``(b, width, y, x)``, fine to coarse."""
        return [image(x, grid) for block, x, grid in self.walk(images) if block is None]

    def selection(self, images: Tensor) -> list[Tensor]:
        """The gates' scores ``(b, n)`` of each block."""
        return [block.scores(x) for block, x, _ in self.walk(images) if block is not None]

    def selection_loss(self, images: Tensor, kinds: Tensor, boxes: Tensor) -> Tensor:
        """The cross entropy of all gates' scores with `labels_of` the boxes, the mean over the blocks.

        Args:
            kinds: ``(b, k)``, −1 for no box. boxes: ``(b, k, 4)``, left, top, right, bottom in pixels.
        """
        found, step = [], self.patch
        for block, x, grid in self.walk(images):
            if block is None:
                step *= 2
                continue
            wanted = labels_of(kinds, boxes, grid, step).to(x.dtype)
            found.append(F.binary_cross_entropy_with_logits(block.scores(x), wanted))
        return torch.stack(found).mean()

    def forward(self, images: Tensor) -> Tensor:
        *_, (_, x, _) = self.walk(images)
        return self.classes(self.norm(x).mean(1))
