"""The laws of necks: what a pyramid of maps must satisfy, held against every word that their traits claim."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from regard.core.kinds import Sample
from regard.featuremap.neck import Neck
from regard.featuremap.resize import Size, halved
from regard.laws.featuremap.subject import (
    BATCH,
    PRECISIONS,
    MapSubject,
    finite,
    right_count,
    right_gradients,
    strided,
)
from regard.laws.finding import Broken, Unclaimed, same

__all__ = ["LAWS", "example", "subject"]

FINEST = ((17, 11), (16, 24), (5, 1), (1, 1))
"""Rows and columns of the finest map: odd, even, one column, one cell."""


class NeckSubject(MapSubject):
    """A neck with what it is called with."""

    module: Neck

    def levels(self, finest: Size) -> list[Size]:
        """Sizes of a pyramid whose every map is half of the one before it, rounded up."""
        found = [finest]
        for _ in self.module.channels[1:]:
            found.append(halved(found[-1]))
        return found

    def maps(self, finest: Size, *, batch: int = BATCH, seed: int = 0) -> list[Tensor]:
        """A pyramid of its channels."""
        pairs = zip(self.module.channels, self.levels(finest), strict=True)
        return [self.draw(c, size, batch=batch, seed=seed + 31 * n) for n, (c, size) in enumerate(pairs)]


def each_same(got: Sequence[Tensor], want: Sequence[Tensor], tolerance: float, where: str) -> float:
    """The worst relative error of the levels; Broken if one is beyond the tolerance."""
    if len(got) != len(want):
        raise Broken(f"{where}: {len(got)} maps, want {len(want)}")
    pairs = enumerate(zip(got, want, strict=True))
    return max(same(mine, theirs, tolerance, f"{where}, level {level}") for level, (mine, theirs) in pairs)


def levels(subject: NeckSubject) -> str:
    """Every map has the channels that are told, the size of the level where it is told to stand, and the dtype that
    came in."""
    neck = subject.module
    widths, stands = neck.widths, neck.stands
    if not len(widths) == len(stands) == len(neck.reads):
        raise Broken(f"says {widths} channels, levels {stands} of {len(neck.reads)} maps")
    for finest in FINEST:
        found, halves = [tuple(each.shape) for each in neck(subject.maps(finest))], subject.levels(finest)
        while len(halves) <= max(stands):
            halves.append(halved(halves[-1]))
        want = [(BATCH, width, *halves[level]) for width, level in zip(widths, stands, strict=True)]
        if found != want:
            raise Broken(f"finest {finest}: shapes {found}, want {want}")
        if neck.sizes(subject.levels(finest)) != [each[2:] for each in want]:
            raise Broken(f"finest {finest}: says sizes {neck.sizes(subject.levels(finest))}")
    given = subject.maps(FINEST[0])
    for dtype, tolerance in PRECISIONS.items():
        cast = copy.deepcopy(neck).to(dtype)
        got = cast([each.to(dtype) for each in given])
        if any(each.dtype != dtype for each in got):
            raise Broken(f"maps of {[each.dtype for each in got]} for {dtype}")
        exact = cast.double()([each.to(dtype).double() for each in given])
        each_same(got, exact, 2 * tolerance, str(dtype))
    return ", ".join(f"{width} channels at level {level}" for width, level in zip(widths, stands, strict=True))


def reads(subject: NeckSubject) -> str:
    """Each level depends on exactly the given maps that are declared."""
    given = [each.requires_grad_() for each in subject.maps(FINEST[0])]
    for level, (out, declared) in enumerate(zip(subject.module(given), subject.module.reads, strict=True)):
        weighting = torch.sin(torch.arange(out.numel(), device=out.device, dtype=out.dtype)).view_as(out)
        found = torch.autograd.grad((out * weighting).sum(), given, retain_graph=True, allow_unused=True)
        seen = tuple(n for n, gradient in enumerate(found) if gradient is not None and gradient.abs().max() > 0)
        if seen != declared:
            raise Broken(f"level {level} depends on the maps {seen}, declared {declared}")
    return ", ".join(str(list(each)) for each in subject.module.reads)


def count(subject: NeckSubject) -> str:
    """The formula's parameters are those that there are."""
    return right_count(subject)


def macs(subject: NeckSubject) -> str:
    """The formula's FLOPs are those that PyTorch counts: two for each multiply-add of products and convolutions."""
    most = 0
    for finest in FINEST[:2]:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            subject.module(subject.maps(finest))
        counted, formula = counter.get_total_flops(), subject.module.flops(subject.levels(finest), BATCH)
        if counted != formula:
            raise Broken(f"finest {finest}: formula {formula:,} FLOPs, counted {counted:,}")
        most = max(most, counted)
    return f"{most:,} FLOPs"


def sizes(subject: NeckSubject) -> str:
    """Odd sizes, one cell and any strides: finite values and gradients, memory order changes nothing, bad maps
    named."""
    for finest in FINEST:
        given = [each.requires_grad_() for each in subject.maps(finest)]
        out = subject.module(given)
        torch.cat([each.flatten() for each in out]).square().sum().backward()
        finite({f"map {n}": each for n, each in enumerate(out)}, f"finest {finest}")
        finite({f"gradient {n}": each.grad for n, each in enumerate(given)}, f"finest {finest}")
        for stored in zip(*(strided(each.detach()) for each in given), strict=True):
            each_same(subject.module([x for _, x in stored]), out, 1e-9, f"finest {finest}, {stored[0][0]}")
    maps = subject.maps(FINEST[0])
    for bad in (maps[:-1], [*maps, maps[-1]], [torch.cat((each, each), 1) for each in maps]):
        try:
            subject.module(bad)
        except ValueError as error:
            if not str(error).startswith("maps: "):
                raise Broken(f"{len(bad)} maps of wrong shapes: {error}") from error
        else:
            raise Broken(f"maps of shapes {[tuple(each.shape) for each in bad]} are taken")
    return "any size"


def singles(subject: NeckSubject) -> str:
    """In evaluation a batch equals its pyramids alone."""
    maps, worst = subject.maps(FINEST[0], batch=3), 0.0
    out = subject.module(maps)
    for row in range(3):
        alone = subject.module([each[row : row + 1] for each in maps])
        worst = max(worst, each_same(alone, [each[row : row + 1] for each in out], 1e-9, f"pyramid {row} alone"))
    return f"{worst:.0e}"


def start(subject: NeckSubject) -> str:
    """An untrained neck that claims to begin as the identity gives its maps as they came, bit by bit."""
    if subject.module.traits.start is None:
        raise Unclaimed("no identity at the start")
    fresh, maps = copy.deepcopy(subject.example.thing).double().to(subject.device).eval(), subject.maps(FINEST[0])
    for level, (got, want) in enumerate(zip(fresh(maps), maps, strict=True)):
        if not torch.equal(got, want):
            raise Broken(f"level {level} is off by {(got - want).abs().max().item():.1e} at the start")
    if all(torch.equal(got, want) for got, want in zip(subject.module(maps), maps, strict=True)):
        raise Broken("it is the identity whatever it has learned")
    return "the identity, bit by bit"


def gradients(subject: NeckSubject) -> str:
    """The gradients of maps and of parameters are those of numerical differences; none of them is lost."""
    return right_gradients(subject.module, subject.maps((4, 3), batch=1), lambda *maps: (list(maps),))


LAWS: dict[str, Callable[[NeckSubject], str]] = {
    law.__name__: law for law in (levels, reads, count, macs, sizes, singles, start, gradients)
}
subject = NeckSubject


def example(thing: Neck) -> Sample:
    """A neck as it is."""
    return Sample(type(thing).__name__, thing)
