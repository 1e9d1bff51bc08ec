"""Laws about the numbers of A: definition, linear, rows, gradients, cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from regard.core.cost import Shape
from regard.core.layout import Layout
from regard.core.mechanism import GROWTHS, Mechanism
from regard.laws.finding import slopes_hold
from regard.laws.mechanism.subject import (
    BATCH,
    SHORT,
    Broken,
    Inputs,
    Subject,
    Unclaimed,
    batch_of,
    real_rows,
    same,
)

PRECISIONS = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-2}
HALF = (torch.bfloat16, torch.float16)
DRAWN = (torch.float64, torch.float32), HALF
"""Those that share inputs, which each of them holds exactly."""
LARGE = 128.0  # times what is drawn, products of five no longer fit into float16


def definition(subject: Subject) -> str:
    """forward == weights @ v, or define where it is not linear in v: float64 to 1e-9, float32 to 1e-4, half
    precision to 2e-2; and in half precision weights and rows, or define, are those of float64, finite if q and k are
    large."""
    worst = {dtype: 0.0 for dtypes in DRAWN for dtype in dtypes}
    for dtypes, longest in zip(DRAWN, (subject.long, subject.middle), strict=False):  # definitions cost the most
        for n, m in ((SHORT, SHORT), (SHORT, 17), (longest, longest)):
            batch = BATCH if dtypes is HALF else batch_of(n, m)  # sums in half precision are told by their worst rows
            for name, layout in subject.layouts(n, m, batch):
                inputs, exact = exactly(subject, dtypes, n, m, batch)
                want = subject.define(inputs, layout, exact)
                for dtype in dtypes:
                    if want.abs().max() > torch.finfo(dtype).max / 2:
                        continue
                    got = subject.call(inputs.map(lambda _, x, dtype=dtype: x.to(dtype)), layout, exact.to(dtype))
                    if got.dtype != dtype:
                        raise Broken(f"forward returned {got.dtype} for {dtype}")
                    rows = real_rows(layout, n, m, inputs.q.shape[0])
                    where = f"{name}, n={n}, m={m}, {brief(dtype)}"
                    worst[dtype] = max(worst[dtype], same(got, want, PRECISIONS[dtype], where, rows))
    for name, layout in subject.layouts(SHORT, SHORT):
        halved(subject, layout, name)
    return ", ".join(f"{brief(dtype)} {error:.0e}" for dtype, error in worst.items())


def exactly(
    subject: Subject, dtypes: Sequence[torch.dtype], n: int, m: int, batch: int = BATCH
) -> tuple[Inputs, Mechanism]:
    """Inputs and the mechanism in float64, with numbers that each of the dtypes holds."""

    def rounded(x):
        for dtype in dtypes:
            x = x.to(dtype)
        return x.double()

    return subject.draw(n, m, batch=batch).map(lambda _, tensor: rounded(tensor)), rounded(subject.cast(torch.float64))


def brief(dtype: torch.dtype) -> str:
    """Its name alone."""
    return str(dtype).removeprefix("torch.")


def halved(subject: Subject, layout: Layout, name: str) -> None:
    """Broken unless ``weights`` and ``rows``, or ``define``, of half precision are those of float64; of large q and k,
    finite."""
    drawn, exact = exactly(subject, HALF, SHORT, SHORT)
    real, some = real_rows(layout, SHORT, SHORT, drawn.q.shape[0]), slice(2, 7)
    for size in (1.0, LARGE):
        inputs = drawn.map(lambda name, x, size=size: x * size if name in ("q", "k") else x)
        want = shown(exact.double(), inputs, layout)
        if want[real[:, None].expand(want.shape[:3])].abs().max() > torch.finfo(torch.float16).max / 2:
            continue
        for dtype in HALF:
            given, mechanism = inputs.map(lambda _, x, dtype=dtype: x.to(dtype)), exact.to(dtype)
            name = "weights" if mechanism.traits.linear else "define"
            found = {name: (shown(mechanism, given, layout), slice(None))}
            if mechanism.traits.linear and (layout.causal or layout.segments is None):
                found["rows"] = mechanism.rows(given.q, given.k, layout, some, **given.signals), some
            for what, (got, which) in found.items():
                if got.dtype != dtype:
                    raise Broken(f"{what} returned {got.dtype} for {dtype}")
                where, tolerance = f"{what}, {name}, {brief(dtype)}, {size:g}", PRECISIONS[dtype]
                same(got, want[:, :, which], tolerance if size == 1 else torch.inf, where, real[:, which])


def shown(mechanism: Mechanism, inputs: Inputs, layout: Layout) -> Tensor:
    """What defines it: A, or the output where that is not linear in v."""
    if mechanism.traits.linear:
        return mechanism.weights(inputs.q, inputs.k, layout, **inputs.signals)
    return mechanism.define(inputs.q, inputs.k, inputs.v, layout, **inputs.signals)


def linear(subject: Subject) -> str:
    """A(q, k) (a v + b w) == a A v + b A w."""
    if not subject.traits.linear:
        raise Unclaimed("not one A for all of v")
    worst, mechanism = 0.0, subject.cast(torch.float64)
    m = 17 if any(subject.fits(SHORT, 17, causal) for causal in subject.directions()) else SHORT
    for name, layout in subject.layouts(SHORT, m):
        one, two = subject.draw(SHORT, m), subject.draw(SHORT, m, seed=1)
        mixed = Inputs(one.q, one.k, 2 * one.v - 3 * two.v, one.signals)
        other = Inputs(one.q, one.k, two.v, one.signals)
        want = 2 * subject.call(one, layout, mechanism) - 3 * subject.call(other, layout, mechanism)
        rows = real_rows(layout, SHORT, m, want.shape[0])
        worst = max(worst, same(subject.call(mixed, layout, mechanism), want, 1e-9, name, rows))
    return f"{worst:.0e}"


def rows(subject: Subject) -> str:
    """Row sums and signs as declared; A reads q and k, or does not; it vanishes outside its support; ``Mechanism.rows``
    are rows of ``weights``. Without linearity in v, ``influence`` is the norm of the definition's Jacobian."""
    if not subject.traits.linear:
        return jacobian(subject)
    claims, mechanism = subject.traits, subject.cast(torch.float64)
    layout = next(layout for _, layout in subject.layouts(SHORT, SHORT))
    drawn = [subject.draw(SHORT, SHORT, seed=seed) for seed in (0, 1)]
    same_a = torch.equal(*(mechanism.weights(x.q, x.k, layout, **drawn[0].signals) for x in drawn))
    if same_a == claims.content:
        raise Broken("A is the same for other q and k, declared content" if same_a else "A reads q or k")
    for n, m in ((SHORT, SHORT), (SHORT, 17), (17, SHORT)):
        for name, layout in subject.layouts(n, m):
            inputs = subject.draw(n, m)
            a = mechanism.weights(inputs.q, inputs.k, layout, **inputs.signals)
            support = mechanism.support(n, m, layout, a.device).expand_as(a)
            outside = a.masked_fill(support, 0).abs().max().item()
            if outside > 0:
                raise Broken(f"{name}, n={n}, m={m}: {outside:.1e} outside the support")
            sums, seen = a.sum(-1), support.any(-1)
            if claims.sign == "nonnegative" and a.min() < 0:
                raise Broken(f"{name}: an entry of {a.min().item():.1e}, declared non-negative")
            if claims.rows == "one" and (sums - seen.to(sums.dtype)).abs().max() > 1e-9:
                raise Broken(
                    f"{name}: a row sums to {sums[seen].min().item():.6f} … {sums.max().item():.6f}, declared one"
                )
            if claims.rows == "at most one" and sums.max() > 1 + 1e-9:
                raise Broken(f"{name}: a row sums to {sums.max().item():.6f}, declared at most one")
            if layout.causal or layout.segments is None:
                part = mechanism.rows(inputs.q, inputs.k, layout, slice(2, 7), **inputs.signals)
                same(part, a[:, :, 2:7], 1e-9, f"rows 2:7, {name}, n={n}, m={m}")
    return ", ".join(filter(None, [claims.sign, claims.rows and f"rows sum to {claims.rows}"])) or "support only"


def jacobian(subject: Subject) -> str:
    """The worst difference of ``influence`` from the Jacobian of ``define``; Broken if it is not zero outside the
    support."""
    worst, mechanism, some = 0.0, subject.cast(torch.float64), slice(5, 6)
    heads, e = subject.example.heads, subject.example.value_dim
    for name, layout in subject.layouts(SHORT, SHORT, batch=1):
        inputs = subject.draw(SHORT, batch=1, kv_heads=heads)

        def rows_of(v: Tensor, inputs: Inputs = inputs, layout: Layout = layout) -> Tensor:
            return mechanism.define(inputs.q, inputs.k, v, layout, **inputs.signals)[:, :, some]

        slopes: Any = torch.autograd.functional.jacobian(rows_of, inputs.v, vectorize=False)
        slopes = slopes[0, :, :, :, 0].diagonal(dim1=0, dim2=3)  # (rows, e, m, e, heads), each head by its own values
        want = (slopes.square().sum((1, 3)) / e).sqrt().permute(2, 0, 1)[None]
        got = mechanism.influence(inputs.q, inputs.k, inputs.v, layout, some, **inputs.signals)
        seen = mechanism.support(SHORT, SHORT, layout, got.device)[:, :, some].expand_as(got)
        if got.masked_fill(seen, 0).any():
            raise Broken(f"{name}: influence outside the support")
        real = real_rows(layout, SHORT, SHORT, 1)[:, some]
        worst = max(worst, same(got, want, 1e-9, f"influence, {name}", real))
    return f"norms of the Jacobian to {worst:.0e}"


def gradients(subject: Subject) -> str:
    """Gradients of forward equal those of the definition, for inputs, signals and parameters; gradcheck in float64."""
    worst, mechanism = 0.0, subject.cast(torch.float64)
    for n, m in ((SHORT, SHORT), (SHORT, 17), (subject.middle, subject.middle)):
        for name, layout in subject.layouts(n, m):
            inputs = subject.draw(n, m)
            rows = real_rows(layout, n, m, inputs.q.shape[0]).to(subject.device)
            wanted = gradients_of(subject.define, subject, inputs, layout, mechanism, rows)
            found = gradients_of(subject.call, subject, inputs, layout, mechanism, rows)
            for label, want in wanted.items():
                worst = max(worst, same(found[label], want, 1e-8, f"d {label}, {name}, n={n}, m={m}"))
    stepped(subject, mechanism)
    return f"{worst:.0e}"


def stepped(subject: Subject, mechanism: Mechanism) -> None:
    """Broken unless ``gradcheck`` holds along drawn directions, and each derivative of each output number by each input
    number is the difference of two small steps, with the steps and tolerances of ``gradcheck``.

    Sequences of a batch are independent, so all steps are one call, and all outputs one backward pass.
    """
    inputs, layout = subject.draw(5, batch=1), Layout(causal=subject.directions()[0])
    hard = {name for name, spec in mechanism.signals.items() if spec.hard}
    leaves = tuple(tensor.requires_grad_(name not in hard) for name, tensor in inputs.tensors.items())
    names = list(inputs.tensors)

    def function(*tensors: Tensor) -> Tensor:
        q, k, v, *signals = tensors
        return mechanism(q, k, v, layout, **dict(zip(names[3:], signals, strict=True)))

    slopes_hold(function, leaves)
    soft = [place for place, name in enumerate(names) if name not in hard]
    slopes = every_slope(function, leaves, soft)
    for place in soft:
        found, steps = slopes[place], every_step(function, leaves, place)
        error = (found - steps).abs() - (1e-5 + 1e-3 * steps.abs())
        if not (error <= 0).all():
            raise Broken(f"d {names[place]}: {error.max().item():.1e} beyond the tolerance of gradcheck in float64")


def every_slope(function: Callable[..., Tensor], leaves: Sequence[Tensor], soft: Sequence[int]) -> dict[int, Tensor]:
    """``(outputs, inputs)``: the derivatives of one sequence's outputs by each of its ``soft`` inputs, by place."""
    size = function(*leaves).numel()
    many = [x.detach().expand(size, *x.shape[1:]).clone().requires_grad_(x.requires_grad) for x in leaves]
    out = function(*many)
    upstream = torch.eye(size, dtype=out.dtype, device=out.device).view_as(out)
    found = torch.autograd.grad(out, [many[place] for place in soft], upstream, allow_unused=True)
    return {
        place: torch.zeros_like(many[place]).flatten(1) if slope is None else slope.flatten(1)
        for place, slope in zip(soft, found, strict=True)
    }


@torch.no_grad()
def every_step(function: Callable[..., Tensor], leaves: Sequence[Tensor], place: int, eps: float = 1e-6) -> Tensor:
    """``(outputs, inputs)``: what a step of ``eps`` to either side of each number of one input changes."""
    moved = leaves[place]
    eye = torch.eye(moved.numel(), dtype=moved.dtype, device=moved.device).view(-1, *moved.shape[1:])
    steps = moved + torch.cat([eps * eye, -eps * eye])
    many = [x.expand(len(steps), *x.shape[1:]) for x in leaves]
    many[place] = steps
    above, below = function(*many).flatten(1).chunk(2)
    return ((above - below) / (2 * eps)).mT


def gradients_of(function, subject: Subject, inputs: Inputs, layout: Layout, mechanism: Mechanism, rows) -> dict:
    """Gradients of a fixed weighting of the real rows of ``function``'s output, by what they belong to."""
    leaves = inputs.map(lambda _, tensor: tensor.detach().clone().requires_grad_())
    named = {**leaves.tensors, **dict(mechanism.named_parameters())}
    out = function(leaves, layout, mechanism)
    weighting = torch.sin(torch.arange(out.numel(), device=out.device, dtype=out.dtype)).view_as(out)
    loss = (out * weighting * rows[:, None, :, None]).sum()
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(named.items(), found, strict=True)
    }


def cost(subject: Subject) -> str:
    """The FLOP formula matches the counter to 2%, state bytes match the tensors, growth is as claimed.

    The formula is of what a CPU computes; kernels for GPUs are not counted by PyTorch.
    """
    example, mechanism = subject.example, subject.cast(torch.float32)
    ratios = []
    for causal in subject.directions():
        for n in (SHORT, subject.long):
            layout, inputs = Layout(causal=causal), subject.draw(n, batch=1, dtype=torch.float32)
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                subject.call(inputs, layout, mechanism)
            counted, formula = counter.get_total_flops(), mechanism.cost(shape(example, n), layout).flops
            if inputs.q.device.type != "cpu":
                counted = formula
            ratios.append(formula / max(counted, 1))
            most = 1.02 if mechanism.traits.flops == "exact" else 100
            if not 0.98 <= ratios[-1] <= most:
                raise Broken(f"n={n}, causal={causal}: formula {formula:,} FLOPs, counted {counted:,}")
    if subject.traits.causal:
        for dtype in (torch.float32, torch.bfloat16):
            state_bytes(subject, dtype)
    layout = Layout(causal=subject.directions()[0])
    small, large = (mechanism.cost(shape(example, n), layout) for n in (2**19, 2**20))
    exponents = {"time": math.log2(large.flops / small.flops)}
    if subject.traits.causal:
        exponents["state"] = math.log2(large.state_bytes / small.state_bytes)
    for what, exponent in exponents.items():
        claimed = getattr(subject.traits, what)
        least = GROWTHS["loglinear" if claimed == "subquadratic" else claimed]  # which are all between both
        if not least - 0.1 <= exponent <= GROWTHS[claimed] + 0.1:
            raise Broken(f"{what} grows as n^{exponent:.2f}, declared {claimed}")
    return f"FLOPs ×{min(ratios):.3f}…{max(ratios):.3f} of the count, " + ", ".join(
        f"{what} n^{exponent:.1f}" for what, exponent in exponents.items()
    )


def shape(example, n: int, dtype: torch.dtype = torch.float32) -> Shape:
    """The shape of ``draw(n, batch=1, dtype)``."""
    groups, d, e = example.kv_heads, example.head_dim, example.value_dim
    return Shape(n, heads=example.heads, kv_heads=groups, head_dim=d, value_dim=e, itemsize=dtype.itemsize)


def state_bytes(subject: Subject, dtype: torch.dtype) -> None:
    """Broken if the formula's state bytes differ from those of the state's tensors."""
    mechanism = subject.cast(dtype)
    for n in (SHORT, subject.long):
        inputs = subject.draw(n, batch=1, dtype=dtype)
        state = mechanism.start(1, device=subject.device, dtype=dtype)
        with torch.no_grad():
            _, state = mechanism.extend(inputs.q, inputs.k, inputs.v, state, **inputs.signals)
        formula = mechanism.cost(shape(subject.example, n, dtype)).state_bytes
        if state.bytes != formula:
            raise Broken(f"{dtype} state after {n} tokens: {state.bytes:,} bytes, formula {formula:,}")
