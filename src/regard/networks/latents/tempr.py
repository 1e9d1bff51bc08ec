"""TemPr: towers of latents, one for each length of a video's beginning, whose predictions are pooled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.kernels import dense
from regard.networks.base import Network
from regard.networks.latents.base import Latents, Reading
from regard.networks.latents.perceiver import Layer


class Tower(Latents):
    """Latents that read one scale once and mix: cross-attention, then self-attention layers, with gated MLPs.

    Args:
        channels: of the array. latents, width: of the latents, which begin as those of all towers do. layers: of
            self-attention. heads: of it; the cross-attention has one. head_dim: of all heads.
    """

    def __init__(self, channels: int, latents: int, width: int, layers: int, heads: int, head_dim: int) -> None:
        super().__init__(channels, latents, width)
        self.cross = Layer(width, channels, 1, head_dim, 4, gated=True)
        self.stack = nn.ModuleList(Layer(width, None, heads, heads * head_dim, 4, gated=True) for _ in range(layers))

    def start(self, batch: int, generator: Generator | None = None) -> Tensor:
        raise wrong("start", "None", "the latents that all towers begin with")

    def reading(self, turn: int, latents: Tensor, array: Tensor) -> Reading:
        return self.cross.asked(latents, array)

    def updated(self, turn: int, latents: Tensor, found: Tensor) -> Tensor:
        return self.cross.finish(latents, found)

    def mixed(self, turn: int, latents: Tensor) -> Tensor:
        for layer in self.stack:
            assert isinstance(layer, Layer)
            q, k, v, scale = layer.asked(latents, None)
            latents = layer.finish(latents, dense.attend(q, k, v, Layout(), scale))
        return latents

    def flops(self, n: int, batch: int = 1) -> int:
        inner = sum(layer.flops(self.latents, self.latents) for layer in self.stack if isinstance(layer, Layer))
        return batch * (self.cross.flops(self.latents, n) + inner)


@published(
    "tempr",
    family="latent",
    kind="network",
    row=229,
    title="The Wisdom of Crowds: Temporal Progressive Attention for Early Action Prediction",
    arxiv="2204.13340",
    year=2022,
    aliases=("temporal_progressive",),
    fidelity="authors' code",
    claim=(
        Claim(
            "towers over growing beginnings tell an action earlier than one tower over what is seen",
            cells="latents.beginnings",
            holds="latents.tell_earlier",
        ),
        Claim(
            "cost linear in the features",
            cells="latents.tempr_doubled",
            holds="common.at_most(figure=ratio, most=2.2, said='FLOPs for twice the features')",
        ),
    ),
)
class TemPr(Network):
    """Each tower reads one scale, the features of a longer beginning than the one before, and all predict.

        z_s = tower_s(z_0, x_s),   p_s = W LN(mean of z_s),   p = β eDSCW(p_1 … p_S) + (1 − β) eM(p_1 … p_S)

        eM: weights exp(p_s) / Σ exp(p_s);   eDSCW: exp(d_s) / Σ exp(d_s),   d_s = 2 |p̄ p_s| / (p̄² + p_s²)

    for each class; p̄ is the mean over scales, β is ``beta``, kept between 0 and 1. z_0, LN and W are those of all
    towers.

    Shapes: ``features (b, S, n, channels)``, positions among the channels -> scores ``(b, classes)``.

    Args:
        channels: of the features. classes: how many. scales: S. latents, width: of each tower. layers: of
            self-attention in each. heads, head_dim: of it. pool: "ada" as above, or "mean". tied: one tower for all
            scales. seed: of the weights.

    Raises:
        ValueError: in a call, features of other scales.

    Paper: Stergiou and Damen, arXiv 2204.13340; with the convolutional network whose features it reads:
    `regard.networks.latents.tempr_video`. The authors' GPU kernel of the pool looks at the first half of the
    scales and cuts scores below zero off; here it is as in the paper, over all scales.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        scales: int = 4,
        *,
        latents: int = 256,
        width: int = 512,
        layers: int = 1,
        heads: int = 8,
        head_dim: int = 64,
        pool: Literal["ada", "mean"] = "ada",
        tied: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if pool not in ("ada", "mean"):
            raise wrong("pool", repr(pool), "'ada' or 'mean'")
        if scales < 1:
            raise wrong("scales", str(scales), "at least 1")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.initial = nn.Parameter(torch.empty(latents, width))
            nn.init.kaiming_uniform_(self.initial)
            sizes = channels, latents, width, layers, heads, head_dim
            self.towers = nn.ModuleList(Tower(*sizes) for _ in range(1 if tied else scales))
            self.norm, self.classes = nn.LayerNorm(width), nn.Linear(width, classes)
        self.scales, self.beta = scales, nn.Parameter(torch.ones(())) if pool == "ada" else None

    def tower(self, scale: int) -> Tower:
        """That of a scale."""
        found = self.towers[scale % len(self.towers)]
        assert isinstance(found, Tower)
        return found

    def predictions(self, features: Tensor) -> Tensor:
        """``(b, S, classes)``: what each tower says."""
        if features.dim() != 4 or features.shape[1] != self.scales:
            raise wrong("features", f"shape {tuple(features.shape)}", f"(batch, {self.scales}, n, channels)")
        start = self.initial.expand(len(features), -1, -1)
        read = [self.tower(s)(features[:, s], start=start).mean(1) for s in range(self.scales)]
        return self.classes(self.norm(torch.stack(read, 1)))

    def forward(self, features: Tensor) -> Tensor:
        said = self.predictions(features)
        return said.mean(1) if self.beta is None else adaptive(said, self.beta)

    def intermediates(self, features: Tensor) -> dict[str, Tensor]:
        """A ``(b, 1, latents, n)`` of each tower's reading."""
        start = self.initial.expand(len(features), -1, -1)
        return {f"tower {s}": self.tower(s).maps(features[:, s], start=start)[0] for s in range(self.scales)}

    def tower_flops(self, n: int, batch: int = 1) -> int:
        """FLOPs of the towers on n features a scale."""
        return sum(self.tower(s).flops(n, batch) for s in range(self.scales))

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        sizes = {"latents": 3, "width": 8, "heads": 2, "head_dim": 4}

        def draw(batch: int, seed: int) -> tuple[Tensor, ...]:
            return (torch.randn(batch, 3, 7, 5, generator=torch.Generator().manual_seed(seed)),)

        def sample(label: str, **more) -> Sample:
            net = cls(5, 11, 3, **sizes, **more)
            if net.beta is not None:
                net.beta.data.fill_(0.6)
            return Sample(label, net, {"inputs": draw, "output": (11,)})

        return [sample("ada"), sample("mean, tied", pool="mean", tied=True, layers=2)]


def adaptive(said: Tensor, beta: Tensor) -> Tensor:
    """AdaPool over the second axis of ``said (b, S, classes)``."""
    mean = said.mean(1, keepdim=True)
    alike = 2 * (mean * said).abs() / (mean.square() + said.square()).clamp(min=torch.finfo(said.dtype).tiny)
    near, most = (torch.softmax(x, 1) * said for x in (alike, said))
    share = beta.clamp(0, 1)
    return share * near.sum(1) + (1 - share) * most.sum(1)
