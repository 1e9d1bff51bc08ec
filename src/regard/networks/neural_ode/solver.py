"""Explicit Runge–Kutta integration of hidden states, in fixed or adaptive steps, with gradients by either way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from regard.core.errors import wrong

Field = Callable[[Tensor], Tensor]
"""F of ``dx/dt = F(x)``: any shape in, the same out."""


@dataclass(frozen=True)
class Tableau:
    """The numbers of an explicit Runge–Kutta method.

        k_i = F(x + h Σ_{j<i} a_ij k_j),   x' = x + h Σ_i b_i k_i,   error = h Σ_i e_i k_i

    Args:
        a: rows of a_ij, from the second stage. b: the weights of the stages. order: of the global error.
        e: of the estimated error, empty where there is none.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    e: tuple[float, ...] = ()


def differences(b: Sequence[float], other: Sequence[float]) -> tuple[float, ...]:
    return tuple(x - y for x, y in zip(b, other, strict=True))


FIFTH = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0)
FOURTH = (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
TABLEAUX = {
    "euler": Tableau((), (1.0,), 1),
    "rk4": Tableau(((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4),
    "dormand_prince": Tableau(
        (
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            FIFTH[:6],
        ),
        FIFTH,
        5,
        differences(FIFTH, FOURTH),
    ),
}
"""Euler's method, the classical fourth-order one, and the pair of Dormand and Prince (1980)."""


@dataclass(frozen=True)
class Solver:
    """How hidden states are integrated over a span of time.

    Args:
        method: a name in `TABLEAUX`. steps: equal steps over the span; None for steps that adapt to ``tolerance``.
        tolerance: of one adaptive step's estimated error, absolute and relative. adjoint: gradients by the adjoint
            equation, integrated backwards by the same solver in memory that does not grow with the steps, instead of
            backpropagation through the steps.

    Raises:
        ValueError: an unknown method, no steps, a tolerance that is not positive, or adaptive steps by a method
            without an error estimate.
    """

    method: Literal["euler", "rk4", "dormand_prince"] = "euler"
    steps: int | None = 1
    tolerance: float = 1e-5
    adjoint: bool = False

    def __post_init__(self) -> None:
        if self.method not in TABLEAUX:
            raise wrong("method", repr(self.method), f"one of {', '.join(TABLEAUX)}")
        if self.steps is not None and self.steps < 1:
            raise wrong("steps", str(self.steps), "at least 1, or None to adapt")
        if self.steps is None and not TABLEAUX[self.method].e:
            raise wrong("steps", "None", f"a number: {self.method} estimates no error")
        if not self.tolerance > 0:
            raise wrong("tolerance", str(self.tolerance), "above 0")

    def __call__(self, field: Field, x: Tensor, time: float, parameters: Sequence[Tensor] = ()) -> Tensor:
        """x after ``time``; ``parameters`` are those of the field, which the adjoint gives gradients to."""
        if self.adjoint:
            return Adjoint.apply(field, self, time, x, *parameters)  # pyright: ignore
        return self.solve(field, x, time)

    def solve(self, field: Field, x: Tensor, time: float) -> Tensor:
        """x after ``time``, which may be negative, by steps that autograd sees."""
        tableau = TABLEAUX[self.method]
        if self.steps is None:
            return adaptive(field, x, time, tableau, self.tolerance)
        for _ in range(self.steps):
            x = step(field, x, time / self.steps, tableau, field(x))[0]
        return x


def step(field: Field, x: Tensor, h: float, tableau: Tableau, first: Tensor) -> tuple[Tensor, list[Tensor]]:
    """``(x after h, its stages)``; ``first`` is F(x)."""
    stages = [first]
    for row in tableau.a:
        stages.append(field(x + h * combined(row, stages)))
    return x + h * combined(tableau.b, stages), stages


def combined(weights: Sequence[float], stages: Sequence[Tensor]) -> Tensor:
    """``Σ_i weights_i stages_i``."""
    found = [stage if weight == 1 else weight * stage for weight, stage in zip(weights, stages, strict=True) if weight]
    return torch.stack(found).sum(0) if len(found) > 1 else found[0]


def adaptive(field: Field, x: Tensor, time: float, tableau: Tableau, tolerance: float) -> Tensor:
    """x after ``time`` in steps whose estimated error, as a root mean square over all of x, is within tolerance."""
    done, h, first = 0.0, time, field(x)
    while abs(time - done) > 1e-12 * abs(time):
        h = h if abs(h) < abs(time - done) else time - done
        after, stages = step(field, x, h, tableau, first)
        scale = tolerance * (1 + torch.maximum(x.detach().abs(), after.detach().abs()))
        ratio = (h * combined(tableau.e, stages).detach() / scale).square().mean().sqrt().item()
        if ratio <= 1:
            done, x, first = done + h, after, stages[-1]  # the last stage is F(x'): b is the last row of a
        h *= min(10.0, max(0.2, 0.9 * max(ratio, 1e-10) ** (-1 / tableau.order))) if ratio == ratio else 0.2
        if abs(h) < 1e-9 * abs(time):
            raise wrong("tolerance", str(tolerance), f"one that {x.dtype} and this field allow", RuntimeError)
    return x


class Adjoint(torch.autograd.Function):
    """Integration whose gradients come from an equation backwards in time.

        da/dt = −(∂F/∂x)ᵀ a,   dg/dt = −(∂F/∂θ)ᵀ a,   a(T) = ∂L/∂x(T),   g(T) = 0

    and x itself backwards beside them; a(0) and g(0) are the gradients of x(0) and of the parameters θ.

    Paper: Chen et al., arXiv 1806.07366.
    """

    @staticmethod
    def forward(ctx: Any, field: Field, solver: Solver, time: float, x: Tensor, *parameters: Tensor) -> Tensor:
        with torch.no_grad():
            out = solver.solve(field, x, time)
        ctx.field, ctx.solver, ctx.time, ctx.parameters = field, solver, time, parameters
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (out,), sizes = ctx.saved_tensors, [parameter.numel() for parameter in ctx.parameters]
        like = (out, out, *ctx.parameters)

        def backwards(flat: Tensor) -> Tensor:
            x, a = (part.view_as(out) for part in flat[: 2 * out.numel()].split(out.numel()))
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                change = ctx.field(x)
                found = torch.autograd.grad(change, (x, *ctx.parameters), a, allow_unused=True, materialize_grads=True)
            return torch.cat([change.detach().flatten(), *(-part.flatten() for part in found)])

        with torch.no_grad():
            end = torch.cat([out.flatten(), gradients[0].flatten(), out.new_zeros(sum(sizes))])
            whole = ctx.solver.solve(backwards, end, -ctx.time).split([out.numel(), out.numel(), *sizes])
        found = [part.view_as(shape) for part, shape in zip(whole, like, strict=True)]
        return None, None, None, *found[1:]
