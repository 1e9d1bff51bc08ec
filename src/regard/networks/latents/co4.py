"""Co4: latent tokens and all others modulate each other before attention, which then looks at a few of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.networks.base import Network


class Modulated(nn.Module):
    """Queries, keys and values are modulated by latent tokens', and the strongest of each channel attend.

        Q_m = Q + q_l ⊙ K,   K_m = K + k_l ⊙ Q,   V_m = V² + 2 V + q_l ⊙ k_l ⊙ (1 + |v_l|)
        y = mean_l (V_m + softmax([q; top Q_m] [k; top K_m]ᵀ / √d) [v; top V_m],   put back where V_m was taken from)

    q_l, k_l, v_l are those of the first tokens, the latents; top takes the ``top`` largest numbers of each channel, of
    each latent's streams apart, and those of all latents attend to each other. What latents find is their own output.

    Shapes: ``x (b, L + n, c)`` -> the same; n at least ``top``. Cost: O(L n + (L top)²).

    Args:
        channels: c. top: how many numbers of each channel attend. latents: L. heads: that channels are parted into.
    """

    def __init__(self, channels: int, top: int = 12, latents: int = 1, heads: int = 1) -> None:
        super().__init__()
        for name, number in (("top", top), ("latents", latents), ("heads", heads)):
            if number < 1:
                raise wrong(name, str(number), "at least 1")
        if channels % heads:
            raise wrong("heads", str(heads), f"a divisor of the {channels} channels")
        self.top, self.latents, self.heads = top, latents, heads
        self.qkv = nn.Linear(channels, 3 * channels)

    def attended(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A ``(b, h, L (1 + top), L (1 + top))``, its values, V_m ``(b, h, L, n, d)``, where in it the values were."""
        if x.shape[1] < self.latents + self.top:
            given = f"{x.shape[1] - self.latents} tokens beside the latents"
            raise wrong("x", given, f"at least the {self.top} that attend")
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        (q0, q), (k0, k), (v0, v) = ((y[:, :, : self.latents], y[:, :, None, self.latents :]) for y in (q, k, v))
        values = v.square() + 2 * v + (q0 * k0 * (1 + v0.abs()))[:, :, :, None]
        found, where = values.topk(self.top, dim=3)
        asks, keys = (
            torch.cat([first, rest.topk(self.top, dim=3).values.flatten(2, 3)], 2)
            for first, rest in ((q0, q + q0[:, :, :, None] * k), (k0, k + k0[:, :, :, None] * q))
        )
        weights = torch.softmax(asks @ keys.mT * q.shape[-1] ** -0.5, -1)
        return weights, torch.cat([v0, found.flatten(2, 3)], 2), values, where

    def forward(self, x: Tensor) -> Tensor:
        weights, taken, values, where = self.attended(x)
        own, rest = (weights @ taken).tensor_split([self.latents], 2)
        rest = values.scatter_add(3, where, rest.unflatten(2, (self.latents, -1))).mean(2)
        return torch.cat([own, rest], 2).transpose(1, 2).flatten(2)

    def flops(self, n: int) -> int:
        """FLOPs of the matrix products on one sequence of n tokens and the latents."""
        rows = self.latents * (self.top + 1)
        return 2 * (n + self.latents) * self.qkv.weight.numel() + 4 * rows**2 * self.qkv.in_features


@published(
    "co4",
    family="latent",
    kind="network",
    row=45,
    title="Beyond Attention: Toward Machines with Intrinsic Higher Mental States",
    arxiv="2505.06257",
    year=2025,
    fidelity="authors' code",
    claim=(
        Claim(
            "learns digits in at most half of the steps of an attention network of its size, both at their best rate",
            cells="co4.steps_to_target",
            holds="co4.needs_half",
        ),
        Claim(
            "cost linear in the tokens",
            cells="co4.doubled",
            holds="common.at_most(figure=ratio, most=2.2, said='FLOPs for twice the tokens')",
        ),
    ),
)
class Co4(Network):
    """An image network of few layers whose tokens and class token modulate each other before attention.

        x ← x + mixer(LN(x)),   x ← x + MLP(LN(x)),   in each layer;   classes of LN(x) at the first latent

    Shapes: ``images (b, channels, y, x)`` -> ``(b, classes)``.

    Args:
        size: of the images, square. patch: its side. channels, classes: of the images. width: of tokens. layers: how
            many. top, latents, heads: see `Modulated`. mixer: what mixes tokens of a width, None for `Modulated`. seed:
            of the weights.

    Raises:
        ValueError: patches that do not fill the image, or fewer of them than ``top``.

    Paper: Adeel, arXiv 2505.06257; this is the authors' network for images, whose values are modulated without the
    ReLU6 of their networks for control, `regard.networks.latents.co4_control`. Theirs runs with one latent and one head
    alone; with more, each latent keeps streams of its own as their code has them, and what all of them put back where a
    value was is averaged here.
    """

    def __init__(
        self,
        size: int = 32,
        patch: int = 4,
        channels: int = 3,
        classes: int = 10,
        width: int = 64,
        layers: int = 1,
        top: int = 12,
        mixer: Callable[[int], nn.Module] | None = None,
        seed: int = 0,
        latents: int = 1,
        heads: int = 1,
    ) -> None:
        super().__init__()
        count = (size // patch) ** 2
        if size % patch or count < top:
            raise wrong("patch", str(patch), f"one that divides {size} into at least {top} patches")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.patches = nn.Conv2d(channels, width, patch, patch)
            self.norm_patches = nn.LayerNorm(width)
            self.latent = nn.Parameter(0.02 * torch.randn(1, latents, width))
            self.places = nn.Parameter(0.02 * torch.randn(1, count + latents, width))
            made = mixer or (lambda c: Modulated(c, top, latents, heads))
            self.mixers = nn.ModuleList(made(width) for _ in range(layers))
            self.mlps = nn.ModuleList(
                nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
                for _ in range(layers)
            )
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))
            self.norm = nn.LayerNorm(width)
            self.classes = nn.Linear(width, classes)

    def tokens(self, images: Tensor) -> Tensor:
        """``(b, L + n, width)``: the latents, then the patches."""
        patches = self.norm_patches(self.patches(images).flatten(2).mT)
        return torch.cat([self.latent.expand(len(images), -1, -1), patches], 1) + self.places

    def forward(self, images: Tensor) -> Tensor:
        return self.run(images, {})

    def run(self, images: Tensor, maps: dict[str, Tensor]) -> Tensor:
        """`forward`, noting A of each layer."""
        x = self.tokens(images)
        for layer, (mixer, mlp) in enumerate(zip(self.mixers, self.mlps, strict=True)):
            normed = self.norms[2 * layer](x)
            if isinstance(mixer, Modulated):
                maps[f"mixers.{layer}"] = mixer.attended(normed)[0]
            x = x + mixer(normed)
            x = x + mlp(self.norms[2 * layer + 1](x))
        return self.classes(self.norm(x[:, 0]))

    def intermediates(self, images: Tensor) -> dict[str, Tensor]:
        """A ``(b, h, L (1 + top), L (1 + top))`` of each layer: the latents, then the numbers that each one took."""
        maps: dict[str, Tensor] = {}
        self.run(images, maps)
        return maps

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        def draw(batch: int, seed: int) -> tuple[Tensor, ...]:
            return (torch.randn(batch, 2, 6, 6, generator=torch.Generator().manual_seed(seed)),)

        sizes: dict[str, Any] = {"size": 6, "patch": 2, "channels": 2, "classes": 5, "width": 8}
        return [
            Sample("one layer", cls(**sizes, top=4), {"inputs": draw, "output": (5,)}),
            Sample("two layers", cls(**sizes, layers=2, top=3), {"inputs": draw, "output": (5,)}),
            Sample("latents and heads", cls(**sizes, top=4, latents=3, heads=2), {"inputs": draw, "output": (5,)}),
        ]
