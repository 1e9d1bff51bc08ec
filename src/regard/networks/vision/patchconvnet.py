"""PatchConvNet: convolutions at one resolution, pooled by one attention that can be looked at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regard.blocks.attention import Attention
from regard.blocks.spatial import flat
from regard.core.atlas import Claim, published
from regard.core.build import build
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.featuremap.build import gate
from regard.networks.base import Network
from regard.networks.vision.vit import image_sample
from regard.projections.base import Grouped

EPS = 1e-6
SIZES = {
    "S60": (384, 60, 1e-4),
    "S120": (384, 120, 1e-6),
    "B60": (768, 60, 1e-6),
    "B120": (768, 120, 1e-6),
    "L60": (1024, 60, 1e-6),
    "L120": (1024, 120, 1e-6),
}
"""Width, blocks and the first scale of each block."""


class CellNorm(nn.LayerNorm):
    """A layer norm of the channels of each cell ``(b, c, y, x)``."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class ConvolutionBlock(nn.Module):
    """``x + γ W_2 se(gelu(D gelu(W_1 norm(x))))``, D a depthwise 3 × 3 convolution, the gate of ratio 4."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.norm, self.gamma = CellNorm(width, EPS), nn.Parameter(torch.full((width,), scale))
        self.inner = nn.Sequential(
            *(nn.Conv2d(width, width, 1), nn.GELU()),
            *(nn.Conv2d(width, width, 3, padding=1, groups=width), nn.GELU()),
            *(gate("se(ratio=4)")(width), nn.Conv2d(width, width, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma[:, None, None] * self.inner(self.norm(x))


class Biased(Grouped):
    """`Grouped` whose four matrices have biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(Sizes.even(width, heads))
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    @property
    def parameter_count(self) -> int:
        return super().parameter_count + 4 * self.width


class AttentionPool(nn.Module):
    """One block of softmax attention in which learned queries alone ask: the pooling of a map.

        q' = q + γ_1 attention(norm(q); norm(keys)),   pooled = q' + γ_2 network(norm(q'))

    The keys are the cells and, for a single query, the query itself. Where its queries are zero, every key weighs as
    much: the mean of all n + 1.

    Shapes: ``x (b, width, y, x)`` -> ``(b, queries, width)``.

    Args:
        width: of the map. queries: one, or one a class. heads: of the attention. scale: first value of γ.
    """

    def __init__(self, width: int, queries: int, heads: int, scale: float) -> None:
        super().__init__()
        self.query = nn.Parameter(0.02 * torch.randn(1, queries, width))
        self.attention = Attention(build("softmax"), Biased(width, heads))
        self.norms = nn.ModuleList(nn.LayerNorm(width, EPS) for _ in range(2))
        self.network = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))
        self.gammas = nn.ParameterList(torch.full((width,), scale) for _ in range(2))

    def keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries ``(b, queries, width)`` and what they attend to ``(b, n or n + 1, width)``, both normed."""
        query, cells = self.query.expand(x.shape[0], -1, -1), flat(x)
        whole = self.norms[0](torch.cat((query, cells), 1))
        count = query.shape[1]
        return whole[:, :count], whole if count == 1 else whole[:, count:]

    def forward(self, x: Tensor) -> Tensor:
        query, keys = self.keys(x)
        q = self.query + self.gammas[0] * self.attention(query, Layout(), keys)
        return q + self.gammas[1] * self.network(self.norms[1](q))

    def map(self, x: Tensor) -> Tensor:
        """What each query attends to ``(b, heads, queries, y, x)``, without the weight on itself."""
        query, keys = self.keys(x)
        q, k, _, _ = self.attention.inputs(query, Layout(), keys)
        return self.attention.mechanism.weights(q, k)[..., -x.shape[2] * x.shape[3] :].unflatten(3, x.shape[2:])


@published(
    "patchconvnet",
    family="featuremap",
    kind="network",
    row=192,
    title="Augmenting Convolutional networks with attention-based aggregation",
    arxiv="2112.13692",
    year=2021,
    fidelity="authors' code",
    claim=(
        Claim(
            "S60 has the parameters and the multiply-adds at 224 × 224 that the paper prints",
            cells="map_networks.patchconvnet_of(size=S60)",
            holds="map_networks.is_printed(parameters=25.2, multiply_adds=4.0, within=0.01)",
        ),
        Claim(
            "S120 has the parameters and the multiply-adds at 224 × 224 that the paper prints",
            cells="map_networks.patchconvnet_of(size=S120)",
            holds="map_networks.is_printed(parameters=47.7, multiply_adds=7.5, within=0.01)",
        ),
        Claim(
            "B60 has the parameters and the multiply-adds at 224 × 224 that the paper prints",
            cells="map_networks.patchconvnet_of(size=B60)",
            holds="map_networks.is_printed(parameters=99.4, multiply_adds=15.8, within=0.01)",
        ),
        Claim(
            "a query of zero gives the mean of the values of all cells and of the query itself",
            cells="map_networks.zero_query",
            holds="map_networks.is_a_mean",
        ),
    ),
)
class PatchConvNet(Network):
    """A convolutional stem of stride 16, blocks of one width and resolution, and attention as the pooling.

        logits = norm(pool(blocks(stem(images)))) W + b

    Shapes: ``images (b, 3, y, x)`` -> ``(b, classes)``, of any height and width.

    Args:
        size: S60, S120, B60, B120, L60 or L120. classes: of the output. per_class: one query for each class, which
            reads cells alone, instead of one for all. width, depth, scale: instead of those of the size.

    Raises:
        ValueError: another size.

    Paper: Touvron et al., arXiv 2112.13692.
    """

    def __init__(
        self,
        size: str = "S60",
        classes: int = 1000,
        per_class: bool = False,
        width: int | None = None,
        depth: int | None = None,
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise wrong("size", repr(size), f"one of {', '.join(SIZES)}")
        c, blocks, scale = SIZES[size]
        c, blocks = width or c, depth or blocks
        stem: list[nn.Module] = []
        for inside, outside in ((3, c // 8), (c // 8, c // 4), (c // 4, c // 2), (c // 2, c)):
            stem += [nn.Conv2d(inside, outside, 3, 2, 1, bias=False), nn.GELU()]
        self.stem = nn.Sequential(*stem[:-1])
        self.blocks = nn.Sequential(*(ConvolutionBlock(c, scale) for _ in range(blocks)))
        self.pool = AttentionPool(c, classes if per_class else 1, 1, scale)
        self.norm, self.classes, self.per_class = nn.LayerNorm(c, EPS), nn.Linear(c, classes), per_class
        for layer in (self.classes, *(m for m in self.pool.modules() if isinstance(m, nn.Linear))):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        def made(per_class: bool) -> PatchConvNet:
            return cls("S60", 5, per_class, 24, 2)

        def whole() -> PatchConvNet:
            with torch.device("meta"):
                return cls("S60")

        return [
            image_sample(
                "one query", made(False), (33, 50), 3, output=(5,), again=lambda: made(False), published=(whole, 25.2)
            ),
            image_sample("one a class", made(True), (33, 50), 3, output=(5,), again=lambda: made(True)),
        ]

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.norm(self.pool(self.features(images)))
        if self.per_class:
            return (pooled * self.classes.weight).sum(2) + self.classes.bias
        return self.classes(pooled[:, 0])

    def features(self, images: Tensor) -> Tensor:
        """The map ``(b, width, y / 16, x / 16)`` that is pooled."""
        return self.blocks(self.stem(images))
