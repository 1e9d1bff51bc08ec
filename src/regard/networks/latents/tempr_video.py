"""TemPr on videos: a residual network in three dimensions, whose features of growing beginnings the towers read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import pi
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.networks.base import Network
from regard.networks.latents.tempr import TemPr


class Residual(nn.Module):
    """``relu(norm(conv(relu(norm(conv(x))))) + skip)``, convolutions of 3 × 3 × 3 without biases.

    Args:
        inside, width: channels. stride: of the first convolution, in time too; the skip is then a convolution of one
            cell and a norm.
    """

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(inside, width, 3, stride, 1, bias=False)
        self.second = nn.Conv3d(width, width, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm3d(width) for _ in range(2))
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or inside != width:
            self.skip = nn.Sequential(nn.Conv3d(inside, width, 1, stride, bias=False), nn.BatchNorm3d(width))

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(self.norms[1](self.second(inner)) + self.skip(x))


class VideoResNet(nn.Module):
    """Features of videos: a convolution of 3 × 7 × 7, the largest of 3 × 3 × 3, and stages of residual blocks.

    Space is halved by the convolution, time and space by the pooling and by each stage but the first.

    Shapes: ``(b, channels, t, y, x)`` -> ``(b, width, t / 16, y / 32, x / 32)`` for four stages, rounded up.

    Args:
        channels: of the frames. depths, widths: blocks and channels of each stage. Defaults are those of R3D-18.

    Paper: Hara et al., arXiv 1711.09577, as Stergiou and Damen's code has it.
    """

    def __init__(
        self,
        channels: int = 3,
        depths: Sequence[int] = (2, 2, 2, 2),
        widths: Sequence[int] = (64, 128, 256, 512),
    ) -> None:
        super().__init__()
        if len(depths) != len(widths) or min(depths, default=0) < 1:
            raise wrong("depths", str(depths), f"at least 1 block for each of the {len(widths)} stages")
        self.stem = nn.Conv3d(channels, widths[0], (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
        self.norm, self.width = nn.BatchNorm3d(widths[0]), widths[-1]
        blocks, inside = [], widths[0]
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            for place in range(depth):
                blocks.append(Residual(inside, width, 2 if stage and not place else 1))
                inside = width
        self.blocks = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.blocks(F.max_pool3d(x, 3, 2, 1))


def with_positions(x: Tensor, bands: int, most: float) -> Tensor:
    """Cells of maps ``(b, c, t, y, x)`` with where they stand: ``(b, t y x, c + 3 (2 bands + 1))``.

    sin(π f p), cos(π f p), p   for each axis, p from −1 to 1, f in ``bands`` steps from 1 to most / 2
    """
    rates = torch.linspace(1, most / 2, bands, device=x.device, dtype=x.dtype)
    places = torch.meshgrid(
        *(torch.linspace(-1, 1, size, device=x.device, dtype=x.dtype) for size in x.shape[2:]), indexing="ij"
    )
    columns = [x.movedim(1, -1)]
    for place in places:
        angles = pi * place[..., None] * rates
        told = torch.cat([angles.sin(), angles.cos(), place[..., None]], -1)
        columns.append(told.expand(len(x), *told.shape))
    return torch.cat(columns, -1).flatten(1, 3)


@published(
    "tempr_video",
    family="latent",
    kind="network",
    row=229,
    title="The Wisdom of Crowds: Temporal Progressive Attention for Early Action Prediction",
    arxiv="2204.13340",
    year=2022,
    fidelity="authors' code",
    claim=Claim(
        "beginnings are the first s of S parts of what is seen, each with as many frames; cost linear in the videos",
        cells="latents.video_beginnings",
        holds="latents.begin_alike",
    ),
)
class TemPrVideo(Network):
    """Beginnings of a video pass a convolutional network, and `TemPr`'s towers read its cells with their places.

        x_s = [pool_{t × 4 × 4}(R(frames of the first s / S)), where],   y = TemPr(x_1 … x_S)

    Shapes: ``videos (b, channels, t, y, x)``, the frames that are seen -> scores ``(b, classes)``.

    Args:
        classes: how many. scales: S. frames: that each scale takes of its beginning, evenly. channels: of the frames.
            depths, widths: of `VideoResNet`. bands, most: of positions, see `with_positions`. frozen: whether the
            convolutional network is not trained, as the authors', whose weights come from videos of other actions.
            seed: of the weights. towers: arguments of `TemPr`.

    Raises:
        ValueError: fewer than one frame or scale; in a call, videos of other axes or channels.

    Paper: Stergiou and Damen, arXiv 2204.13340. Of the networks that their code offers this is R3D; theirs draws where
    in a beginning its frames lie, and plays them at once; here they are spread over all of it.
    """

    def __init__(
        self,
        classes: int,
        scales: int = 4,
        frames: int = 16,
        channels: int = 3,
        depths: Sequence[int] = (2, 2, 2, 2),
        widths: Sequence[int] = (64, 128, 256, 512),
        bands: int = 10,
        most: float = 10.0,
        frozen: bool = True,
        seed: int = 0,
        towers: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if frames < 1:
            raise wrong("frames", str(frames), "at least 1")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.backbone = VideoResNet(channels, depths, widths).requires_grad_(not frozen)
        self.frames, self.channels, self.bands, self.most = frames, channels, bands, most
        self.head = TemPr(widths[-1] + 3 * (2 * bands + 1), classes, scales, seed=seed, **(towers or {}))

    def beginnings(self, t: int) -> Tensor:
        """Which of t frames each scale takes, ``(S, frames)``: evenly of the first ``⌊t s / S⌋``, at least of one."""
        ends = [max(t * s // self.head.scales, 1) - 1 for s in range(1, self.head.scales + 1)]
        return torch.stack([torch.linspace(0, end, self.frames).long() for end in ends])

    def features(self, videos: Tensor) -> Tensor:
        """``(b, S, cells, channels)``: what the towers read."""
        if videos.dim() != 5 or videos.shape[1] != self.channels or not videos.shape[2]:
            raise wrong("videos", f"shape {tuple(videos.shape)}", f"(batch, {self.channels}, frames, rows, columns)")
        places = self.beginnings(videos.shape[2]).to(videos.device)
        parts = videos[:, :, places].movedim(2, 1)  # (b, S, channels, frames, y, x)
        maps = self.backbone(parts.flatten(0, 1))
        maps = F.adaptive_avg_pool3d(maps, (maps.shape[2], 4, 4))
        return with_positions(maps, self.bands, self.most).unflatten(0, (len(videos), -1))

    def forward(self, videos: Tensor) -> Tensor:
        return self.head(self.features(videos))

    def intermediates(self, videos: Tensor) -> dict[str, Tensor]:
        """A ``(b, 1, latents, cells)`` of each tower's reading."""
        return self.head.intermediates(self.features(videos))

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        def draw(batch: int, seed: int) -> tuple[Tensor]:
            return (torch.randn(batch, 2, 7, 33, 35, generator=torch.Generator().manual_seed(seed)),)

        sizes: dict[str, Any] = {"latents": 3, "width": 8, "heads": 2, "head_dim": 4}
        net = cls(11, 3, 5, 2, (1, 2), (4, 6), 2, frozen=False, towers=sizes)
        assert net.head.beta is not None
        net.head.beta.data.fill_(0.6)
        return [Sample("two stages", net, {"inputs": draw, "output": (11,)})]
