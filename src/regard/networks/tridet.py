"""TriDet: events in time, whose ends are expected over bins of the starts and ends around each moment."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.parts.dropped import Dropped
from regard.networks.base import Network
from regard.networks.events import EventCriterion, Moments, chosen
from regard.tasks.boxes import Found

GROUPS, PRIOR = 16, 0.01


def ranges(levels: int) -> list[tuple[float, float]]:
    """How far the farther end of an event may be from a moment of each level that stands for it."""
    edges = [0.0, *(4.0 * 2**level for level in range(levels)), 10_000.0]
    return list(itertools.pairwise(edges))


class ChannelNorm(nn.LayerNorm):
    """The layer norm of each moment ``(b, c, t)`` over its channels."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.mT).mT


class KeptGroupNorm(nn.GroupNorm):
    """The norm of groups of channels over all moments that are kept."""

    def forward(self, input: Tensor, kept: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        parts = input.unflatten(1, (self.num_groups, -1))
        count = kept.sum(-1)[:, :, None, None] * parts.shape[2]
        mean = (parts * kept[:, :, None]).sum((2, 3), keepdim=True) / count
        centred = (parts - mean) * kept[:, :, None]
        scale = torch.rsqrt(centred.square().sum((2, 3), keepdim=True) / count + self.eps)
        return (centred * scale).flatten(1, 2) * self.weight[:, None] + self.bias[:, None]


class Scaled(nn.Module):
    """A learned number, or one for each channel, times what comes in."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(start)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def depthwise(width: int, kernel: int) -> nn.Conv1d:
    """A convolution of each channel by itself."""
    return nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)


class GranularPerception(nn.Module):
    """Scalable granularity: each moment beside the mean of all, and two windows weighed by what it shows.

        n = norm(x),   y = x + d s (n + (F n) relu(G mean(n)) + (P n) (W n + V n))
        z = y + d s' W_2 gelu(W_1 group_norm(y))

    F and G are numbers for each channel, P, W and V convolutions of each channel by itself, P and W of ``kernel``
    moments, V of ``ratio`` (``kernel`` + 1) of them, made odd. What is not kept is zero wherever something else reads
    it: the mean and the norms are those of what is kept.

    Args:
        width: c, a multiple of 16. kernel: odd. ratio: of the wider window. inner: of the network. halves: whether the
            maximum of three moments is taken of every second one first. scaled: whether there are s and s'.
            drop: the share of sequences that go without a branch in training, by d.
    """

    def __init__(
        self, width: int, kernel: int, ratio: float, inner: int, halves: bool, scaled: bool, drop: float = 0.0
    ) -> None:
        super().__init__()
        wide = round((kernel + 1) * ratio)
        self.norm, self.psi, self.own = ChannelNorm(width), depthwise(width, kernel), depthwise(width, 1)
        self.near, self.far = depthwise(width, kernel), depthwise(width, wide + 1 - wide % 2)
        self.mean, self.groups = depthwise(width, 1), KeptGroupNorm(GROUPS, width)
        self.inner = nn.Sequential(nn.Conv1d(width, inner, 1), nn.GELU(), nn.Conv1d(inner, width, 1))
        made = (Scaled(torch.full((width, 1), 1e-4)) if scaled else nn.Identity() for _ in range(2))
        self.scale, self.inner_scale = made
        self.pool = nn.MaxPool1d(3, 2, 1) if halves else None
        self.dropped = Dropped(drop)
        for layer in (self.psi, self.own, self.near, self.far, self.mean):
            nn.init.zeros_(layer.weight)
        for layer in (each for each in self.modules() if isinstance(each, nn.Conv1d)):
            nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, x: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """``x (b, c, t)`` and what of it is kept ``(b, 1, t)``, and both of half of the moments where it halves."""
        if self.pool is not None:
            x = self.pool(x.masked_fill(kept == 0, float("-inf")))
            kept = kept[:, :, ::2]
        x = torch.where(kept > 0, x, 0)
        normed = self.norm(x) * kept
        psi, own, windows = self.psi(normed), self.own(normed), self.near(normed)
        windows = windows + self.far(normed)
        mean = normed.sum(2, keepdim=True) / kept.sum(2, keepdim=True)
        y = x + self.dropped(self.scale(own * torch.relu(self.mean(mean)) + windows * psi + normed))
        return (y + self.dropped(self.inner_scale(self.inner(self.groups(y * kept, kept))))) * kept, kept


class Tower(nn.Module):
    """Convolutions of three moments with a norm and a relu, and a last one, the same for all levels.

    Args:
        width: of the levels. out: channels that come out. start: of the last bias.
    """

    def __init__(self, width: int, out: int, start: float = 0.0) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(ChannelNorm(width) for _ in range(2))
        self.last = nn.Conv1d(width, out, 3, padding=1)
        nn.init.constant_(self.last.get_parameter("bias"), start)

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = torch.relu(norm(convolution(x))) * kept
        return self.last(x) * kept


@published(
    "tridet",
    family="featuremap",
    kind="network",
    row=243,
    title="TriDet: Temporal Action Detection with Relative Boundary Modeling",
    arxiv="2303.07347",
    year=2023,
    aliases=("sgp", "trident_head"),
    fidelity="authors' code",
    claim=(
        Claim(
            "sure bins give their distance exactly, two alike bins the one between them, on both sides",
            cells="events.expected",
            holds="events.is_exact",
        ),
        Claim(
            "what padding holds changes nothing of what is kept",
            cells="events.padded",
            holds="common.within(most=1e-9)",
        ),
        Claim(
            "trained on drawn events, it finds them at an overlap of 0.7 with a higher mean average precision than "
            "with distances that are told as they are, over three seeds",
            cells="events.trained",
            holds="events.is_closer",
        ),
    ),
)
class TriDet(Network):
    """A pyramid over time of `GranularPerception`, and of each moment and class the start and the end of an event.

        start_t = t − r Σ_k k softmax_k(s_{t−k} + a_{t,k}),   end_t = t + r Σ_k k softmax_k(e_{t+k} + b_{t,k})

    k runs over the bins from 0, r is the moments from one to the next of a level, s and e are the class's starts and
    ends at the moments around, zero outside of what is kept, and a and b what the moment itself says.

    `loss` is what trains it, `found` the choice among its events.

    Shapes: ``x (b, features, t)``, ``lengths (b,)`` of what is kept, None for all -> ``(b, moments, classes, 3)``: the
    probability, start and end, in moments of x; moments are those of all levels, each with half of the one before it.

    Args:
        features: of x. classes: to tell apart. width: of the pyramid, a multiple of 16. inner: of its blocks' networks.
            levels: halvings. bins: beyond the moment itself; 0 for distances that are told as they are, the same for
            all classes, by a head that this one is compared with. kernel, ratio: of the windows. seed: of the weights.
            drop: the share of sequences that go without a branch of a block that halves in training.

    Raises:
        ValueError: a width that 16 does not divide, an even kernel, no class, a size below one; lengths of another
            batch.

    Paper: Shi et al., arXiv 2303.07347. In the authors' code means and norms read the padding; here they do not.
    """

    def __init__(
        self,
        features: int = 2048,
        classes: int = 20,
        width: int = 512,
        inner: int = 768,
        levels: int = 5,
        bins: int = 16,
        kernel: int = 1,
        ratio: float = 5.0,
        seed: int = 0,
        drop: float = 0.1,
    ) -> None:
        super().__init__()
        if width % GROUPS or kernel % 2 == 0 or min(features, classes, width, inner, levels, bins + 1) < 1:
            came = f"{features}, {classes}, {width}, {inner}, {levels}, {bins}, {kernel}"
            wanted = f"sizes of one or more, bins of none or more, the width by {GROUPS}, the kernel odd"
            raise wrong("features, classes, width, inner, levels, bins, kernel", came, wanted)
        self.bins, self.levels = bins, levels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            given = (features, width)
            self.embed = nn.ModuleList(nn.Conv1d(each, width, 3, padding=1, bias=False) for each in given)
            self.embed_norms = nn.ModuleList(ChannelNorm(width) for _ in given)
            self.stem = nn.ModuleList(GranularPerception(width, 1, ratio, inner, False, False) for _ in range(2))
            more = (kernel, ratio, inner, True, True, drop)
            self.blocks = nn.ModuleList(GranularPerception(width, *more) for _ in range(levels))
            self.norms = nn.ModuleList(ChannelNorm(width) for _ in range(levels + 1))
            start = -math.log((1 - PRIOR) / PRIOR)
            self.classes = Tower(width, classes, start)
            if bins:
                self.starts, self.ends = (Tower(width, classes, start) for _ in range(2))
            self.moments = Tower(width, 2 * (bins + 1))
            self.scales = nn.ModuleList(Scaled(torch.ones(())) for _ in range(levels + 1))
        self.criterion = EventCriterion(ranges(levels))

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        def made(seed: int = 0) -> TriDet:
            network = cls(5, 3, 16, 7, 2, 4, 3, 1.5, seed)
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():  # past the zeros that it begins with
                for parameter in network.parameters():
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
            return network

        def inputs(batch: int, seed: int) -> tuple[Tensor]:
            return (torch.randn(batch, 5, 23, generator=torch.Generator().manual_seed(seed)),)

        return [Sample("tridet", made(), {"inputs": inputs, "output": (41, 3, 3), "again": lambda: made(7)})]

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        read = self.read(x, lengths)
        return torch.cat((torch.sigmoid(read.scores)[..., None], read.spans), -1)

    def read(self, x: Tensor, lengths: Tensor | None = None) -> Moments:
        """What every moment says: what a loss reads in training."""
        scores, away, times, steps, kept = [], [], [], [], []
        for level, (maps, there) in enumerate(self.features(x, lengths)):
            scores.append(self.classes(maps, there).mT)
            away.append(self.distances(maps, there, level))
            step = x.new_full((maps.shape[2],), 2.0**level)
            times.append(step * torch.arange(maps.shape[2], device=x.device, dtype=x.dtype))
            steps.append(step)
            kept.append(there[:, 0] > 0)
        levels = tuple(each.shape[1] for each in scores)
        both = (torch.cat(scores, 1), torch.cat(away, 1))
        return Moments(*both, torch.cat(times), torch.cat(steps), torch.cat(kept, 1), levels)

    def distances(self, maps: Tensor, kept: Tensor, level: int) -> Tensor:
        """How far each class's event begins before each moment and ends after it ``(b, t, classes, 2)``, in steps."""
        if not self.bins:
            return torch.relu(self.scales[level](self.moments(maps, kept))).mT[:, :, None]
        bins = torch.arange(self.bins + 1, device=maps.device, dtype=maps.dtype)
        return torch.stack([(each @ bins).mT for each in self.shares(maps, kept, level)], -1)

    def loss(self, x: Tensor, kinds: Tensor, spans: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The losses of the classes and of the ends: see `EventCriterion`, which counts on from call to call."""
        return self.criterion(self.read(x, lengths), kinds, spans)

    def found(self, x: Tensor, lengths: Tensor | None = None, **options: Any) -> list[Found]:
        """The choice among its events: see `events.chosen`, whose options these are."""
        with torch.no_grad():
            return chosen(self.read(x, lengths), **options)

    def features(self, x: Tensor, lengths: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
        """The maps of all levels ``(b, width, t_l)``, and what of each is kept ``(b, 1, t_l)``."""
        if lengths is not None and lengths.shape != x.shape[:1]:
            raise wrong("lengths", f"shape {tuple(lengths.shape)}", f"{tuple(x.shape[:1])}")
        kept = x.new_ones(x.shape[0], 1, x.shape[2])
        if lengths is not None:
            kept = (torch.arange(x.shape[2], device=x.device) < lengths[:, None])[:, None].to(x.dtype)
        for convolution, norm in zip(self.embed, self.embed_norms, strict=True):
            x = torch.relu(norm(convolution(x * kept))) * kept
        for block in self.stem:
            x, kept = block(x, kept)
        found = [(x, kept)]
        for block in self.blocks:
            found.append(block(*found[-1]))
        return [(norm(maps) * kept, kept) for norm, (maps, kept) in zip(self.norms, found, strict=True)]

    def shares(self, maps: Tensor, kept: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """The likeness of each distance to the start and to the end ``(b, classes, t, bins + 1)``, from 0."""
        fixed = maps.detach()
        start, end = self.starts(fixed, kept), self.ends(fixed, kept)
        return self.by_bins(start, end, torch.relu(self.scales[level](self.moments(maps, kept))))

    def by_bins(self, start: Tensor, end: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """The likeness of each distance from the starts and ends ``(b, classes, t)`` of the moments around and what a
        moment itself says ``(b, 2 (bins + 1), t)``."""
        own = own.unflatten(1, (2, -1)).transpose(2, 3)
        before = F.pad(start, (self.bins, 0)).unfold(2, self.bins + 1, 1)
        after = F.pad(end, (0, self.bins)).unfold(2, self.bins + 1, 1)
        left = torch.softmax(before + own[:, :1], -1).flip(-1)
        return left, torch.softmax(after + own[:, 1:], -1)

    def intermediates(self, x: Tensor, lengths: Tensor | None = None) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The likeness of each distance to the start and to the end ``(b, classes, t, bins + 1)``, by level."""
        found: dict[str, Tensor] = {}
        if not self.bins:
            return found
        for level, (maps, kept) in enumerate(self.features(x, lengths)):
            found[f"starts.{level}"], found[f"ends.{level}"] = self.shares(maps, kept, level)
        return found
