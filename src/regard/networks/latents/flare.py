"""FLARE: latents gather the array by one softmax and give it back by another, so that mixing has a low rank."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.kernels import dense
from regard.networks.latents.base import Latents, Reading, linear_flops, merge_heads, split_heads


class ResidualMLP(nn.Module):
    """``x + act(W x)`` for every layer, the last one without activation; no residual where channels change.

    Args:
        width: of the layers. layers: hidden ones between the first and the last. channels, out: that come in and go
            out, None for ``width``.
    """

    def __init__(self, width: int, layers: int, channels: int | None = None, out: int | None = None) -> None:
        super().__init__()
        sizes = [channels or width, *[width] * (layers + 1), out or width]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        *inner, last = self.layers
        for layer in inner:
            found = nn.functional.gelu(layer(x), approximate="tanh")
            x = x + found if found.shape == x.shape else found
        found = last(x)
        return x + found if found.shape == x.shape else found


@published(
    "flare",
    family="latent",
    kind="pool",
    row=201,
    title="FLARE: Fast Low-rank Attention Routing Engine",
    arxiv="2508.12594",
    year=2025,
    fidelity="authors' code",
    claim=(
        Claim(
            "what it does to the values is a matrix of rank M at most, at any length",
            cells="latents.rank",
            holds="latents.is_low",
        ),
        Claim(
            "cost linear in the array",
            cells="latents.flare_doubled",
            holds="common.at_most(figure=ratio, most=2.2, said='FLOPs for twice the elements')",
        ),
        Claim(
            "of equal size it solves Poisson's equation no worse than latents that only read and are asked",
            cells="latents.poisson",
            holds="latents.solves_no_worse",
        ),
    ),
)
class Flare(Latents):
    """M latents of each head read all elements, and all elements read the latents, by the same products.

        Z = softmax(Q Kᵀ) V,   Y = softmax(K Qᵀ) Z;   K, V = residual MLPs of the array,   out = W Y

    The effective matrix ``softmax(K Qᵀ) softmax(Q Kᵀ)`` of a head is `effective`. Latents do not mix among themselves.

    Shapes: ``array (b, n, channels)`` -> the same.
    Cost: ``8 n M channels`` FLOPs beside the MLPs; see `flops`.

    Args:
        channels: of the array. latents: M. heads: a divisor of the channels. hidden: layers inside of the MLPs.
        scale: of the products, positive.

    Raises:
        ValueError: heads that do not divide the channels, or a scale that is not positive.

    Paper: Puri et al., arXiv 2508.12594; initial latents are N(0, 0.1²) and the scale is 1: large keys need float32.
    """

    writes = True

    def __init__(self, channels: int, latents: int = 64, heads: int = 8, hidden: int = 3, scale: float = 1.0) -> None:
        if heads < 1 or channels % heads:
            raise wrong("heads", str(heads), f"a divisor of the {channels} channels")
        if not scale > 0:
            raise wrong("scale", str(scale), "above 0")
        super().__init__(channels, latents, channels)
        self.heads, self.scale = heads, scale
        self.initial = nn.Parameter(0.1 * torch.randn(heads, latents, channels // heads))
        self.key, self.value = ResidualMLP(channels, hidden), ResidualMLP(channels, hidden)
        self.out = nn.Linear(channels, channels)

    def start(self, batch: int, generator: Generator | None = None) -> Tensor:
        """The queries of all heads, joined."""
        return merge_heads(self.initial[None]).expand(batch, -1, -1)

    def prepared(self, array: Tensor) -> Tensor:
        return torch.cat([self.key(array), self.value(array)], -1)

    def reading(self, turn: int, latents: Tensor, array: Tensor) -> Reading:
        k, v = array.chunk(2, -1)
        q, k, v = (split_heads(x, self.heads) for x in (latents, k, v))
        return Reading(q, k, v, self.scale)

    def updated(self, turn: int, latents: Tensor, found: Tensor) -> Tensor:
        return torch.cat([latents, merge_heads(found)], -1)  # what they ask by, and what they found

    def written(self, latents: Tensor, array: Tensor, prepared: Tensor) -> Tensor:
        asks, found, keys = (
            split_heads(x, self.heads) for x in (*latents.chunk(2, -1), prepared[..., : self.channels])
        )
        return self.out(merge_heads(dense.attend(keys, asks, found, Layout(), self.scale)))

    def effective(self, array: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """``(b, h, n, n)``: the matrix that the values are multiplied by."""
        (read,) = self.maps(array, key_mask)
        asked = self.reading(0, self.start(len(array)), self.prepared(array))
        return torch.softmax(asked.k * self.scale @ asked.q.mT, -1) @ read

    def flops(self, n: int, batch: int = 1) -> int:
        layers = [layer for mlp in (self.key, self.value) for layer in mlp.layers if isinstance(layer, nn.Linear)]
        return batch * n * (linear_flops(self.out, *layers) + 8 * self.latents * self.channels)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [Sample("5 latents", cls(12, 5, 3, 1)), Sample("3 latents, one head", cls(7, 3, 1, 0, 0.5))]


class FlareModel(nn.Module):
    """The network around `Flare`: fields on points in, fields on the same points out.

        x ← x + Flare(LN(x)),   x ← x + MLP(LN(x)),   in each block

    Shapes: ``(b, n, channels)`` -> ``(b, n, out)``.

    Args:
        channels, out: that come in, positions included, and go out. width, latents, heads: of each `Flare`.
        blocks: how many. hidden: layers inside of the MLPs of blocks; those at both ends have two.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        width: int = 64,
        blocks: int = 8,
        latents: int = 64,
        heads: int = 8,
        hidden: int = 3,
    ) -> None:
        super().__init__()
        self.first = ResidualMLP(width, 2, channels=channels)
        self.mixers = nn.ModuleList(Flare(width, latents, heads, hidden) for _ in range(blocks))
        self.mlps = nn.ModuleList(ResidualMLP(width, hidden) for _ in range(blocks))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * blocks))
        self.last = nn.Sequential(nn.LayerNorm(width), ResidualMLP(width, 2, out=out))

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        x = self.first(x)
        for mixer, mlp, before, between in zip(self.mixers, self.mlps, self.norms[::2], self.norms[1::2], strict=True):
            x = x + mixer(before(x), key_mask)
            x = x + mlp(between(x))
        return self.last(x)
