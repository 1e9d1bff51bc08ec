"""The laws of gates: what factors of a feature map must satisfy, held against every word that their traits claim."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

from regard.core.kinds import Sample
from regard.featuremap.gate import AXES, Gate
from regard.laws.featuremap.subject import (
    BATCH,
    PRECISIONS,
    SIZES,
    MapSubject,
    counted_flops,
    finite,
    right_count,
    right_gradients,
    strided,
)
from regard.laws.finding import Broken, Unclaimed, same

__all__ = ["LAWS", "example", "subject"]


class GateSubject(MapSubject):
    """A gate with what it is called with."""

    module: Gate

    def inputs(self, size: tuple[int, int], *, batch: int = BATCH, seed: int = 0) -> tuple[Tensor, list[Tensor] | None]:
        """A map, and descriptors of earlier stages where the gate reads them."""
        x = self.draw(self.module.channels, size, batch=batch, seed=seed)
        past = [self.draw(c, (1, 1), batch=batch, seed=seed + 9 + s).flatten(1) for s, c in enumerate(self.module.past)]
        return x, past or None


def define(gate: Gate, x: Tensor, past: list[Tensor] | None) -> Tensor:
    """The output by the factors, each spread over the whole map, and the rule."""
    factors = [factor.expand_as(x) for factor in gate.factors(x, past).values()]
    if gate.rule == "mean":
        return reduce(torch.add, [x * factor for factor in factors]) / len(factors)
    product = reduce(torch.mul, factors, x)
    return x + product if gate.rule == "residual" else product


def definition(subject: GateSubject) -> str:
    """forward is x combined with the factors: float64 to 1e-9, float32 to 1e-4, half precision to 2e-2; training
    too."""
    worst = 0.0
    for size in SIZES:
        x, past = subject.inputs(size)
        for mode in (False, True):
            if mode and size[0] * size[1] < 5:
                continue  # batch statistics of one number
            gate = subject.module.train(mode)
            where = f"{size[0]} × {size[1]}, {'training' if mode else 'evaluation'}"
            worst = max(worst, same(gate(x, past), define(gate, x, past), 1e-9, where))
        subject.module.eval()
    for dtype, tolerance in PRECISIONS.items():
        gate = copy.deepcopy(subject.module).to(dtype)
        x, past = subject.inputs(SIZES[0])
        given, descriptors = x.to(dtype), None if past is None else [p.to(dtype) for p in past]
        got = gate(given, descriptors)
        if got.dtype != dtype:
            raise Broken(f"forward returned {got.dtype} for {dtype}")
        exact = None if descriptors is None else [p.double() for p in descriptors]
        same(got, define(gate.double(), given.double(), exact), tolerance, str(dtype))
    return f"{worst:.0e}"


def count(subject: GateSubject) -> str:
    """The formula's parameters are those that there are."""
    return right_count(subject)


def macs(subject: GateSubject) -> str:
    """The formula's FLOPs are those that PyTorch counts: two for each multiply-add of products and convolutions."""
    total = 0
    for size in SIZES[:3]:
        x, past = subject.inputs(size)
        counted = counted_flops(subject.module, (x, past), x.shape)
        total = max(total, counted)
    return f"{total:,} FLOPs"


def sizes(subject: GateSubject) -> str:
    """Any rows, columns and strides: the shape stays, values and gradients are finite, memory order changes nothing."""
    for size in (*SIZES, (31, 17)):
        x, past = subject.inputs(size)
        x.requires_grad_()
        out = subject.module(x, past)
        if out.shape != x.shape:
            raise Broken(f"{size[0]} × {size[1]}: shape {tuple(out.shape)} of {tuple(x.shape)}")
        out.sum().backward()
        finite({"the output": out, "the gradient": x.grad}, f"{size[0]} × {size[1]}")
        for name, stored in strided(x.detach()):
            same(subject.module(stored, past), out, 1e-9, f"{size[0]} × {size[1]}, {name}")
    flat = torch.ones_like(x).requires_grad_()
    subject.module(flat, past).sum().backward()
    finite({"the gradient": flat.grad}, "a map of ones")
    for bad in (x[0], torch.cat((x, x), 1)):
        try:
            subject.module(bad, past)
        except ValueError as error:
            if not str(error).startswith("x: "):
                raise Broken(f"a map of shape {tuple(bad.shape)}: {error}") from error
        else:
            raise Broken(f"a map of shape {tuple(bad.shape)} is taken")
    return "any size"


def singles(subject: GateSubject) -> str:
    """In evaluation a batch equals its maps alone, and a map alone can be a batch."""
    x, past = subject.inputs(SIZES[0], batch=3)
    out, worst = subject.module(x, past), 0.0
    for row in range(3):
        one = None if past is None else [p[row : row + 1] for p in past]
        worst = max(worst, same(out[row : row + 1], subject.module(x[row : row + 1], one), 1e-9, f"map {row} alone"))
    return f"{worst:.0e}"


def span(subject: GateSubject) -> str:
    """Each factor varies along the axes in its name alone, within the declared range, with the declared sums."""
    traits, low, high = subject.module.traits, float("inf"), float("-inf")
    for size in SIZES:
        for large in (1.0, 30.0):
            x, past = subject.inputs(size)
            for name, factor in subject.module.factors(large * x, past).items():
                axes = name.partition(".")[0]
                want = [n if axis in axes else 1 for axis, n in zip(AXES, x.shape[1:], strict=True)]
                if list(factor.shape[1:]) != want or factor.shape[0] != x.shape[0]:
                    raise Broken(f"factor {name}: shape {tuple(factor.shape)}, want {(BATCH, *want)}")
                low, high = min(low, factor.min().item()), max(high, factor.max().item())
                sums = factor.sum((2, 3))
                if traits.sums == "space" and not torch.allclose(sums, torch.ones_like(sums), atol=1e-9):
                    raise Broken(f"factor {name} sums to {sums.min().item():.6f} … {sums.max().item():.6f} over space")
    near = 1e-9 if x.device.type == "cpu" else 1e-7  # PyTorch's hard sigmoid multiplies by a float32 sixth on a GPU
    if low < traits.low - near or high > traits.high + near:
        raise Broken(f"factors from {low:.4g} to {high:.4g}, declared {traits.low:g} to {traits.high:g}")
    return f"{low:.3g} … {high:.3g}"


def symmetry(subject: GateSubject) -> str:
    """Moved contents move the output, permuted channels permute it: exactly where claimed, and not where it is not."""
    gate, said = subject.module, []
    x, past = subject.inputs((19, 17))
    inside = torch.zeros_like(x)
    inside[:, :, 8:11, 7:10] = x[:, :, 8:11, 7:10]
    moved = gate(inside.roll((2, -1), (2, 3)), past) - gate(inside, past).roll((2, -1), (2, 3))
    order = torch.randperm(gate.channels, generator=torch.Generator().manual_seed(0))
    permuted = gate(x[:, order], past) - gate(x, past)[:, order]
    for name, claimed, error in (("shifts", gate.traits.shifts, moved), ("permutes", gate.traits.permutes, permuted)):
        worst = error.abs().max().item()
        if claimed and worst > 1e-9:
            raise Broken(f"{name}: off by {worst:.1e}")
        if not claimed and worst < 1e-12:
            raise Broken(f"{name}: holds, declared that it does not")
        said += [name] if claimed else []
    if not said:
        raise Unclaimed("no symmetry")
    return ", ".join(said)


def start(subject: GateSubject) -> str:
    """Begun as the identity it gives x bit by bit, α has a gradient, and with α = 1 it is the gate."""
    started = subject.module.identity()
    x, past = subject.inputs(SIZES[0])
    out = started(x, past)
    if not torch.equal(out, x):
        raise Broken(f"the start is off by {(out - x).abs().max().item():.1e}")
    (gradient,) = torch.autograd.grad(out.square().sum(), started.alpha)
    if not gradient.abs() > 0:
        raise Broken("α has no gradient at the start")
    with torch.no_grad():
        started.alpha.fill_(1.0)
    same(started(x, past), subject.module(x, past), 1e-9, "α = 1")
    return "the identity, bit by bit"


def gradients(subject: GateSubject) -> str:
    """The gradients of x, of descriptors and of parameters are those of numerical differences; none of them is lost."""
    x, past = subject.inputs((3, 4), batch=1)
    return right_gradients(subject.module, [x, *(past or ())], lambda x, *rest: (x, list(rest) or None))


LAWS: dict[str, Callable[[GateSubject], str]] = {
    law.__name__: law for law in (definition, count, macs, sizes, singles, span, symmetry, start, gradients)
}
subject = GateSubject


def example(thing: Gate) -> Sample:
    """A gate as it is."""
    return Sample(type(thing).__name__, thing)
