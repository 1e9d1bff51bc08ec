"""Select and pack attention: the tokens of all images that a gate keeps, in one row, each image apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.blocks.attention import Attention
from regard.blocks.block import Block
from regard.core.atlas import Claim, published
from regard.core.build import build_for
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.networks.base import Network
from regard.networks.vision.vit import image_sample
from regard.projections.base import Grouped


class SelectAndPack(nn.Module):
    """A transformer block of the tokens that a gate keeps; the others stay as they are.

        s = w · norm(x) + b,   y_t = x_t + σ(s_t) block_delta(x)_t where t is kept, else x_t

    What is kept of all images stands in one row, in which attention sees the tokens of its own image alone, so that
    images may keep as many tokens as they need. σ(s) is the only way for a gradient to the gate beside its own labels.

    Args:
        width: of the tokens. heads: of the attention. inner: of the perceptron. share: of an image's tokens that are
            kept, those with the largest s; None for all with s > 0, and the largest always.

    Raises:
        ValueError: a share that is none.
    """

    def __init__(self, width: int, heads: int, inner: int, share: float | None = 0.5) -> None:
        super().__init__()
        if share is not None and not 0 < share <= 1:
            raise wrong("share", str(share), "above 0, up to 1, or None")
        self.share, each = share, width // heads
        self.norm, self.gate = nn.LayerNorm(width), nn.Linear(width, 1)
        self.block = Block(Attention(build_for({}, "softmax"), Grouped(width, heads, heads, each, each)), width, inner)

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
        packed = x[kept][None]
        images = torch.arange(x.shape[0], device=x.device)[:, None].expand_as(kept)[kept][None]
        added = self.block(packed, Layout(segments=images)) - packed
        return x.index_put((kept,), (packed + torch.sigmoid(scores[kept])[None, :, None] * added)[0])


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
    missing="stages of falling resolution, bins of equal length, labels from boxes of detection",
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
    """A vision transformer whose blocks are `SelectAndPack`.

    Shapes: ``images (b, channels, y, x)`` -> ``(b, classes)``, of any height and width; zeros fill up to whole patches.

    Args:
        classes: to tell apart. width, heads, inner, share: see `SelectAndPack`. depth: blocks. patch: its side.
            channels: of the images. seed: of the weights.

    Paper: Zhang et al., arXiv 2410.23608.
    """

    def __init__(
        self,
        classes: int = 1000,
        width: int = 192,
        heads: int = 3,
        inner: int = 512,
        depth: int = 12,
        share: float | None = 0.5,
        patch: int = 16,
        channels: int = 3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.patches = nn.Conv2d(channels, width, patch, patch)
            self.positions = nn.Conv2d(width, width, 3, padding=1, groups=width)
            self.blocks = nn.ModuleList(SelectAndPack(width, heads, inner, share) for _ in range(depth))
            self.classes = nn.Linear(width, classes)
        self.norm, self.patch = nn.LayerNorm(width), patch

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        sizes = {"width": 12, "heads": 2, "inner": 17, "depth": 2, "patch": 4}
        return [image_sample(f"share={share}", cls(7, share=share, **sizes), (18, 11)) for share in (0.5, None)]

    def tokens(self, images: Tensor) -> Tensor:
        """``(b, n, width)``, row by row."""
        more = [-size % self.patch for size in images.shape[2:]]
        maps = self.patches(F.pad(images, (0, more[1], 0, more[0])))
        return (maps + self.positions(maps)).flatten(2).mT

    def selection(self, images: Tensor) -> list[Tensor]:
        """The gates' scores ``(b, n)`` of each block."""
        x, found = self.tokens(images), []
        for block in self.blocks:
            assert isinstance(block, SelectAndPack)
            found.append(block.scores(x))
            x = block(x)
        return found

    def forward(self, images: Tensor) -> Tensor:
        x = self.tokens(images)
        for block in self.blocks:
            x = block(x)
        return self.classes(self.norm(x).mean(1))
