"""RCNet: a pyramid from the finest map up that looks one map ahead, and channels shifted between levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.deform import deform_conv2d
from regard.featuremap.neck import Neck, NeckTraits
from regard.featuremap.resize import Size, resize

TAPS = 9
"""Of a convolution 3 × 3."""


def norm(width: int, groups: int) -> nn.Module:
    """A batch norm, or a group norm of as many groups."""
    return nn.GroupNorm(groups, width) if groups else nn.BatchNorm2d(width)


def check_groups(width: int, **groups: int) -> None:
    """Raises an error that names groups which do not divide the channels; none is allowed."""
    for name, count in groups.items():
        if count < 0 or (count and width % count):
            raise wrong(name, str(count), f"0, or a number that divides the {width} channels")


class Smooth(nn.Module):
    """``norm(conv_3(relu(x)))``, where the taps of the convolution may be moved and weighed.

    Parameters: 9 d² + 2 d, and g (9 d + 1) 27 for the offsets and masks of g groups.

    Args:
        width: d. moved: g, groups of channels whose taps move alike; 0 for the plain convolution. groups: of the norm.
    """

    def __init__(self, width: int, moved: int, groups: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.offset = nn.Conv2d(width, 3 * TAPS * moved, 3, padding=1) if moved else None
        self.norm, self.moved = norm(width, groups), moved
        if self.offset is not None:
            for parameter in self.offset.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        if self.offset is None:
            return self.norm(self.convolution(x))
        offset, mask = self.offset(x).split([2 * TAPS * self.moved, TAPS * self.moved], 1)
        weight = self.convolution.weight
        return self.norm(deform_conv2d(x, offset, weight, mask=torch.sigmoid(mask), padding=1, groups=self.moved))

    @staticmethod
    def costs(width: int, moved: int) -> tuple[int, int]:
        """Parameters, and multiply-adds of a cell."""
        cell = TAPS * width * width + 3 * TAPS * moved * TAPS * width
        return cell + 2 * width + 3 * TAPS * moved, cell


class Fusion(nn.Module):
    """A level's own map with the next coarser one, upsampled where it matters, then with the level before it.

        y = S (w own + (1 − w) a ⊙ up),          w = σ(u · [mean(own), mean(up)] + b)
        z = S'(w' y + (1 − w') down),            w' = σ(u' · [mean(y), mean(down)] + b')
        a = n softmax(τ d^-½ V [own, up])        over all n cells; V 3 × 3, to one number each

    S, S' are `Smooth`. Without a finer level z is y; without a coarser one z is of own in place of y.

    Args:
        width: d. coarser, finer: whether there is such a neighbour. moved, groups: of `Smooth`.
    """

    def __init__(self, width: int, coarser: bool, finer: bool, moved: int, groups: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(1)) if coarser else None
        self.cells = nn.Conv2d(2 * width, 1, 3, padding=1) if coarser else None
        self.above = nn.Linear(2 * width, 1) if coarser else None
        self.first = Smooth(width, moved, groups) if coarser else None
        self.below = nn.Linear(2 * width, 1) if finer else None
        self.second = Smooth(width, moved, groups) if finer else None
        for each in (self.cells, self.above, self.below):
            for parameter in () if each is None else each.parameters():
                nn.init.zeros_(parameter)

    @staticmethod
    def blended(of: nn.Linear, one: Tensor, other: Tensor, scaled: Tensor) -> Tensor:
        """The first and the last by one share for each image, which the means of the first two give."""
        share = torch.sigmoid(of(torch.cat((one, other), 1).mean((2, 3))))[..., None, None]
        return share * one + (1 - share) * scaled

    def upsampled(self, own: Tensor, up: Tensor) -> Tensor:
        """The coarser map, its cells weighed."""
        assert self.cells is not None
        assert self.temperature is not None
        score = self.temperature * own.shape[1] ** -0.5 * self.cells(torch.cat((own, up), 1))
        return torch.softmax(score.flatten(2), -1).view_as(score) * (score.shape[2] * score.shape[3]) * up

    def forward(self, own: Tensor, up: Tensor | None, down: Tensor | None) -> Tensor:
        if self.above is not None and self.first is not None and up is not None:
            own = self.first(self.blended(self.above, own, up, self.upsampled(own, up)))
        if self.below is not None and self.second is not None and down is not None:
            own = self.second(self.blended(self.below, own, down, down))
        return own


@published(
    "revfp",
    family="featuremap",
    kind="neck",
    row=188,
    title="RCNet: Reverse Feature Pyramid and Cross-scale Shift Network for Object Detection",
    arxiv="2110.12130",
    year=2021,
    aliases=("rcnet", "reverse_feature_pyramid"),
    fidelity="authors' code",
    claim=Claim(
        "each level depends on its own map, the next coarser one and all finer ones",
        cells="necks.depends(neck_text=revfp)",
        holds="necks.reads(wanted='01, 012, 0123, 0123')",
    ),
)
class RevFP(Neck):
    """From the finest map up, each level is put together of its own map, the next coarser one and the level before.

        p_l = fuse(W_l c_l, up(W_{l+1} c_{l+1}), pool(p_{l−1}))

    W are 1 × 1 with a norm, up is bilinear, pool takes the largest of 2 × 2 cells; fuse is `Fusion`. Each extra level
    is the pool of W (1 × 1 with a norm) of the level below. The whole of RCNet is ``revfp(extra=2) | csn``.

    Parameters: Σ_l (c_l d + 2 d) + extra (d² + 2 d), for each of the L − 1 pairs of neighbours 22 d + 4 and those of
    two `Smooth`.

    Args:
        channels: c_l, fine to coarse. out: d. extra: levels beyond the last. moved: groups of channels of `Smooth`, 0
            for convolutions whose taps stay. groups: of every norm; 0 for batch norms.

    Raises:
        ValueError: a single level, or groups that do not divide d.

    Paper: Zong et al., arXiv 2110.12130; the equations are those of the authors' code.
    """

    def __init__(self, channels: Sequence[int], out: int, extra: int = 0, moved: int = 2, groups: int = 0) -> None:
        super().__init__(channels, out)
        levels = len(channels) + extra
        if extra < 0 or levels < 2:
            raise wrong("channels, extra", f"{tuple(channels)}, {extra}", "two levels at least")
        check_groups(out, moved=moved, groups=groups)
        self.extra, self.moved = extra, moved
        widths = [*channels, *(out,) * extra]
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, out, 1, bias=False), norm(out, groups)) for c in widths
        )
        self.fuse = nn.ModuleList(Fusion(out, level < levels - 1, level > 0, moved, groups) for level in range(levels))
        self.batch_norm = not groups

    @property
    def traits(self) -> NeckTraits:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Batch statistics where its norms are such."""
        return NeckTraits(batch_norm=self.batch_norm)

    def fused(self, maps: list[Tensor]) -> list[Tensor]:
        given = len(maps)
        own = [lateral(each) for lateral, each in zip(self.laterals, maps, strict=False)]
        for lateral in self.laterals[given:]:
            rows, columns = own[-1].shape[2:]
            even = F.pad(own[-1], (0, columns % 2, 0, rows % 2), "replicate")  # before the norm, which counts them
            own.append(F.max_pool2d(lateral(even), 2))
        found: list[Tensor] = []
        for level, fuse in enumerate(self.fuse):
            up = resize(own[level + 1], own[level], "bilinear") if level + 1 < len(own) else None
            down = fitted_maximum(found[-1], own[level]) if level else None
            found.append(fuse(own[level], up, down))
        return found

    @property
    def reads(self) -> list[tuple[int, ...]]:
        given = len(self.channels)
        return [tuple(range(min(level + 2, given))) for level in range(given + self.extra)]

    @property
    def parameter_count(self) -> int:
        d, pairs = self.out, len(self.channels) + self.extra - 1
        own = sum(c * d + 2 * d for c in self.channels) + self.extra * (d * d + 2 * d)
        return own + pairs * (22 * d + 4 + 2 * Smooth.costs(d, self.moved)[0])

    def flops(self, given: Sequence[Size], batch: int = 1) -> int:
        d, sizes = self.out, self.sizes(given)
        smooth, total = Smooth.costs(d, self.moved)[1], 0
        for level, (y, x) in enumerate(sizes):
            inside = self.channels[level] if level < len(given) else d
            below = sizes[level - 1] if level >= len(given) else (y, x)
            padded = (below[0] + below[0] % 2) * (below[1] + below[1] % 2) if level >= len(given) else y * x
            total += padded * inside * d
            if level < len(sizes) - 1:
                total += y * x * (18 * d + smooth) + 2 * d
            if level:
                total += y * x * smooth + 2 * d
        return 2 * batch * total

    @classmethod
    def examples(cls) -> list[Sample]:
        return [
            Sample("revfp", cls((3, 5), 4)),
            Sample("one level and one more", cls((3,), 4, extra=1, moved=1, groups=2)),
            Sample("plain convolutions", cls((3, 5, 7), 3, extra=1, moved=0)),
        ]


def fitted_maximum(x: Tensor, like: Tensor) -> Tensor:
    """The largest of 2 × 2 cells where ``x`` has more rows or columns than ``like``; other sizes are met bilinearly."""
    larger = any(own > other for own, other in zip(x.shape[2:], like.shape[2:], strict=True))
    return resize(F.max_pool2d(x, 2, ceil_mode=True) if larger else x, like, "bilinear")


class Context(nn.Module):
    """One vector for an image: ``W Σ_p a_p x_p + b`` under one attention, ``a = softmax_p(w · x_p + b')``.

    Shapes: ``x (b, d, p)`` -> ``(b, d)``. Parameters: d + 1 and d² + d.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score, self.mix = nn.Conv1d(width, 1, 1), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix((x * torch.softmax(self.score(x), -1)).sum(-1))


@published(
    "csn",
    family="featuremap",
    kind="neck",
    title="RCNet: Reverse Feature Pyramid and Cross-scale Shift Network for Object Detection",
    arxiv="2110.12130",
    year=2021,
    aliases=("cross_scale_shift",),
    fidelity="authors' code",
    claim=(
        Claim(
            "the shift has no parameters and is an index of channels and levels; a level two away is reached in one "
            "step, around the ends of the pyramid too",
            cells="necks.shift",
            holds="necks.is_an_index",
        ),
        Claim(
            "every level reads all, through the contexts",
            cells="necks.depends(neck_text=csn, same=True)",
            holds="necks.reads(wanted='0123, 0123, 0123, 0123')",
        ),
    ),
)
class CrossScaleShift(Neck):
    """Some channels of the levels around each are set beside its own, and two contexts of the whole pyramid are added.

        s_l = [m_{l+1}, m_{l−1}, m_{l+2}, m_{l−2}, m_l]     a sixteenth of the channels of each neighbour, in a ring
        n_l = m_l + V_l relu(norm(W_l s_l)) + b_l
        p_l = c_l + fit(n_l + space(mean_l n_l) + scale(mean_cells n_l))

    m are the maps at the size of the second level: the finest by its largest cells, others bilinearly; fit brings back
    to the level's size, coarser ones by the largest cells. space and scale are `Context` among the cells and among the
    levels. Parameters with L levels: L (2 d² + 4 d ⌊d / ratio⌋ + 3 d) + 2 (d² + 2 d + 1).

    Args:
        channels: of each level, all ``out``; two levels at least. out: d. ratio: one of as many channels is shifted
            from each neighbour. groups: of every norm; 0 for batch norms.

    Raises:
        ValueError: channels that differ, fewer than two levels, a ratio below four or above d, or groups that do not
            divide d.

    Paper: Zong et al., arXiv 2110.12130; the equations are those of the authors' code.
    """

    def __init__(self, channels: Sequence[int], out: int, ratio: int = 16, groups: int = 0) -> None:
        super().__init__(channels, out)
        if set(channels) != {out} or len(channels) < 2:
            raise wrong("channels", f"{tuple(channels)}", f"{out} of every level, as come out; two levels at least")
        if not 4 <= ratio <= out:
            raise wrong("ratio", str(ratio), f"four at least, at most the {out} channels")
        check_groups(out, groups=groups)
        self.part, self.batch_norm = out // ratio, not groups
        inside = out + 4 * self.part
        self.mixes = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inside, out, 1, bias=False), norm(out, groups), nn.ReLU(), nn.Conv2d(out, out, 1))
            for _ in channels
        )
        self.space, self.scale = Context(out), Context(out)

    @property
    def traits(self) -> NeckTraits:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Batch statistics where its norms are such."""
        return NeckTraits(batch_norm=self.batch_norm)

    def shifted(self, levels: Tensor) -> Tensor:
        """Maps ``(b, l, d, y, x)`` with channels of their neighbours in the ring before them, ``(b, l, d + 4 part, y,
        x)``."""
        parts = levels[:, :, : 4 * self.part].split(self.part, 2)
        moved = [part.roll(-step, 1) for part, step in zip(parts, (1, -1, 2, -2), strict=True)]
        return torch.cat((*moved, levels), 2)

    def fused(self, maps: list[Tensor]) -> list[Tensor]:
        size = (maps[1].shape[2], maps[1].shape[3])
        first = F.adaptive_max_pool2d(maps[0], size)
        levels = torch.stack([first, *(resize(each, size, "bilinear") for each in maps[1:])], 1)
        mixed = [mix(each) for mix, each in zip(self.mixes, self.shifted(levels).unbind(1), strict=True)]
        levels = levels + torch.stack(mixed, 1)
        space = self.space(levels.mean(1).flatten(2))
        scale = self.scale(levels.mean((3, 4)).mT)
        levels = levels + (space + scale)[:, None, :, None, None]
        first, *others = levels.unbind(1)
        coarser = [own + F.adaptive_max_pool2d(each, own.shape[2:]) for own, each in zip(maps[1:], others, strict=True)]
        return [maps[0] + resize(first, maps[0], "bilinear"), *coarser]

    @property
    def parameter_count(self) -> int:
        d, levels = self.out, len(self.channels)
        return levels * (2 * d * d + 4 * d * self.part + 3 * d) + 2 * (d * d + 2 * d + 1)

    def flops(self, given: Sequence[Size], batch: int = 1) -> int:
        d, levels, cells = self.out, len(given), given[1][0] * given[1][1]
        mixed = levels * cells * (2 * d * d + 4 * d * self.part)
        return 2 * batch * (mixed + (cells + levels) * d + 2 * d * d)

    @classmethod
    def examples(cls) -> list[Sample]:
        return [
            Sample("csn", cls((8, 8, 8), 8, ratio=4)),
            Sample("five levels", cls((9,) * 5, 9, ratio=9, groups=3)),
        ]
