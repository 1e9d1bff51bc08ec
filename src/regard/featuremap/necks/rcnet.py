"""RCNet: a pyramid from the finest map up that looks one map ahead, and channels shifted between levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.neck import Neck
from regard.featuremap.resize import Size, halved, resize


class Fusion(nn.Module):
    """``conv(own + a up ⊙ m + b down)``: the coarser map cell by cell, both neighbours by one number each.

        m = σ(V [own, up]) of each cell,   a, b = σ(w · mean(own + up)), σ(w' · mean(own + down))

    Args:
        width: d. coarser, finer: whether there is such a neighbour.
    """

    def __init__(self, width: int, coarser: bool, finer: bool) -> None:
        super().__init__()
        self.cells = nn.Conv2d(2 * width, 1, 3, padding=1) if coarser else None
        self.above = nn.Linear(width, 1) if coarser else None
        self.below = nn.Linear(width, 1) if finer else None
        self.smooth = nn.Conv2d(width, width, 3, padding=1)

    @staticmethod
    def weight(of: nn.Linear, both: Tensor) -> Tensor:
        """One number for each image."""
        return torch.sigmoid(of(both.mean((2, 3))))[..., None, None]

    def forward(self, own: Tensor, up: Tensor | None, down: Tensor | None) -> Tensor:
        total = own
        if self.cells is not None and self.above is not None and up is not None:
            cells = torch.sigmoid(self.cells(torch.cat([own, up], 1)))
            total = total + self.weight(self.above, own + up) * cells * up
        if self.below is not None and down is not None:
            total = total + self.weight(self.below, own + down) * down
        return self.smooth(total)


@published(
    "revfp",
    family="featuremap",
    kind="neck",
    row=188,
    title="RCNet: Reverse Feature Pyramid and Cross-scale Shift Network for Object Detection",
    arxiv="2110.12130",
    year=2021,
    aliases=("rcnet", "reverse_feature_pyramid"),
    fidelity="abstract only",
    missing="the two global contexts of the shift network, `csn`",
    claim=Claim(
        "each level depends on its own map, the next coarser one and all finer ones",
        cells="necks.depends(neck_text=revfp)",
        holds="necks.reads(wanted='01, 012, 0123, 0123')",
    ),
)
class RevFP(Neck):
    """From the finest map up, each level is put together of its own map, the next coarser one and the level before.

        p_l = fuse(W_l c_l, up(W_{l+1} c_{l+1}), D p_{l−1})

    W are 1 × 1, D convolutions 3 × 3 of stride two, up the nearest cell; fuse is `Fusion`. Parameters with L levels:
    Σ_l (c_l d + d + 9 d² + d) + (L − 1) (9 d² + d + 18 d + 1 + 2 (d + 1)).

    Args:
        channels: c_l, fine to coarse. out: d.

    Paper: Zong et al., arXiv 2110.12130; the details of `Fusion` are ours, the authors published no code.
    """

    def __init__(self, channels: Sequence[int], out: int) -> None:
        super().__init__(channels, out)
        levels = len(channels)
        self.laterals = nn.ModuleList(nn.Conv2d(c, out, 1) for c in channels)
        self.halve = nn.ModuleList(nn.Conv2d(out, out, 3, 2, 1) for _ in channels[1:])
        self.fuse = nn.ModuleList(Fusion(out, level < levels - 1, level > 0) for level in range(levels))

    def fused(self, maps: list[Tensor]) -> list[Tensor]:
        own, found = [lateral(each) for lateral, each in zip(self.laterals, maps, strict=True)], []
        for level, fuse in enumerate(self.fuse):
            up = resize(own[level + 1], own[level]) if level + 1 < len(own) else None
            down = resize(self.halve[level - 1](found[-1]), own[level]) if level else None
            found.append(fuse(own[level], up, down))
        return found

    @property
    def reads(self) -> list[tuple[int, ...]]:
        levels = len(self.channels)
        return [tuple(range(min(level + 2, levels))) for level in range(levels)]

    @property
    def parameter_count(self) -> int:
        d, between = self.out, len(self.channels) - 1
        own = sum(c * d + d + 9 * d * d + d for c in self.channels)
        return own + between * (9 * d * d + d + 18 * d + 1 + 2 * (d + 1))

    def flops(self, given: Sequence[Size], batch: int = 1) -> int:
        d, total = self.out, 0
        for level, ((y, x), c) in enumerate(zip(given, self.channels, strict=True)):
            cells = c * d + 9 * d * d + (18 * d if level < len(given) - 1 else 0)
            total += 2 * batch * y * x * cells
            if level < len(given) - 1:
                half = halved((y, x))
                total += 18 * batch * d * d * half[0] * half[1] + 4 * batch * d
        return total

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("revfp", cls((3, 5, 7), 4)), Sample("one level", cls((3,), 4))]


@published(
    "csn",
    family="featuremap",
    kind="neck",
    title="RCNet: Reverse Feature Pyramid and Cross-scale Shift Network for Object Detection",
    arxiv="2110.12130",
    year=2021,
    aliases=("cross_scale_shift",),
    fidelity="abstract only",
    missing="the two global contexts",
    claim=(
        Claim(
            "the shift has no parameters and is an index of channels and levels",
            cells="necks.shift",
            holds="necks.is_an_index",
        ),
        Claim(
            "a level two away is reached in one step",
            cells="necks.depends(neck_text='csn(reach=2)', same=True)",
            holds="necks.reads(wanted='012, 0123, 0123, 123')",
        ),
    ),
)
class CrossScaleShift(Neck):
    """Channels of other levels take the place of some of a level's own: information moves, nothing is computed.

        p_l = [c_{l−r} … c_{l−1}, c_{l+1} … c_{l+r}, c_l], each of a part of the channels in its place

    Levels beyond the last are the last. Other sizes are brought to the level's own by the nearest cell.

    Args:
        channels: of each level, all ``out``. out: d. reach: r. share: part of the channels that come from each level.

    Raises:
        ValueError: channels that differ, a reach below one, or parts that are more than the channels or none.

    Paper: Zong et al., arXiv 2110.12130.
    """

    def __init__(self, channels: Sequence[int], out: int, reach: int = 1, share: float = 0.125) -> None:
        super().__init__(channels, out)
        if set(channels) != {out}:
            raise wrong("channels", f"{tuple(channels)}", f"{out} of every level, as come out")
        self.reach, self.part = reach, int(share * out)
        if reach < 1 or self.part < 1 or 2 * reach * self.part > out:
            raise wrong("reach, share", f"{reach}, {share}", f"1 or more, parts that fit into {out} channels")

    def sources(self, level: int) -> list[tuple[int, slice]]:
        """``(level, channels)`` that a level is put together of, in order."""
        last, found = len(self.channels) - 1, []
        for place, shift in enumerate([*range(-self.reach, 0), *range(1, self.reach + 1)]):
            part = slice(place * self.part, (place + 1) * self.part)
            found.append((min(max(level + shift, 0), last), part))
        return [*found, (level, slice(2 * self.reach * self.part, self.out))]

    def fused(self, maps: list[Tensor]) -> list[Tensor]:
        return [
            torch.cat([resize(maps[source][:, part], own) for source, part in self.sources(level)], 1)
            for level, own in enumerate(maps)
        ]

    @property
    def reads(self) -> list[tuple[int, ...]]:
        found = []
        for level in range(len(self.channels)):
            used = [source for source, part in self.sources(level) if part.stop > part.start]
            found.append(tuple(sorted(set(used))))
        return found

    @property
    def parameter_count(self) -> int:
        return 0

    def flops(self, given: Sequence[Size], batch: int = 1) -> int:
        return 0

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("csn", cls((8, 8, 8), 8)), Sample("two away", cls((9,) * 4, 9, 2, 0.12))]
