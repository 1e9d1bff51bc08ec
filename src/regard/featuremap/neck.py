"""The contract of necks: a pyramid of feature maps becomes another, fine to coarse."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.resize import Size, halved


@dataclass(frozen=True)
class NeckTraits:
    """What a neck claims; the laws hold it to every word.

    Args:
        batch_norm: batch statistics are used in training. start: "identity" if an untrained one gives its maps, bit by
            bit, as they came in.
    """

    batch_norm: bool = False
    start: str | None = None


class Neck(nn.Module):
    """The base of every neck: maps ``[(b, c_l, y_l, x_l)]``, fine to coarse -> ``[(b, d_k, y_k, x_k)]``.

    Hooks: `fused` makes the maps, `reads` says which of the given ones each of them depends on, `stands` at which level
    each of them is, `widths` how many channels it has. Level l has twice the stride of the one before it; sizes are
    halves rounded up, or as they come. Necks chain: ``fpn | dyhead``.

    Args:
        channels: c_l of each level, one at least. out: d_k, channels of every map that comes out.

    Raises:
        ValueError: no level, a size below one; in a call, another number of maps or other channels.
    """

    traits: NeckTraits = NeckTraits()

    def __init__(self, channels: Sequence[int], out: int) -> None:
        super().__init__()
        if not isinstance(out, int):
            raise wrong("out", repr(out), "one number: every map of this neck has as many channels")
        if not channels or min(channels) < 1 or out < 1:
            raise wrong("channels, out", f"{tuple(channels)}, {out}", "at least one level, each of one channel or more")
        self.channels, self.out = tuple(channels), out

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        came = [tuple(each.shape) for each in maps]
        if len(maps) != len(self.channels) or any(
            len(shape) != 4 or shape[1] != c for shape, c in zip(came, self.channels, strict=True)
        ):
            raise wrong("maps", f"shapes {came}", f"maps (batch, c, rows, columns) of c = {self.channels}")
        return self.fused(list(maps))

    def fused(self, maps: list[Tensor]) -> list[Tensor]:
        """The maps that come out."""
        raise NotImplementedError

    @property
    def reads(self) -> list[tuple[int, ...]]:
        """For each map that comes out, the numbers of the given ones that it depends on."""
        return [tuple(range(len(self.channels)))] * len(self.channels)

    @property
    def stands(self) -> list[int]:
        """For each map that comes out, the level at whose size it is; from the given ones on, halves of the last."""
        return list(range(len(self.reads)))

    @property
    def widths(self) -> list[int]:
        """Channels of each map that comes out."""
        return [self.out] * len(self.reads)

    def sizes(self, given: Sequence[Size]) -> list[Size]:
        """Rows and columns of the maps that come out of maps of the ``given`` ones: those of the levels where they
        stand."""
        levels = list(given)
        while len(levels) <= max(self.stands):
            levels.append(halved(levels[-1]))
        return [levels[level] for level in self.stands]

    @property
    def parameter_count(self) -> int:
        """How many parameters it has, by formula."""
        raise NotImplementedError

    def flops(self, given: Sequence[Size], batch: int = 1) -> int:
        """FLOPs of convolutions and products on maps of these rows and columns: two a multiply-add."""
        raise NotImplementedError

    @classmethod
    def examples(cls) -> list[Sample]:
        """Small necks that cover the options."""
        return [Sample(cls.__name__, cls((3, 5, 7), 4))]


class NeckChain(Neck):
    """Necks one after the other; the first is given the maps.

    Args:
        necks: each of which takes what the one before it gives.
    """

    def __init__(self, *necks: Neck) -> None:
        if not necks:
            raise wrong("necks", "none", "one at least")
        super().__init__(necks[0].channels, necks[-1].out)
        for first, second in itertools.pairwise(necks):
            if second.channels != tuple(first.widths):
                given = f"one that gives {tuple(first.widths)}"
                raise wrong("necks", f"one for channels {second.channels} after {given}", "one that takes them")
        self.necks = nn.ModuleList(necks)

    @property
    def members(self) -> list[Neck]:
        """The necks, in turn."""
        return [neck for neck in self.necks if isinstance(neck, Neck)]

    @property
    def traits(self) -> NeckTraits:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What holds of all."""
        starts = {neck.traits.start for neck in self.members}
        norms = any(neck.traits.batch_norm for neck in self.members)
        return NeckTraits(norms, "identity" if starts == {"identity"} else None)

    def fused(self, maps: list[Tensor]) -> list[Tensor]:
        for neck in self.members:
            maps = neck(maps)
        return maps

    @property
    def reads(self) -> list[tuple[int, ...]]:
        found = self.members[0].reads
        for neck in self.members[1:]:
            found = [tuple(sorted({i for middle in each for i in found[middle]})) for each in neck.reads]
        return found

    @property
    def stands(self) -> list[int]:
        found = self.members[0].stands
        for neck in self.members[1:]:
            beyond = range(found[-1] + 1, found[-1] + 2 + max(neck.stands))
            found = [[*found, *beyond][level] for level in neck.stands]
        return found

    @property
    def widths(self) -> list[int]:
        return self.members[-1].widths

    @property
    def parameter_count(self) -> int:
        return sum(neck.parameter_count for neck in self.members)

    def flops(self, given: Sequence[Size], batch: int = 1) -> int:
        total = 0
        for neck in self.members:
            total, given = total + neck.flops(given, batch), neck.sizes(given)
        return total
