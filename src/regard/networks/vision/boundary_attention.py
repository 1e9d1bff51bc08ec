"""Boundary attention: junctions around every pixel come to agree by attention to those nearby."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.networks.base import Network, numbered
from regard.networks.stages.norms import norm_of
from regard.networks.vision.junctions import Junction, folded, patches, window
from regard.networks.vision.vit import random_images

EPS = 1e-6
"""Of layer norms."""


@dataclass(frozen=True)
class Boundaries:
    """What one round has found.

    Args:
        colours: of the image, each wedge at its mean ``(b, c, y, x)``. distances: to the nearest boundary in pixels,
            lines: near one on boundaries, both ``(b, 1, y, x)``. parts: the same of each patch, before they are put
            together, in this order ``(b, c + 2, side, side, y', x')``. masks: how much of a patch counts, which
            broadcasts to parts. density: the sum of masks at each pixel ``(b, 1, y, x)``.
        junction: of each patch. hidden: what it was read from ``(b, width, y', x')``.
    """

    colours: Tensor
    distances: Tensor
    lines: Tensor
    parts: Tensor
    masks: Tensor
    density: Tensor
    junction: Junction
    hidden: Tensor


class SharedConvolution(nn.Module):
    """A convolution whose kernel is the same for every channel that comes in: one of their sum."""

    def __init__(self, out: int, side: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, out, side, padding=side // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x.sum(1, keepdim=True))


class MixerBlock(nn.Module):
    """``h = x + C_2 gelu(C_1 norm(x))``, then ``h + W_2 gelu(W_1 norm(h))``; C are `SharedConvolution`."""

    def __init__(self, width: int, spread: int, inner: int, side: int = 3) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norm_of(f"layer(eps={EPS})", width) for _ in range(2))
        self.near = nn.ModuleList((SharedConvolution(spread, side), SharedConvolution(width, side)))
        self.first, self.second = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gelu = partial(F.gelu, approximate="tanh")
        x = x + self.near[1](gelu(self.near[0](self.norms[0](x))))
        return x + self.second(gelu(self.first(self.norms[1](x))))


class Nearby(nn.Module):
    """Softmax attention of every cell to the ``side × side`` cells around it, which have a position in the window.

        s_io = q_i · W_k (x_{i+o} + P_o) / √d,   y_i = W Σ_o softmax(s_i)_o W_v (x_{i+o} + P_o)

    Cells beyond the map are hidden.

    Args:
        width: of queries. inside: of the cells that are read. heads: a divisor of the width. side: odd.
    """

    def __init__(self, width: int, inside: int, heads: int, side: int) -> None:
        super().__init__()
        if width % heads or side % 2 == 0:
            raise wrong("heads, side", f"{heads}, {side}", f"a divisor of the width {width}, an odd number")
        self.heads, self.side = heads, side
        self.q, self.k, self.v, self.out = (nn.Linear(size, width) for size in (width, inside, inside, width))

    def windows(self, matrix: nn.Linear, cells: Tensor, positions: Tensor) -> Tensor:
        """Keys or values of every cell's window ``(b, h, d, side², n)``."""
        read = F.conv2d(cells, matrix.weight[..., None, None], matrix.bias)
        near = F.unfold(read, self.side, padding=self.side // 2).unflatten(1, (self.heads, -1, self.side**2))
        return near + (positions @ matrix.weight.T).T.unflatten(0, (self.heads, -1))[..., None]

    def weights(self, x: Tensor, cells: Tensor, positions: Tensor) -> Tensor:
        """Of each query and offset ``(b, h, side², n)``."""
        q = F.conv2d(x, self.q.weight[..., None, None], self.q.bias).flatten(2).unflatten(1, (self.heads, -1))
        scores = torch.einsum("bhdn,bhdon->bhon", q, self.windows(self.k, cells, positions)) * q.shape[2] ** -0.5
        real = F.unfold(torch.ones_like(cells[:1, :1]), self.side, padding=self.side // 2)
        return scores.masked_fill(real[:, None] == 0, torch.finfo(scores.dtype).min).softmax(2)

    def forward(self, x: Tensor, cells: Tensor, positions: Tensor) -> Tensor:
        """``x (b, width, y, x)``, ``cells (b, inside, y, x)``, ``positions (side², inside)``."""
        seen = self.windows(self.v, cells, positions)
        y = torch.einsum("bhon,bhdon->bhdn", self.weights(x, cells, positions), seen)
        return self.out(y.flatten(1, 2).mT).mT.unflatten(2, x.shape[2:])


class Layer(nn.Module):
    """``h = norm(x + attention(x))``, then ``norm(h + W_2 relu(W_1 h))``."""

    def __init__(self, width: int, inside: int, heads: int, side: int, inner: int) -> None:
        super().__init__()
        self.attention = Nearby(width, inside, heads, side)
        self.norms = nn.ModuleList(norm_of(f"layer(eps={EPS})", width) for _ in range(2))
        self.first, self.second = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor, cells: Tensor, positions: Tensor) -> Tensor:
        x = self.norms[0](x + self.attention(x, cells, positions))
        return self.norms[1](x + self.second(self.first(x).relu()))


class Refinement(nn.Module):
    """Rounds with the same weights: each cell reads the cells around it, and says its junction anew."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, inside = sizes.width, sizes.width + 2 * sizes.channels + 1
        self.residual, self.norm = nn.Conv2d(width, width, 1), norm_of(f"layer(eps={EPS})", width)
        self.token = nn.Parameter(torch.randn(sizes.token) * sizes.token**-0.5)
        self.positions = nn.Parameter(torch.randn(sizes.window**2, inside) * sizes.window**-1)
        whole = width + sizes.token
        self.layers = nn.ModuleList(
            Layer(whole, inside, sizes.heads, sizes.window, sizes.inner) for _ in range(sizes.layers)
        )
        self.scales = nn.Linear(sizes.token, len(sizes.scales))
        nn.init.ones_(self.scales.weight)
        self.head, self.rounds = nn.Conv2d(width, 7, 1), sizes.rounds


@dataclass(frozen=True)
class Sizes:
    """Of the network; those of the authors are the defaults.

    Args:
        channels: of images. width: of hidden states. token: of what a cell says the scale of its patch by. heads: of
            the attention. window: its cells of a side, odd. inner: of the perceptrons behind it. layers: of each
            round. rounds: with the same weights. blocks: of rounds. side: of patches, odd. scales: of the windows that
            a patch is mixed of. mixer: blocks that come before. spread, mixed: their inner channels.
    """

    channels: int = 3
    width: int = 64
    token: int = 8
    heads: int = 4
    window: int = 11
    inner: int = 128
    layers: int = 2
    rounds: int = 4
    blocks: int = 2
    side: int = 17
    scales: tuple[int, ...] = (3, 9, 17)
    mixer: int = 2
    spread: int = 96
    mixed: int = 64

    def __post_init__(self) -> None:
        if self.side % 2 == 0 or self.side < 3 or self.rounds < 1 or self.blocks < 1:
            raise wrong(
                "side, rounds, blocks", f"{self.side}, {self.rounds}, {self.blocks}", "an odd side, one of each"
            )


@published(
    "boundary_attention",
    family="vit",
    kind="network",
    row=9,
    title="Boundary Attention: Learning to Find Faint Boundaries at Any Resolution",
    arxiv="2401.00935",
    year=2024,
    fidelity="authors' code",
    claim=(
        Claim(
            "distances to a drawn junction's rays are those of its geometry, wedges fill each patch, and colours of a "
            "patch are the means over its wedges",
            cells="outlines.drawn_junctions",
            holds="common.within(most=1e-6)",
        ),
        Claim(
            "trained on noisy discs and triangles, it finds their boundaries at a higher F1 than the gradient of the "
            "smoothed image and Canny's edges at their best thresholds, by at least 0.1, also in images twice as large",
            cells="outlines.found",
            holds="outlines.is_above_gradients",
        ),
    ),
)
class BoundaryAttention(Network):
    """From an image to its boundaries: the distance of every pixel to the nearest, and the image without its noise.

        h_0 = mixer(image),   h ← rounds of  layers(norm(h + W h'), cells)

    Around every pixel a patch has a `Junction`, read from h by a matrix, and a mix of windows of several sizes, read
    from a token beside h. Its wedges are coloured with the means of the image over them; overlapping patches are
    averaged. `Nearby` reads h, the averaged colours, the first of them once more (as the authors' code has it) and the
    image.
    h' is what the block of rounds began with; from the second block on what the first round before it gave.

    Shapes: ``images (b, c, y, x)`` of a patch's side or more -> ``(b, c + 2, y, x)``: colours, distances, lines.

    Args:
        sizes: see `Sizes`. seed: of the weights.

    Raises:
        ValueError: in a call, images smaller than a patch or of other channels.

    Paper: Polansky et al., arXiv 2401.00935, trained on simple shapes, then on crowded ones; the authors' code has one
    trainer and one loss for both, `boundary_loss`, and begins with the weights that it is given.
    """

    def __init__(self, sizes: Sizes = Sizes(), seed: int = 0) -> None:
        super().__init__()
        self.sizes = sizes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem = nn.Conv2d(sizes.channels, sizes.width, 1)
            self.mixer = nn.Sequential(
                *(MixerBlock(sizes.width, sizes.spread, sizes.mixed) for _ in range(sizes.mixer))
            )
            self.norm, self.head = norm_of(f"layer(eps={EPS})", sizes.width), nn.Conv2d(sizes.width, 7, 1)
            self.blocks = nn.ModuleList(Refinement(sizes) for _ in range(sizes.blocks))

    def forward(self, images: Tensor) -> Tensor:
        last = self.rounds(images)[-1]
        return torch.cat([last.colours, last.distances, last.lines], 1)

    def rounds(self, images: Tensor) -> list[Boundaries]:
        """What each round finds, the first before any attention."""
        side, edge = self.sizes.side, self.sizes.side // 2
        if images.shape[1] != self.sizes.channels or min(images.shape[2:]) < side:
            raise wrong(
                "images", f"{tuple(images.shape)}", f"{self.sizes.channels} channels, {side} pixels a side or more"
            )
        low, high = (each(images, (2, 3), keepdim=True) for each in (torch.amin, torch.amax))
        hidden = self.norm(self.mixer(self.stem((images - low) / (high - low))))
        hidden = inner(hidden, edge)
        found = [self.boundaries(hidden, None, self.head, images)]
        begun, near = hidden, inner(images, edge)
        for block in self.blocks:
            assert isinstance(block, Refinement)
            first = len(found)
            for _ in range(self.sizes.rounds):
                hidden = block.norm(hidden + block.residual(begun))
                token = block.token.view(1, -1, 1, 1).expand(len(images), -1, *hidden.shape[2:])
                colours = inner(found[-1].colours, edge)
                cells, both = torch.cat([hidden, colours, colours[:, :1], near], 1), torch.cat([hidden, token], 1)
                for layer in block.layers:
                    both = layer(both, cells, block.positions)
                hidden, token = both.split([self.sizes.width, self.sizes.token], 1)
                shares = block.scales(token.movedim(1, -1)).softmax(-1).movedim(-1, 1)
                found.append(self.boundaries(hidden, shares, block.head, images))
            begun = found[first].hidden
        return found

    def boundaries(self, hidden: Tensor, shares: Tensor | None, head: nn.Module, images: Tensor) -> Boundaries:
        """The junctions of hidden states, drawn into their patches under a mix of windows, and all patches as one."""
        side, junction = self.sizes.side, Junction.of(head(hidden))
        masks = torch.ones_like(hidden[:, :1, None, None])
        if shares is not None:
            windows = torch.stack([window(side, scale, hidden) for scale in self.sizes.scales])
            masks = torch.einsum("bsyx,spq->bpqyx", shares, windows)[:, None] / len(windows)
        wedges = junction.wedges(side) * masks
        sums = torch.einsum("bcpqyx,bmpqyx->bcmyx", patches(images, side), wedges)
        means = sums / (wedges.sum((2, 3))[:, None] + 1e-10)
        coloured = torch.einsum("bmpqyx,bcmyx->bcpqyx", wedges, means)
        parts = torch.cat([coloured, junction.distances(side) * masks, junction.lines(side) * masks], 1)
        density = folded(masks.expand(-1, -1, side, side, -1, -1))
        colours, distances, lines = (folded(parts) / (density + 1e-5)).split([images.shape[1], 1, 1], 1)
        return Boundaries(colours, distances, lines, parts, masks, density, junction, hidden)

    def intermediates(self, images: Tensor) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A ``(b, h, n, n)`` of each layer in each round, over the cells whose patch lies in the image."""
        found: dict[str, Tensor] = {}

        def before(name: str) -> Any:
            def seen(layer: Nearby, given: tuple[Tensor, ...]) -> None:
                found[numbered(found, name)] = dense(layer.weights(*given), layer.side, given[0].shape[2:])

            return seen

        named = [(name, each) for name, each in self.named_modules() if isinstance(each, Nearby)]
        hooks = [each.register_forward_pre_hook(before(name)) for name, each in named]
        try:
            self(images)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    @classmethod
    def examples(cls) -> list[Sample]:
        sizes = Sizes(3, 8, 4, 2, 3, 11, 1, 2, 2, 5, (3, 5), 1, 7, 6)
        return [Sample("small", cls(sizes), {"inputs": partial(random_images, (3, 9, 11)), "output": (5, 9, 11)})]


def inner(maps: Tensor, edge: int) -> Tensor:
    """Without ``edge`` rows and columns on each side."""
    return maps[:, :, edge : maps.shape[2] - edge, edge : maps.shape[3] - edge]


def dense(weights: Tensor, side: int, grid: Sequence[int]) -> Tensor:
    """A ``(b, h, n, n)`` of the weights of windows ``(b, h, side², n)``."""
    rows, columns = grid
    offsets = torch.arange(side, device=weights.device) - side // 2
    y, x = torch.arange(rows, device=weights.device), torch.arange(columns, device=weights.device)
    places_y = (y[None, None, :, None] + offsets[:, None, None, None]).expand(side, side, rows, columns)
    places_x = (x[None, None, None, :] + offsets[None, :, None, None]).expand(side, side, rows, columns)
    real = ((places_y >= 0) & (places_y < rows) & (places_x >= 0) & (places_x < columns)).reshape(side**2, -1)
    keys = (places_y * columns + places_x).reshape(side**2, -1).clamp(0, rows * columns - 1)
    found = weights.new_zeros(*weights.shape[:2], rows * columns, rows * columns)
    return found.scatter_add(3, keys.T.expand(*weights.shape[:2], -1, -1), (weights * real).mT)


def boundary_loss(
    found: Sequence[Boundaries], images: Tensor, distances: Tensor, inside: Tensor | None = None
) -> Tensor:
    """What the last two rounds are trained by, the last weighed 0.77: the mean of

        1e-3 (d̂ − d)² + (ĉ − c)²  at every pixel, and of every patch
        1e-3 (d̂ − d)² + (ĉ − c)² + 1e-2 (l̂ − L)² + 20 (ĉ − C)²

    d and c are true distances and colours, l lines; C and L the averaged colours and lines, given no gradient. Pixels
    count by exp(−0.1 (d + 1)), so that boundaries count more, and patches less the farther they are from one.

    Args:
        found: from `BoundaryAttention.rounds`. images: without noise. distances: to the nearest boundary ``(b, 1, y,
            x)``. inside: ones where something may be hidden by a shape, ``(b, 1, y, x)``; None for everywhere.
    """
    total, weights = images.new_zeros(()), (0.09, 0.3)
    for weight, each in zip(weights, found[-2:], strict=True):
        side, channels = each.parts.shape[2], images.shape[1]
        more = 1.0 if inside is None else inside
        pixel = torch.exp(-0.1 * (distances + 1)) * (more + 0.3) * (each.density > 0)
        share = each.masks / (each.masks.sum((2, 3), keepdim=True) + 1e-4)
        near = 1 / (patches(distances, side) + 0.3).sum((2, 3), keepdim=True)
        patch = near * share * patches(pixel, side)
        colours, far_off, lines = each.parts.split([channels, 1, 1], 1)
        whole = [patches(x.detach(), side) for x in (each.colours, each.lines)]
        own = 1e-3 * (far_off - patches(distances, side)).square()
        own = own + ((colours - patches(images, side)).square() + 20 * (colours - whole[0]).square()).sum(
            1, keepdim=True
        )
        own = (own + 1e-2 * (lines - whole[1]).square()) * patch
        at_pixels = 1e-3 * (each.distances - distances).square() + (each.colours - images).square().sum(1, keepdim=True)
        total = total + weight / sum(weights) * (at_pixels * pixel + folded(own)).mean()
    return total
