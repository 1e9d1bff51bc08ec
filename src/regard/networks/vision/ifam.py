"""iFAM: parts are found first, and what is no part is hidden from the network that answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
from regard.core.sizes import Sizes
from regard.networks.base import Network
from regard.networks.vision.vit import image_sample
from regard.projections.base import Grouped


class Trunk(nn.Module):
    """A vision transformer with a class token, in which hidden patches are keys of no query.

    Args:
        width, heads, inner, depth: of its blocks. patch: the side of a patch. side: patches a side that positions are
            for; they are interpolated to other maps. channels: of the images.
    """

    def __init__(
        self, width: int, heads: int, inner: int, depth: int, patch: int, side: int, channels: int = 3
    ) -> None:
        super().__init__()
        self.patch = patch
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, width, side, side))
        self.first = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.blocks = nn.ModuleList(
            Block(Attention(build_for({}, "softmax"), Grouped(Sizes.even(width, heads))), width, inner)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patches; zeros fill up the last ones."""
        return -(-images.shape[2] // self.patch), -(-images.shape[3] // self.patch)

    def forward(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """``(b, 1 + n, width)``, the class token first; ``kept (b, n)`` says which patches are seen, None for all."""
        rows, columns = self.grid(images)
        more = (columns * self.patch - images.shape[3], rows * self.patch - images.shape[2])
        x = self.patches(F.pad(images, (0, more[0], 0, more[1])))
        x = x + F.interpolate(self.positions, (rows, columns), mode="bilinear", align_corners=False)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x.flatten(2).mT], 1)
        layout = Layout() if kept is None else Layout(key_mask=F.pad(kept, (1, 0), value=True))
        for block in self.blocks:
            x = block(x, layout)
        return self.norm(x)


@published(
    "ifam",
    family="vit",
    kind="network",
    row=47,
    title="Inherently Faithful Attention Maps for Vision Transformers",
    arxiv="2506.08915",
    year=2025,
    aliases=("faithful_attention_maps", "two_stage_hard_masking"),
    fidelity="hand values",
    claim=Claim(
        "whatever stands in the pixels that are hidden, the answer of the second stage is the same bit by bit, and "
        "another one where patches are hidden only when they are pooled",
        cells="vision_maps.faithful",
        holds="vision_maps.is_exactly_faithful",
    ),
)
class FaithfulViT(Network):
    """Two vision transformers: the first finds parts, the second answers from their patches alone.

        maps = softmax_k −‖x_p − a_k‖²,   k a part or the background;   kept_p where the largest part is above it
        answers: of the second, whose class token sees kept patches; of the first, from each part's mean of maps · x

    In training maps and kept patches are drawn with Gumbel noise. No gradient passes through the choice. Once
    `find_thresholds` has seen a data set, patches that are less like their part than most there count as background.

    Shapes: ``images (b, channels, y, x)`` -> ``(b, 2, classes)``: the logits of the second stage, and those of the
    first, the mean over parts. Of any height and width.

    Args:
        classes: to tell apart. parts: without the background. width, heads, inner, depth, patch, side: see `Trunk`.
            channels: of the images. dropped: the share of parts that training hides. seed: of the weights.

    Raises:
        ValueError: no part.

    Paper: Aniraj et al., arXiv 2506.08915. The authors' code draws noise in evaluation too, where this does not. Both
    stages begin untrained here, there as published networks, whose weights are no part of the method.
    """

    def __init__(
        self,
        classes: int = 200,
        parts: int = 8,
        width: int = 384,
        heads: int = 6,
        inner: int = 1024,
        depth: int = 12,
        patch: int = 14,
        side: int = 16,
        channels: int = 3,
        dropped: float = 0.3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if parts < 1:
            raise wrong("parts", str(parts), "at least 1")
        self.dropped = dropped
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.one, self.two = (Trunk(width, heads, inner, depth, patch, side, channels) for _ in range(2))
            self.prototypes = nn.Parameter(torch.randn(parts + 1, width) * width**-0.5)
            self.modulation = nn.LayerNorm([parts + 1, width])
            self.part_classes = nn.Linear(width, classes, bias=False)
            self.norm, self.classes = nn.LayerNorm(width), nn.Linear(width, classes, bias=False)
        self.register_buffer("thresholds", torch.full((parts,), float("-inf")))

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        small = cls(7, 3, 12, 2, 17, 2, 4, 3)
        with torch.no_grad():  # spread, so that an image has patches of parts and of background
            small.prototypes.mul_(6)
        return [image_sample("ifam", small, (18, 11), output=(2, 7))]

    def maps(self, x: Tensor) -> Tensor:
        """Shares of the parts and, last, of the background ``(b, n, parts + 1)``, of the patches ``(b, n, width)``."""
        logits = -(x[:, :, None] - self.prototypes).square().sum(-1)
        if self.training:
            return F.gumbel_softmax(logits, dim=-1)
        thresholds = self.get_buffer("thresholds")
        if thresholds.isfinite().any():
            like = x @ self.prototypes.T
            short = like[:, :, :-1] < thresholds
            logits = torch.cat([like[:, :, :-1].masked_fill(short, float("-inf")), like[:, :, -1:]], -1)
        return torch.softmax(logits, -1)

    @torch.no_grad()
    def find_thresholds(self, batches: Iterable[Tensor], share: float = 0.05) -> Tensor:
        """Sets and gives, for each part, the product ``x_p · a_k`` that a ``share`` of the patches that are the part's
        in these images fall short of; −∞ for a part of no patch. From then on, in evaluation, a patch that falls short
        of a part's is none of it, and shares are the softmax of the products.

        Args:
            batches: images ``(b, channels, y, x)`` of a data set. share: 0 to 1; the authors try 0.01 to 0.1.

        Raises:
            ValueError: another share, or no image.
        """
        if not 0 <= share <= 1:
            raise wrong("share", str(share), "0 to 1")
        was, thresholds = self.training, self.get_buffer("thresholds").fill_(float("-inf"))
        like, parts = [], []
        self.eval()
        for images in batches:
            x = self.one(images)[:, 1:]
            like.append((x @ self.prototypes.T).flatten(0, 1))
            parts.append(self.maps(x).argmax(-1).flatten())
        self.train(was)
        if not like:
            raise wrong("batches", "none", "images of a data set")
        products, own = torch.cat(like), torch.cat(parts)
        for part in range(len(thresholds)):
            if (own == part).any():
                thresholds[part] = products[own == part, part].quantile(share)
        return thresholds

    def kept(self, maps: Tensor) -> Tensor:
        """Which patches the second stage sees ``(b, n)``."""
        parts = F.dropout1d(maps[:, :, :-1].mT, self.dropped, self.training).mT * (1 - self.dropped * self.training)
        return parts.amax(-1) > maps[:, :, -1]

    def second(self, images: Tensor, kept: Tensor) -> Tensor:
        """The logits of the second stage for these patches."""
        return self.classes(self.norm(self.two(images, kept)[:, 0]))

    def all_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """``classes (b, classes)`` of the second stage, ``parts (b, parts, classes)`` of the first, ``features (b,
        parts + 1, width)``, ``maps (b, n, parts + 1)``, ``kept (b, n)``."""
        x = self.one(images)[:, 1:]
        maps = self.maps(x)
        kept = self.kept(maps)
        features = self.modulation(maps.mT @ x / x.shape[1])
        found = {"classes": self.second(images, kept), "parts": self.part_classes(features[:, :-1])}
        return found | {"features": features, "maps": maps, "kept": kept}

    def losses(self, images: Tensor) -> dict[str, Tensor]:
        """What training adds to the errors of both answers, weighed as in the paper.

        Presence: each part somewhere in a batch; background: a part of every image; entropy: of each patch's shares;
        orthogonality: of the parts' features; equivariance: maps of flipped images are the flipped maps.
        """
        found, grid = self.all_outputs(images), self.one.grid(images)
        maps = found["maps"].mT.unflatten(2, grid)
        near = F.avg_pool2d(maps, min(3, *grid), 1)
        unit = F.normalize(found["features"], dim=-1)
        likeness = unit @ unit.mT - torch.eye(unit.shape[1], device=unit.device)
        turned = self.maps(self.one(images.flip(3))[:, 1:]).mT.unflatten(2, grid).flip(3)
        alike = F.cosine_similarity(maps[:, :-1].flatten(2), turned[:, :-1].flatten(2), dim=-1)
        background = maps[:, -1].mean((1, 2)).clamp(1e-6, 1)
        return {
            "presence": 1 - near.amax((2, 3)).amax(0).mean(),
            "background": -2 * background.log().mean(),
            "entropy": -(maps * maps.clamp(min=1e-12).log()).sum(1).mean(),
            "orthogonality": likeness.square().mean(),
            "equivariance": 1 - alike.mean(),
        }

    def forward(self, images: Tensor) -> Tensor:
        found = self.all_outputs(images)
        return torch.stack([found["classes"], found["parts"].mean(1)], 1)
