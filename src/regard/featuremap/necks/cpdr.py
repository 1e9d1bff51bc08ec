"""Crossed post-decoder refinement: levels of a decoder that gate each other, the coarser by channels, the finer by
cells."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.neck import Neck, NeckTraits
from regard.featuremap.parts.layers import Convolved
from regard.featuremap.resize import Size, halved, resize


class ByChannels(nn.Module):
    """``σ(2 V relu(W mean(x)))``, a factor for each channel, from a map of as many.

    Parameters: 2 c h.

    Args:
        channels: c. hidden: h.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, hidden, 1, bias=False)
        self.second = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(2 * self.second(torch.relu(self.first(x.mean((2, 3), keepdim=True)))))


class ByCells(nn.Module):
    """``σ(W [mean_c x, max_c x])``, a factor for each cell; W 7 × 7."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.convolution(torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)))


def square(inside: int, out: int, stride: int = 1) -> Convolved:
    """A convolution 3 × 3 with a norm and a relu."""
    return Convolved(inside, out, 3, stride)


def counted(inside: int, out: int, kernel: int = 3) -> int:
    """Parameters of a convolution with a norm."""
    return inside * out * kernel * kernel + 2 * out


def check_out(out: int | Sequence[int], widths: Sequence[int]) -> None:
    """Named unless it is what comes out."""
    given = (out,) * len(widths) if isinstance(out, int) else tuple(out)
    if given != tuple(widths):
        raise wrong("out", repr(out), f"{tuple(widths)}, which follow from the channels that come in")


@published(
    "cpdr",
    family="featuremap",
    kind="neck",
    row=152,
    title="CPDR: Towards Highly-Efficient Salient Object Detection via Crossed Post-decoder Refinement",
    arxiv="2501.06441",
    year=2025,
    aliases=("crossed_refinement",),
    fidelity="authors' code",
    claim=(
        Claim(
            "the dual fusions of `dacf` have fewer parameters than the two passes",
            cells="crossed.sizes",
            holds="crossed.is_less",
        ),
        Claim(
            "the coarsest map is read by its means alone",
            cells="crossed.means",
            holds="common.within(most=1e-9)",
        ),
    ),
)
class CPDR(Neck):
    """Down with gates on channels that the coarser map gives, up with gates on cells that the finer one gives.

        down: d_0 = C (c_0 ⊙ se(c_1)),   d_l = C ([D d_{l−1}, c_l] ⊙ se(c_{l+1}))
        up:   u_L = C (d_L ⊙ cells(d_{L−1})),   u_l = C ([U u_{l+1}, d_l] ⊙ cells(d_{l−1})),   u_0 = C [U u_1, d_0]

    C, D, U are 3 × 3 with a norm and a relu, D of stride 2; se is `ByChannels`, cells `ByCells`, brought to the level's
    size bilinearly with aligned corners, as u_{l+1} is before U. All maps but the coarsest come out: u_0 has c_0
    channels, u_l has c_{l+1}.

    Parameters: those of the convolutions, 9 c d + 2 d each, 2 c h of each se, 98 of each cells.

    Args:
        channels: c of the decoder's maps, fine to coarse, three at least, where c_0 = c_1 < c_2 < …; the authors' are
            16, 16, 32, 64. out: what comes out. hidden: of each se.

    Raises:
        ValueError: channels that do not fit into each other, or another ``out``.

    Paper: Li et al., arXiv 2501.06441.
    """

    traits = NeckTraits(batch_norm=True)

    def __init__(self, channels: Sequence[int], out: int | Sequence[int], hidden: int = 8) -> None:
        super().__init__(channels, channels[0] if channels else 0)
        rising = all(one < other for one, other in itertools.pairwise(channels[1:]))
        if len(channels) < 3 or channels[0] != channels[1] or not rising or hidden < 1:
            raise wrong("channels, hidden", f"{tuple(channels)}, {hidden}", "three at least, c_0 = c_1 < c_2 < …, one")
        self.hidden, c = hidden, self.channels
        inner = [c[0], *c[2:]]
        check_out(out, inner)
        self.by_channels = nn.ModuleList(ByChannels(each, hidden) for each in c[1:])
        pairs = list(itertools.pairwise(inner))
        self.down = nn.ModuleList(square(one, other - own, 2) for (one, other), own in zip(pairs, c[1:], strict=False))
        self.mix_down = nn.ModuleList(square(each, each) for each in inner)
        self.by_cells = nn.ModuleList(ByCells() for _ in pairs)
        self.up = nn.ModuleList(square(other, one) for one, other in pairs)
        self.mix_up = nn.ModuleList([*(square(2 * each, each) for each in inner[:-1]), square(inner[-1], inner[-1])])

    def fused(self, maps: list[Tensor]) -> list[Tensor]:
        found, last = [self.mix_down[0](maps[0] * self.by_channels[0](maps[1]))], len(maps) - 2
        for level in range(1, len(maps) - 1):
            own = maps[level]
            both = torch.cat((resize(self.down[level - 1](found[-1]), own), own), 1)
            found.append(self.mix_down[level](both * self.by_channels[level](maps[level + 1])))
        gates = [
            resize(gate(each), like, "aligned")
            for gate, each, like in zip(self.by_cells, found, found[1:], strict=False)
        ]
        found[last] = self.mix_up[last](found[last] * gates[-1])
        for level in range(last - 1, -1, -1):
            finer = self.up[level](resize(found[level + 1], found[level], "aligned"))
            both = torch.cat((finer, found[level]), 1)
            found[level] = self.mix_up[level](both * gates[level - 1] if level else both)
        return found

    @property
    def reads(self) -> list[tuple[int, ...]]:
        return [tuple(range(len(self.channels)))] * (len(self.channels) - 1)

    @property
    def widths(self) -> list[int]:
        return [self.channels[0], *self.channels[2:]]

    @property
    def parameter_count(self) -> int:
        inner, c = self.widths, self.channels
        pairs = list(itertools.pairwise(inner))
        down = sum(counted(one, other - own) for (one, other), own in zip(pairs, c[1:], strict=False))
        mixed = sum(counted(each, each) for each in inner) + sum(counted(2 * each, each) for each in inner[:-1])
        gates = 2 * self.hidden * sum(c[1:]) + 98 * len(pairs)
        return down + mixed + counted(inner[-1], inner[-1]) + sum(counted(b, a) for a, b in pairs) + gates

    def flops(self, given: Sequence[Size], batch: int = 1) -> int:
        inner, c, cells = self.widths, self.channels, [y * x for y, x in given]
        total = 2 * self.hidden * sum(c[1:])
        for level, width in enumerate(inner):
            total += cells[level] * 9 * width * width
            total += cells[level] * 9 * width * (2 * width if level < len(inner) - 1 else width)
        for level, (one, other) in enumerate(itertools.pairwise(inner)):
            half = halved(given[level])
            total += half[0] * half[1] * 9 * one * (other - c[level + 1])
            total += cells[level] * (98 + 9 * other * one)
        return 2 * batch * total

    @classmethod
    def examples(cls) -> list[Sample]:
        return [
            Sample("cpdr", cls((4, 4, 6, 9), (4, 6, 9), 3)),
            Sample("three levels", cls((3, 3, 5), (3, 5), 2)),
        ]


class DualFusion(nn.Module):
    """``C (h + F up([l', D h']))`` with ``h' = R (h ⊙ se(l))`` and ``l' = R' (l ⊙ cells(h))``, half of the channels.

        fine map h, coarser map l;   C, R, R', D 3 × 3, D of stride 2, F 1 × 1

    Parameters: 2 c h + 98, and with d = c / 2 those of 9 c d twice, 9 d d twice, c d, and 10 d of norms.

    Args:
        channels: c, of both. hidden: h of the gate on channels.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        half = channels // 2
        self.by_channels, self.by_cells = ByChannels(channels, hidden), ByCells()
        self.coarse, self.fine = square(channels, half), square(channels, half)
        self.down, self.join, self.last = square(half, half, 2), Convolved(2 * half, half), square(half, half)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        channels, cells = self.by_channels(coarse), resize(self.by_cells(fine), coarse, "aligned")
        low, high = self.coarse(coarse * cells), self.fine(fine * channels)
        both = torch.cat((low, resize(self.down(high), low)), 1)
        return self.last(high + self.join(resize(both, high, "aligned")))

    @property
    def parameter_count(self) -> int:
        """By formula."""
        c, h = self.coarse.convolution.in_channels, self.by_channels.first.out_channels
        d = c // 2
        return 2 * c * h + 98 + 18 * c * d + 18 * d * d + 2 * d * d + 10 * d

    def flops(self, coarse: Size, fine: Size) -> int:
        """Multiply-adds."""
        c, h = self.coarse.convolution.in_channels, self.by_channels.first.out_channels
        d, half, cells = c // 2, halved(fine), fine[0] * fine[1]
        total = 2 * c * h + 98 * cells + coarse[0] * coarse[1] * 9 * c * d
        return total + cells * (9 * c * d + 9 * d * d + 2 * d * d) + half[0] * half[1] * 9 * d * d


@published(
    "dacf",
    family="featuremap",
    kind="neck",
    title="CPDR: Towards Highly-Efficient Salient Object Detection via Crossed Post-decoder Refinement",
    arxiv="2501.06441",
    year=2025,
    aliases=("dual_attention_cross_fusion",),
    fidelity="authors' code",
    claim=Claim(
        "each level but the coarsest reads its own map and all coarser ones",
        cells="crossed.dual_reads",
        holds="crossed.reads_the_coarser",
    ),
)
class DualCrossFusion(Neck):
    """Both gates of `CPDR` in one pass, from the coarsest map down, with half of the channels.

        u_l = dual(u_{l+1}, c_l),   u_L = c_L;   dual is `DualFusion`

    All maps but the coarsest come out, each with half of its channels. Parameters: those of the fusions.

    Args:
        channels: c of the decoder's maps, fine to coarse, two at least, the coarsest two alike and each other half of
            the next; the authors' are 16, 32, 64, 64. out: what comes out. hidden: of each gate on channels.

    Raises:
        ValueError: channels that do not fit into each other, or another ``out``.

    Paper: Li et al., arXiv 2501.06441.
    """

    traits = NeckTraits(batch_norm=True)

    def __init__(self, channels: Sequence[int], out: int | Sequence[int], hidden: int = 8) -> None:
        super().__init__(channels, channels[0] if channels else 0)
        if len(channels) < 2 or channels[-1] != channels[-2] or min(channels) < 2 or hidden < 1:
            raise wrong("channels, hidden", f"{tuple(channels)}, {hidden}", "two at least, the last two alike, one")
        if any(one != other // 2 for one, other in itertools.pairwise(channels[:-1])):
            raise wrong("channels", f"{tuple(channels)}", "each half of the next, up to the last but one")
        check_out(out, self.widths)
        self.fusions = nn.ModuleList(DualFusion(each, hidden) for each in channels[:-1])

    def fused(self, maps: list[Tensor]) -> list[Tensor]:
        found = list(maps)
        for level in range(len(maps) - 2, -1, -1):
            found[level] = self.fusions[level](found[level + 1], maps[level])
        return found[:-1]

    @property
    def members(self) -> list[DualFusion]:
        """The fusions, fine to coarse."""
        return [each for each in self.fusions if isinstance(each, DualFusion)]

    @property
    def reads(self) -> list[tuple[int, ...]]:
        levels = len(self.channels)
        return [tuple(range(level, levels)) for level in range(levels - 1)]

    @property
    def widths(self) -> list[int]:
        return [each // 2 for each in self.channels[:-1]]

    @property
    def parameter_count(self) -> int:
        return sum(each.parameter_count for each in self.members)

    def flops(self, given: Sequence[Size], batch: int = 1) -> int:
        pairs = zip(self.members, itertools.pairwise(given), strict=True)
        return 2 * batch * sum(each.flops(coarse, fine) for each, (fine, coarse) in pairs)

    @classmethod
    def examples(cls) -> list[Sample]:
        return [
            Sample("dacf", cls((3, 6, 12, 12), (1, 3, 6), 4)),
            Sample("an odd channel", cls((5, 5), 2, 3)),
        ]
