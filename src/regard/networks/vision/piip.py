"""Parameter-inverted image pyramids: large networks see small images, small ones large images, and they exchange."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.blocks.attention import Attention
from regard.blocks.spatial import flat, image
from regard.core.atlas import Claim, published
from regard.core.build import build
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.featuremap.parts.dropped import Dropped
from regard.networks.base import Network, modules_of, told_by
from regard.networks.stages.norms import whole
from regard.networks.stages.steps.attention import Biased
from regard.networks.vision.vit import random_images

EPS, PATCH, POINTS, GROUPS = 1e-6, 16, 4, 32


@dataclass(frozen=True)
class Branch:
    """One network of the pyramid.

    Args:
        width, depth, heads: of its layers. side: of its images in pixels; of all branches' sides only the ratios count.
        window: side of the windows that tokens attend in, in patches; 0 for attention to all. drop: the share of images
            that go without an attention, or a perceptron, of a layer in training.
    """

    width: int
    depth: int
    heads: int
    side: int
    window: int = 0
    drop: float = 0.0


TINY, SMALL, BASE, LARGE = (192, 12, 3), (384, 12, 6), (768, 12, 12), (1024, 24, 16)
PYRAMIDS = {
    "TSB": (Branch(*BASE, 448, 14, 0.15), Branch(*SMALL, 896, 14, 0.05), Branch(*TINY, 1120, 14, 0.05)),
    "SBL": (Branch(*LARGE, 672, 28, 0.4), Branch(*BASE, 1120, 28, 0.15), Branch(*SMALL, 1568, 28, 0.05)),
}
"""Coarse to fine: the largest network of the smallest image first."""


class Layer(nn.Module):
    """``y = x + d γ_1 attention(norm(x))``, ``y + d γ_2 W_2 gelu(W_1 norm(y))``, d the dropping of paths.

    Args:
        width, heads: of the attention. window: side of its windows, which begin at the first token; 0 for none. drop:
            the share of images that go without a branch in training.
    """

    def __init__(self, width: int, heads: int, window: int = 0, drop: float = 0.0) -> None:
        super().__init__()
        self.gamma1, self.gamma2 = (nn.Parameter(torch.ones(width)) for _ in range(2))
        self.norm1, self.norm2 = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        mechanism = build("windows", side=window) if window else build("softmax")
        self.attention = Attention(mechanism, Biased(width, heads, True))
        self.inner = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropped = Dropped(drop)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = x + self.dropped(self.gamma1 * self.attention(self.norm1(x), Layout(grid=size)))
        return x + self.dropped(self.gamma2 * self.inner(self.norm2(x)))


class Tokens(nn.Module):
    """Patches of 16 × 16 pixels of an image of any size, with learned places, brought to its patches bicubically."""

    def __init__(self, width: int, places: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, PATCH, PATCH)
        self.places = nn.Parameter(0.02 * torch.randn(1, width, places, places))

    def forward(self, images: Tensor) -> Tensor:
        """``(b, width, y, x)``."""
        x = self.patches(whole(images, PATCH))
        return x + F.interpolate(self.places, x.shape[2:], mode="bicubic", align_corners=False).to(x.dtype)


class Crossed(nn.Module):
    """Softmax attention of a branch's tokens to another's: ``W A V y``.

    Args:
        width: of both. heads: of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.mechanism, self.heads, self.out = build("softmax"), heads, nn.Linear(width, width)

    def forward(self, x: Tensor, y: Tensor, sizes: tuple) -> Tensor:
        of = ((self.q, x), (self.k, y), (self.v, y))
        q, k, v = (made(each).unflatten(2, (self.heads, -1)).transpose(1, 2) for made, each in of)
        return self.out(self.mechanism(q, k, v).transpose(1, 2).flatten(2))


class Deformable(nn.Module):
    """Attention of a branch's tokens to a few places of another's map, for each head: ``W A V y``.

        A_i = Σ_p softmax_p(w_p · x_i) S(r_i + o_p(x_i)),   o_p = U_p x_i + b_p

    r_i is the place of token i, S reads bilinearly between four cells, zero outside; o_p is in cells. U and w begin as
    zero, b_p p steps away, in another direction for each head.

    Args:
        width: of both. heads: of the attention. ratio: of the values' width.
    """

    def __init__(self, width: int, heads: int, ratio: float) -> None:
        super().__init__()
        inner = int(width * ratio)
        self.heads = heads
        self.v, self.out = nn.Linear(width, inner), nn.Linear(inner, width)
        self.offsets, self.scores = nn.Linear(width, heads * POINTS * 2), nn.Linear(width, heads * POINTS)
        angles = torch.arange(heads) * (2 * math.pi / heads)
        directions = torch.stack((angles.cos(), angles.sin()), -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, POINTS + 1)[:, None]
        with torch.no_grad():
            for layer in (self.offsets, self.scores):
                layer.weight.zero_()
            self.scores.bias.zero_()
            self.offsets.bias.copy_((directions[:, None] * steps).flatten())

    def places(self, x: Tensor, own: tuple[int, int], other: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Where each token reads ``(b · h, n, points, 2)``, −1 to 1, column first, and the weights of the places."""
        offsets = self.offsets(x).unflatten(2, (self.heads, POINTS, 2)).transpose(1, 2)
        weights = torch.softmax(self.scores(x).unflatten(2, (self.heads, POINTS)), -1).transpose(1, 2)
        y, z = ((torch.arange(n, device=x.device, dtype=x.dtype) + 0.5) / n for n in own)
        places = torch.stack(torch.meshgrid(z, y, indexing="xy"), -1).flatten(0, 1)[:, None]
        found = places + offsets / x.new_tensor([other[1], other[0]])
        return (2 * found - 1).flatten(0, 1), weights.flatten(0, 1)

    def forward(self, x: Tensor, y: Tensor, sizes: tuple) -> Tensor:
        values = self.v(y).mT.unflatten(1, (self.heads, -1)).unflatten(3, sizes[1]).flatten(0, 1)
        places, weights = self.places(x, *sizes)
        read = F.grid_sample(values, places, padding_mode="zeros", align_corners=False)
        return self.out((read * weights[:, None]).sum(-1).unflatten(0, (-1, self.heads)).flatten(1, 2).mT)

    def attention(self, x: Tensor, sizes: tuple) -> Tensor:
        """A ``(b, h, n, m)``."""
        places, weights = self.places(x, *sizes)
        count = sizes[1][0] * sizes[1][1]
        every = torch.eye(count, device=x.device, dtype=x.dtype).unflatten(1, sizes[1])
        read = F.grid_sample(every.expand(len(places), -1, -1, -1), places, padding_mode="zeros", align_corners=False)
        return (read * weights[:, None]).sum(-1).mT.unflatten(0, (-1, self.heads))


class Injector(nn.Module):
    """``z = x + γ attention(norm(x), norm(y))``, ``z + τ d W_2 gelu(D W_1 norm(z))``, γ and τ zero at first.

    D is a depthwise convolution 3 × 3 of the tokens' map, of a quarter of the width, d the dropping of paths; as in the
    authors' code the attention is never dropped.
    """

    def __init__(self, width: int, attention: nn.Module, drop: float = 0.0) -> None:
        super().__init__()
        self.gamma, self.tau = (nn.Parameter(torch.zeros(width)) for _ in range(2))
        self.own, self.other, self.attention = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS), attention
        inner = width // 4
        self.norm, self.first = nn.LayerNorm(width, EPS), nn.Linear(width, inner)
        self.depthwise, self.second = nn.Conv2d(inner, inner, 3, padding=1, groups=inner), nn.Linear(inner, width)
        self.dropped = Dropped(drop)

    def forward(self, x: Tensor, y: Tensor, sizes: tuple) -> Tensor:
        x = x + self.gamma * self.attention(self.own(x), self.other(y), sizes)
        inner = flat(self.depthwise(image(self.first(self.norm(x)), sizes[0])))
        return x + self.tau * self.dropped(self.second(F.gelu(inner)))


class Interaction(nn.Module):
    """Two branches read each other, the coarser one first: each gets the other's tokens by a matrix to its width."""

    def __init__(self, coarse: int, fine: int, attention: Callable[[int], nn.Module], drop: float = 0.0) -> None:
        super().__init__()
        self.to_fine, self.to_coarse = nn.Linear(coarse, fine), nn.Linear(fine, coarse)
        self.coarse = Injector(coarse, attention(coarse), drop)
        self.fine = Injector(fine, attention(fine), drop)

    def forward(self, coarse: Tensor, fine: Tensor, sizes: tuple, others: tuple) -> tuple[Tensor, Tensor]:
        from_coarse, from_fine = self.to_fine(coarse), self.to_coarse(fine)
        return self.coarse(coarse, from_fine, (sizes, others)), self.fine(fine, from_coarse, (others, sizes))


def merging(inside: int, out: int) -> nn.Sequential:
    """Two convolutions 3 × 3, each with a group norm and a relu."""
    layers: list[nn.Module] = []
    for width in (inside, out):
        layers += [nn.Conv2d(width, out, 3, padding=1, bias=False), nn.GroupNorm(GROUPS, out), nn.ReLU()]
    return nn.Sequential(*layers)


@published(
    "piip",
    family="featuremap",
    kind="network",
    row=268,
    title="Parameter-Inverted Image Pyramid Networks for Visual Perception and Multimodal Understanding",
    arxiv="2501.07783",
    year=2025,
    aliases=("parameter_inverted_pyramid",),
    fidelity="authors' code",
    claim=(
        Claim(
            "with γ and τ zero each branch is as it is alone, bit by bit",
            cells="inverted.alone",
            holds="inverted.is_alone",
        ),
        Claim(
            "TSB at 448, 896 and 1,120 pixels takes at most 60% of the multiply-adds of its largest network at 1,120",
            cells="inverted.work",
            holds="inverted.is_at_most(share=0.6)",
        ),
    ),
)
class PIIP(Network):
    """Vision transformers of one image at several sizes, the larger the smaller its image, which read each other
    between their layers and end in one map.

        x_i = layers_i(x_i);   x_i, x_{i+1} = exchange(x_i, x_{i+1}) from the finest pair to the coarsest, several times
        merged = Σ_i w_i up(merge_i(x_i))

    Exchanges are `Interaction`, with `Deformable` attention or that of all tokens; up is bilinear, to the finest map.

    Shapes: ``images (b, 3, y, x)`` of any height and width -> four maps ``(b, width_0, y_l, x_l)``, 4 to 32 pixels a
    cell, which the deconvolutions of a detector make of the merged one.

    Args:
        branches: coarse to fine, or the name of a pyramid, TSB or SBL. heads: of exchanges. deformable: their
            attention. ratio: of its values' width. steps: exchanges, which divide every depth. places: rows and columns
            of learned places. drop: the share of images that go without a perceptron of an exchange in training; each
            branch says its own. seed: of the weights.

    Raises:
        ValueError: another name, fewer than two branches, a first width that 32 does not divide or exchanges that do
            not divide a depth.

    Paper: Wang et al., arXiv 2501.07783. The two pyramids have the windows of the authors' detectors; where these do
    not divide a map padding is no key, there it is one of zeros.
    """

    def __init__(
        self,
        branches: str | Sequence[Branch] = "TSB",
        heads: int = 16,
        deformable: bool = True,
        ratio: float = 0.5,
        steps: int = 12,
        places: int = 14,
        drop: float = 0.4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if isinstance(branches, str) and branches not in PYRAMIDS:
            raise wrong("branches", repr(branches), f"one of {', '.join(PYRAMIDS)}, or branches")
        made = PYRAMIDS[branches] if isinstance(branches, str) else tuple(branches)
        if len(made) < 2 or made[0].width % GROUPS or any(each.depth % steps for each in made):
            wanted = f"two or more, the first width a multiple of {GROUPS}, each depth one of the steps"
            raise wrong("branches, steps", f"{made}, {steps}", wanted)
        self.branches, self.steps = made, steps

        def attention(width: int) -> nn.Module:
            return Deformable(width, heads, ratio) if deformable else Crossed(width, heads)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.tokens = nn.ModuleList(Tokens(each.width, places) for each in made)
            self.layers = nn.ModuleList(
                nn.ModuleList(Layer(each.width, each.heads, each.window, each.drop) for _ in range(each.depth))
                for each in made
            )
            pairs = list(itertools.pairwise(made))
            self.interactions = nn.ModuleList(
                nn.ModuleList(Interaction(a.width, b.width, attention, drop) for a, b in pairs) for _ in range(steps)
            )
            width = made[0].width
            self.merges = nn.ModuleList(merging(each.width, width) for each in made)
            self.weights = nn.Parameter(torch.ones(len(made)))
            between = (nn.GroupNorm(GROUPS, width), nn.GELU())
            four = (nn.ConvTranspose2d(width, width, 2, 2), *between, nn.ConvTranspose2d(width, width, 2, 2))
            self.fourfold, self.twofold = nn.Sequential(*four), nn.ConvTranspose2d(width, width, 2, 2)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        def sample(label: str, branches: Sequence[Branch], **more: Any) -> Sample:
            def made(seed: int = 0) -> PIIP:
                network = cls(branches, **more, places=3, seed=seed)
                generator = torch.Generator().manual_seed(seed)
                with torch.no_grad():  # past the zeros that it begins with
                    for parameter in network.parameters():
                        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
                return network

            def inputs(batch: int, seed: int) -> tuple[Tensor]:
                return random_images((3, 75, 52), batch, seed)

            sizes = [(32, 20, 16), (32, 10, 8), (32, 5, 4), (32, 2, 2)]
            return Sample(label, made(), {"inputs": inputs, "output": sizes, "again": lambda: made(7)})

        two, three = (Branch(32, 2, 2, 2), Branch(16, 4, 1, 3)), Branch(8, 2, 1, 5, 2)
        return [
            sample("two, all tokens", two, heads=4, deformable=False, steps=2),
            sample("three, deformable", (*two, three), heads=2, steps=1),
        ]

    def forward(self, images: Tensor) -> list[Tensor]:
        merged = self.merged(self.features(images))
        return [self.fourfold(merged), self.twofold(merged), merged, F.max_pool2d(merged, 2)]

    def sized(self, images: Tensor) -> list[Tensor]:
        """The image of each branch: the finest as it is, others by the ratio of the sides, bilinearly."""
        most, found = max(each.side for each in self.branches), []
        for branch in self.branches:
            size = [max(1, n * branch.side // most) for n in images.shape[2:]]
            same = branch.side == most
            found.append(images if same else F.interpolate(images, size, mode="bilinear", align_corners=False))
        return found

    def features(self, images: Tensor) -> list[Tensor]:
        """The map of each branch ``(b, width_i, y_i, x_i)`` after the last exchange."""
        maps = [tokens(each) for tokens, each in zip(self.tokens, self.sized(images), strict=True)]
        sizes, found = [(each.shape[2], each.shape[3]) for each in maps], [flat(each) for each in maps]
        for step, exchange in enumerate(self.interactions):
            for place, branch in enumerate(self.branches):
                each = branch.depth // self.steps
                for layer in list(self.layers[place].children())[step * each : (step + 1) * each]:
                    found[place] = layer(found[place], sizes[place])
            pairs = list(exchange.children())
            for place in range(len(pairs) - 1, -1, -1):
                given = (found[place], found[place + 1], sizes[place], sizes[place + 1])
                found[place], found[place + 1] = pairs[place](*given)
        return [image(each, size) for each, size in zip(found, sizes, strict=True)]

    def merged(self, maps: Sequence[Tensor]) -> Tensor:
        """One map ``(b, width_0, y, x)`` of the finest's size."""
        size, total = maps[-1].shape[2:], 0
        for weight, merge, each in zip(self.weights, self.merges, maps, strict=True):
            total = total + weight * F.interpolate(merge(each), size, mode="bilinear", align_corners=False)
        return torch.as_tensor(total)

    def intermediates(self, images: Tensor) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A of every layer and exchange, by the names of their modules."""
        exchanges = modules_of(self, Deformable)
        with told_by(exchanges, lambda module, given, out: module.attention(given[0], given[2])) as found:
            maps = super().intermediates(images)
        return maps | found
