"""The laws of mixtures: what weights and branches must satisfy, held against every word that their traits claim."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from regard.core.kinds import Sample
from regard.featuremap.mixture import Mixture
from regard.laws.featuremap.subject import (
    PRECISIONS,
    SIZES,
    MapSubject,
    counted_flops,
    finite,
    right_count,
    right_gradients,
    strided,
)
from regard.laws.finding import Broken, same

__all__ = ["LAWS", "example", "subject"]


class MixtureSubject(MapSubject):
    """A mixture with what it is called with."""

    module: Mixture

    def map(self, size: tuple[int, int], *, batch: int = 2, seed: int = 0) -> Tensor:
        """A map of its channels."""
        return self.draw(self.module.channels, size, batch=batch, seed=seed)


def define(mixture: Mixture, x: Tensor) -> Tensor:
    """The output by the hooks alone: branches and weights spread and summed."""
    x = mixture.before(x)
    branches = mixture.branches(x)
    stacked = torch.stack(branches, 1)
    return mixture.after((mixture.weights(x, branches).expand_as(stacked) * stacked).sum(1))


def definition(subject: MixtureSubject) -> str:
    """forward is the weighed sum of the branches: float64 to 1e-9, float32 to 1e-4, half precision to 2e-2."""
    worst = 0.0
    for size in SIZES:
        x = subject.map(size)
        worst = max(worst, same(subject.module(x), define(subject.module, x), 1e-9, f"{size[0]} × {size[1]}"))
    for dtype, tolerance in PRECISIONS.items():
        mixture, given = copy.deepcopy(subject.module).to(dtype), subject.map(SIZES[0]).to(dtype)
        got = mixture(given)
        if got.dtype != dtype:
            raise Broken(f"forward returned {got.dtype} for {dtype}")
        same(got, define(mixture.double(), given.double()), tolerance, str(dtype))
    return f"{worst:.0e}"


def count(subject: MixtureSubject) -> str:
    """The formula's parameters are those that there are."""
    return right_count(subject)


def macs(subject: MixtureSubject) -> str:
    """The formula's FLOPs are those that PyTorch counts: two for each multiply-add of products and convolutions."""
    maps = [subject.map(size) for size in SIZES[:3]]
    return f"{max(counted_flops(subject.module, (x,), x.shape) for x in maps):,} FLOPs"


def sizes(subject: MixtureSubject) -> str:
    """Any rows, columns and strides: values and gradients are finite, memory order changes nothing; bad maps are
    named."""
    for size in (*SIZES, (31, 17)):
        x = subject.map(size).requires_grad_()
        out, where = subject.module(x), f"{size[0]} × {size[1]}"
        out.sum().backward()
        finite({"the output": out, "the gradient": x.grad}, where)
        for name, stored in strided(x.detach()):
            same(subject.module(stored), out, 1e-9, f"{where}, {name}")
    for bad in (x[0], torch.cat((x, x), 1)):
        try:
            subject.module(bad)
        except ValueError as error:
            if not str(error).startswith("x: "):
                raise Broken(f"a map of shape {tuple(bad.shape)}: {error}") from error
        else:
            raise Broken(f"a map of shape {tuple(bad.shape)} is taken")
    return "any size"


def singles(subject: MixtureSubject) -> str:
    """In evaluation a batch equals its maps alone."""
    x = subject.map(SIZES[0], batch=3)
    out = subject.module(x)
    return f"{max(same(out[r : r + 1], subject.module(x[r : r + 1]), 1e-9, f'map {r} alone') for r in range(3)):.0e}"


def weights(subject: MixtureSubject) -> str:
    """The weights fit the branches, stay in the declared range, sum to one where declared, and depend on the map so."""
    traits, low, high, seen = subject.module.traits, float("inf"), float("-inf"), []
    for large in (1.0, 30.0):
        for seed in (0, 1):
            x = subject.module.before(large * subject.map(SIZES[0], seed=seed))
            branches = subject.module.branches(x)
            w = subject.module.weights(x, branches)
            want = (x.shape[0], len(branches), *branches[0].shape[1:])
            fits = all(n in (1, full) for n, full in zip(w.shape[2:], want[2:], strict=True))
            if w.shape[:2] != want[:2] or not fits or any(b.shape != branches[0].shape for b in branches):
                raise Broken(f"weights of shape {tuple(w.shape)}, branches {[tuple(b.shape) for b in branches]}")
            low, high, total = min(low, w.min().item()), max(high, w.max().item()), w.sum(1)
            if traits.sums and not torch.allclose(total, torch.ones_like(total), atol=1e-9):
                raise Broken(f"weights sum to {total.min().item():.6f} … {total.max().item():.6f}, declared one")
            seen.append(w)
    if low < traits.low - 1e-9 or high > traits.high + 1e-9:
        raise Broken(f"weights from {low:.4g} to {high:.4g}, declared {traits.low:g} to {traits.high:g}")
    if torch.allclose(seen[0], seen[1], atol=1e-12) == traits.content:
        raise Broken(f"weights are {'the same' if traits.content else 'others'} for another map, against the traits")
    return f"{low:.3g} … {high:.3g}"


def gradients(subject: MixtureSubject) -> str:
    """The gradients of x and of parameters are those of numerical differences; none of them is lost."""
    return right_gradients(subject.module, [subject.map((3, 4), batch=1)], lambda x: (x,))


LAWS: dict[str, Callable[[MixtureSubject], str]] = {
    law.__name__: law for law in (definition, count, macs, sizes, singles, weights, gradients)
}
subject = MixtureSubject


def example(thing: Mixture) -> Sample:
    """A mixture as it is."""
    return Sample(type(thing).__name__, thing)
