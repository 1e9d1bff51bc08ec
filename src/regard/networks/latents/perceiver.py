"""Perceiver: a small latent array reads a large array of any modality, and does its computing on itself."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi

import torch
from torch import Generator, Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.kernels import dense
from regard.networks.latents.base import Latents, Reading, linear_flops, merge_heads, split_heads


class GatedGELU(nn.Module):
    """``a gelu(b)``, a and b the two halves of the channels."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return a * nn.functional.gelu(b)


class Layer(nn.Module):
    """Attention and an MLP, each on normed inputs and with a residual.

    Args:
        width: of what asks. channels: of what is asked, None for what asks itself. heads: of the attention.
            inner: channels of q, k and v together. widening: of the MLP. gated: the MLP's inner half weighs the other
            half, and q, k, v have no bias.
    """

    def __init__(
        self, width: int, channels: int | None, heads: int, inner: int, widening: int, gated: bool = False
    ) -> None:
        super().__init__()
        if inner % heads:
            raise wrong("heads", str(heads), f"a divisor of the {inner} channels of queries and keys")
        self.heads, self.inner = heads, inner
        self.norm = nn.LayerNorm(width)
        self.norm_array = None if channels is None else nn.LayerNorm(channels)
        self.query = nn.Linear(width, inner, bias=not gated)
        self.key, self.value = (nn.Linear(channels or width, inner, bias=not gated) for _ in range(2))
        self.out = nn.Linear(inner, width)
        self.norm_mlp = nn.LayerNorm(width)
        between, size = (GatedGELU(), 2) if gated else (nn.GELU(), 1)
        self.mlp = nn.Sequential(nn.Linear(width, size * widening * width), between, nn.Linear(widening * width, width))

    def asked(self, latents: Tensor, array: Tensor | None) -> Reading:
        """q of the latents, k and v of the array or of the latents themselves."""
        own = self.norm(latents)
        other = own if array is None or self.norm_array is None else self.norm_array(array)
        q, k, v = (split_heads(x, self.heads) for x in (self.query(own), self.key(other), self.value(other)))
        return Reading(q, k, v, (self.inner // self.heads) ** -0.5)

    def finish(self, latents: Tensor, found: Tensor) -> Tensor:
        """The residuals."""
        latents = latents + self.out(merge_heads(found))
        return latents + self.mlp(self.norm_mlp(latents))

    def flops(self, latents: int, n: int) -> int:
        """FLOPs of ``latents`` that ask n."""
        own = linear_flops(self.query, self.out, *(part for part in self.mlp if isinstance(part, nn.Linear)))
        return latents * own + n * linear_flops(self.key, self.value) + 4 * latents * n * self.inner


@published(
    "perceiver",
    family="latent",
    kind="pool",
    row=63,
    title="Perceiver: General Perception with Iterative Attention",
    arxiv="2103.03206",
    year=2021,
    fidelity="third-party code",
    claim=(
        Claim(
            "the same architecture learns pictures, sets of points and waves: nothing in it knows the modality",
            cells="latents.modalities",
            holds="latents.learns_all",
        ),
        Claim(
            "cost linear in the array",
            cells="latents.doubled",
            holds="common.at_most(figure=ratio, most=2.2, said='FLOPs for twice the elements')",
        ),
    ),
)
class Perceiver(Latents):
    """Latents read the array by cross-attention, then run through a stack of self-attention layers, again and again.

        z ← cross(z, x);   z ← self_1 … self_L (z);   in each of the ``rounds``

    The stack is shared by all rounds. Latents read in the first ``reads`` rounds: once, as the published models do, or
    in more; the first reading has weights of its own, the later ones share theirs.

    Shapes: ``array (b, n, channels)``, positions among the channels (`positions`) -> ``(b, latents, width)``.
    Cost: O(n M + rounds L M²); see `flops`.

    Args:
        channels: of the array. latents: M. width: of each. rounds: how often the stack is run. layers: L.
        reads: in how many rounds the array is read, one to ``rounds``. cross_heads, heads: of reading and of the stack.
        widening: of the MLPs.

    Raises:
        ValueError: reads out of range, or heads that do not divide the channels that they share.

    Paper: Jaegle et al., arXiv 2103.03206; q, k and v of a reading have the array's channels, as in the authors' code.
    """

    def __init__(
        self,
        channels: int,
        latents: int = 512,
        width: int = 1024,
        *,
        rounds: int = 8,
        layers: int = 6,
        reads: int = 1,
        cross_heads: int = 1,
        heads: int = 8,
        widening: int = 1,
    ) -> None:
        super().__init__(channels, latents, width)
        if not 1 <= reads <= rounds:
            raise wrong("reads", str(reads), f"1 to {rounds}, the rounds")
        self.rounds, self.reads = rounds, reads
        self.initial = nn.Parameter(0.02 * torch.randn(latents, width))
        self.cross = nn.ModuleList(
            Layer(width, channels, cross_heads, channels, widening) for _ in range(min(reads, 2))
        )
        self.stack = nn.ModuleList(Layer(width, None, heads, width, widening) for _ in range(layers))

    def start(self, batch: int, generator: Generator | None = None) -> Tensor:
        return self.initial.expand(batch, -1, -1)

    def reader(self, turn: int) -> Layer:
        """The cross-attention of a round."""
        found = self.cross[min(turn, 1)]
        assert isinstance(found, Layer)
        return found

    def reading(self, turn: int, latents: Tensor, array: Tensor) -> Reading | None:
        return self.reader(turn).asked(latents, array) if turn < self.reads else None

    def updated(self, turn: int, latents: Tensor, found: Tensor) -> Tensor:
        return self.reader(turn).finish(latents, found)

    def mixed(self, turn: int, latents: Tensor) -> Tensor:
        for layer in self.layers:
            q, k, v, scale = layer.asked(latents, None)
            latents = layer.finish(latents, dense.attend(q, k, v, Layout(), scale))
        return latents

    @property
    def layers(self) -> list[Layer]:
        """The stack's."""
        return [layer for layer in self.stack if isinstance(layer, Layer)]

    def flops(self, n: int, batch: int = 1) -> int:
        reads = sum(self.reader(turn).flops(self.latents, n) for turn in range(self.reads))
        mixes = self.rounds * sum(layer.flops(self.latents, self.latents) for layer in self.layers)
        return batch * (reads + mixes)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [
            Sample("once", cls(6, 5, 8, rounds=2, layers=2, heads=2)),
            Sample("in three rounds", cls(6, 3, 8, rounds=3, layers=1, reads=3, cross_heads=2, heads=4, widening=2)),
        ]


def positions(sizes: Sequence[int], bands: int, most: Sequence[float] | None = None) -> Tensor:
    """Fourier features of a grid's cells, from −1 to 1 along each axis: ``(cells, axes (2 bands + 1))``.

    Args:
        sizes: of the grid. bands: frequencies of each axis. most: twice the highest frequency of each axis, None for
            the sizes: the Nyquist frequency.
    """
    places = torch.meshgrid(*(torch.linspace(-1, 1, size) for size in sizes), indexing="ij")
    return fourier(torch.stack([place.flatten() for place in places], -1), bands, most or sizes)


def fourier(places: Tensor, bands: int, most: Sequence[float]) -> Tensor:
    """Fourier features of places, to stand beside the channels of an array, or in their place.

        x,  sin(π f x), cos(π f x)   for each axis, f in ``bands`` steps from 1 to most / 2

    Shapes: ``places (…, axes)``, about from −1 to 1 -> ``(…, axes (2 bands + 1))``.

    Args:
        bands: frequencies of each axis. most: twice the highest frequency, of each axis.
    """
    columns = [places]
    for place, highest in zip(places.unbind(-1), most, strict=True):
        angles = pi * place[..., None] * torch.linspace(1, highest / 2, bands)
        columns += [angles.sin(), angles.cos()]
    return torch.cat(columns, -1)
