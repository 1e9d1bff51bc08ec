"""Co4: one latent token and all others modulate each other before attention, which then looks at a few of them."""

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
    """Queries, keys and values are modulated by a latent token's, and the strongest of each channel attend.

        Q_m = Q + q₀ ⊙ K,   K_m = K + k₀ ⊙ Q,   V_m = V² + 2 V + q₀ ⊙ k₀ ⊙ (1 + |v₀|)
        y = V_m + softmax([q₀; top Q_m] [k₀; top K_m]ᵀ / √c) [v₀; top V_m],   put back where V_m was taken from

    q₀, k₀, v₀ are those of the first token, the latent; top takes the ``top`` largest numbers of each channel apart.
    What the latent finds is its own output.

    Shapes: ``x (b, 1 + n, c)`` -> the same; n at least ``top``. Cost: O(n + top²).

    Args:
        channels: c. top: how many numbers of each channel attend.
    """

    def __init__(self, channels: int, top: int = 12) -> None:
        super().__init__()
        if top < 1:
            raise wrong("top", str(top), "at least 1")
        self.top = top
        self.qkv = nn.Linear(channels, 3 * channels)

    def attended(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``(A (b, 1 + top, 1 + top), its values, V_m, where in it the values were)``."""
        if x.shape[1] <= self.top:
            raise wrong("x", f"{x.shape[1] - 1} tokens beside the latent", f"at least the {self.top} that attend")
        q, k, v = self.qkv(x).chunk(3, -1)
        (q0, q), (k0, k), (v0, v) = ((y[:, :1], y[:, 1:]) for y in (q, k, v))
        values = v.square() + 2 * v + q0 * k0 * (1 + v0.abs())
        found, where = values.topk(self.top, dim=1)
        asks, keys = (
            torch.cat([first, rest.topk(self.top, dim=1).values], 1)
            for first, rest in ((q0, q + q0 * k), (k0, k + k0 * q))
        )
        return torch.softmax(asks @ keys.mT * x.shape[2] ** -0.5, -1), torch.cat([v0, found], 1), values, where

    def forward(self, x: Tensor) -> Tensor:
        weights, taken, values, where = self.attended(x)
        out = weights @ taken
        return torch.cat([out[:, :1], values.scatter_add(1, where, out[:, 1:])], 1)

    def flops(self, n: int) -> int:
        """FLOPs of the matrix products on one sequence of n tokens and the latent."""
        return 2 * (n + 1) * self.qkv.weight.numel() + 4 * (self.top + 1) ** 2 * (self.qkv.in_features)


@published(
    "co4",
    family="latent",
    kind="network",
    row=45,
    title="Beyond Attention: Toward Machines with Intrinsic Higher Mental States",
    arxiv="2505.06257",
    year=2025,
    missing="several latents and heads, and the variants for control, whose modulation is another",
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

        x ← x + mixer(LN(x)),   x ← x + MLP(LN(x)),   in each layer;   classes of LN(x) at the class token

    Shapes: ``images (b, channels, y, x)`` -> ``(b, classes)``.

    Args:
        size: of the images, square. patch: its side. channels, classes: of the images. width: of tokens. layers: how
            many. top: see `Modulated`. mixer: what mixes tokens of a width, None for `Modulated`. seed: of the weights.

    Raises:
        ValueError: patches that do not fill the image, or fewer of them than ``top``.

    Paper: Adeel, arXiv 2505.06257; this is the authors' network for images, with one latent and one head. Its values
    are modulated without the ReLU6 of their networks for control.
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
    ) -> None:
        super().__init__()
        count = (size // patch) ** 2
        if size % patch or count < top:
            raise wrong("patch", str(patch), f"one that divides {size} into at least {top} patches")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.patches = nn.Conv2d(channels, width, patch, patch)
            self.norm_patches = nn.LayerNorm(width)
            self.latent = nn.Parameter(0.02 * torch.randn(1, 1, width))
            self.places = nn.Parameter(0.02 * torch.randn(1, count + 1, width))
            self.mixers = nn.ModuleList((mixer or (lambda c: Modulated(c, top)))(width) for _ in range(layers))
            self.mlps = nn.ModuleList(
                nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
                for _ in range(layers)
            )
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))
            self.norm = nn.LayerNorm(width)
            self.classes = nn.Linear(width, classes)

    def tokens(self, images: Tensor) -> Tensor:
        """``(b, 1 + n, width)``: the latent, then the patches."""
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
                maps[f"mixers.{layer}"] = mixer.attended(normed)[0][:, None]
            x = x + mixer(normed)
            x = x + mlp(self.norms[2 * layer + 1](x))
        return self.classes(self.norm(x[:, 0]))

    def intermediates(self, images: Tensor) -> dict[str, Tensor]:
        """A ``(b, 1, 1 + top, 1 + top)`` of each layer: the latent, then the numbers that were taken."""
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
        ]
