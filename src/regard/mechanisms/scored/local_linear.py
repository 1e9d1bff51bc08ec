"""Local linear attention: each query fits a plane to the values around it, and reads it off where it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, Traits, accumulate_dtype, masked_softmax, repeat_heads
from regard.mechanisms.cached import Cached

STEPS = 4
"""Steps of conjugate gradients at most, over the channels of a key: as many as channels end at rounding alone."""
ROWS = 64
"""Queries whose covariances of keys are held at a time."""


@published(
    "local_linear",
    family="scored",
    row=130,
    title="Local Linear Attention: An Optimal Interpolation of Linear and Softmax Attention For Test-Time Regression",
    arxiv="2510.01450",
    year=2025,
    aliases=("lla",),
    fidelity="hand values",
    claim=(
        Claim(
            "returns values that are affine in the keys, which softmax attention does not",
            cells="local_linear.affine",
            holds="local_linear.is_exact",
        ),
        Claim(
            "is weighted least squares around each query",
            cells="local_linear.least_squares",
            holds="common.within(most=1e-9)",
        ),
        Claim(
            "has the lowest error of linear, softmax and local linear attention on piecewise regression",
            cells="local_linear.piecewise",
            holds="local_linear.errs_least",
        ),
    ),
)
class LocalLinear(Cached):
    """Each query weighs keys so that values which are affine in the keys come out exactly.

        A_ij = p_ij (1 − z_ijᵀ S_i⁻¹ μ_i) / (1 − μ_iᵀ S_i⁻¹ μ_i),   p_i = softmax_j(q_i · k_j / h),   z_ij = k_j − q_i
        μ_i = Σ_j p_ij z_ij,   S_i = Σ_j p_ij z_ij z_ijᵀ + λ I

    o_i is the intercept at q_i of the plane with the least squared error under the weights p, its slope held small by
    λ, which is ``ridge``; h is ``temperature``. With C_i and k̄_i the covariance and mean of the keys under p this is
    ``A_ij = p_ij (1 − (k_j − k̄_i)ᵀ (C_i + λ I)⁻¹ (k̄_i − q_i))``, which `forward` computes. Entries may be negative,
    rows sum to one.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h.
    Cost: 2 (d² + 3 d + e) FLOPs for each pair, d³ for each query; memory of 64 queries. By conjugate gradients 4 d
    FLOPs for each pair and step in the place of d² and d³, and no d × d of any query is formed. State: all keys and
    values.

    Args:
        ridge: λ > 0, against covariances that are singular, as with fewer keys than channels. temperature: h, None for
            √d. solver: "direct", or "cg" for conjugate gradients, which end when every residual is at rounding, after
            4 d steps at the latest; their gradients solve the same systems once more.

    Raises:
        ValueError: a ridge or temperature that is not positive, another solver.

    Paper: Zuo et al., arXiv 2510.01450. There λ is beside unnormalised weights; here p sums to one.
    """

    traits = Traits(masked=True, rows="one", equivariant=True)

    def __init__(
        self, ridge: float = 0.01, temperature: float | None = None, solver: Literal["direct", "cg"] = "direct"
    ) -> None:
        super().__init__()
        if solver not in ("direct", "cg"):
            raise wrong("solver", repr(solver), "'direct' or 'cg'")
        self.solver = solver
        if solver == "cg":
            self.traits = replace(self.traits, flops="at most")
        for name, number in (("ridge", ridge), ("temperature", temperature)):
            if number is not None and not number > 0:
                raise wrong(name, str(number), "above 0")
        self.ridge, self.temperature = ridge, temperature

    def shares(self, q: Tensor, k: Tensor, allowed: Tensor) -> Tensor:
        """p ``(b, h, n, m)``."""
        scale = q.shape[-1] ** -0.5 if self.temperature is None else 1 / self.temperature
        return masked_softmax(q @ k.mT * scale, allowed)

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        dtype, q, k = q.dtype, q.double(), repeat_heads(k, q.shape[1]).double()  # `rest` is a small difference
        shares = self.shares(q, k, layout.allowed(q.shape[2], k.shape[2], q.device))
        apart = k[:, :, None] - q[:, :, :, None]
        mean = (shares[..., None] * apart).sum(3)
        second = torch.einsum("bhij,bhijc,bhijd->bhicd", shares, apart, apart)
        system = second + self.ridge * torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
        slope = torch.linalg.solve(system, mean)
        rest = 1 - (mean * slope).sum(-1, keepdim=True)
        return (shares * (1 - (apart * slope[:, :, :, None]).sum(-1)) / rest).to(dtype)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)
        wide, heads, (n, m) = accumulate_dtype(q.dtype), q.shape[1], (q.shape[2], k.shape[2])
        k, v = repeat_heads(k, heads).to(wide), repeat_heads(v, heads).to(wide)
        outs = []
        for start in range(0, n, ROWS):
            rows = slice(start, min(start + ROWS, n))
            seen = slice(0, min(max(rows.stop + m - n, 0), m) if layout.causal else m)
            allowed = layout.allowed(n, m, q.device, rows, seen)
            given = q[:, :, rows].to(wide), k[:, :, seen], v[:, :, seen], allowed
            again = n > ROWS and torch.is_grad_enabled()
            outs.append(checkpoint(self.attend, *given, use_reentrant=False) if again else self.attend(*given))
        return torch.cat([v.new_zeros(*q.shape[:2], 0, v.shape[3]), *outs], 2).to(q.dtype)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
        """Some queries over the keys that they may see, under a mask."""
        shares = self.shares(q, k, allowed)
        mean = shares @ k
        if self.solver == "cg":
            slope = cast(Any, Solved.apply)(shares, k, mean - q, self.ridge)
            return (shares * (1 - slope @ k.mT + (slope * mean).sum(-1, keepdim=True))) @ v
        second = (shares[..., None, :] * k.mT[:, :, None]) @ k[:, :, None]
        eye = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
        held = shares.sum(-1)[..., None, None]  # 0 in rows that see nothing, else 1
        system = second - held * mean[..., :, None] * mean[..., None, :] + self.ridge * eye
        slope = torch.linalg.solve(system, mean - q)
        return (shares * (1 - slope @ k.mT + (slope * mean).sum(-1, keepdim=True))) @ v

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        n, m, d, cells = shape.n, shape.keys, shape.head_dim, 0
        for start in range(0, n, ROWS):
            stop = min(start + ROWS, n)
            cells += (stop - start) * (min(max(stop + m - n, 0), m) if layout.causal else m)
        each = d * d + 3 * d if self.solver == "direct" else (3 + 2 * (STEPS * d + 1)) * d
        flops = 2 * cells * (each + shape.values)
        return Cost(shape.batch * shape.heads * flops, shape.io_bytes, shape.cache_bytes)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("plain", cls(), longest=127),
            Example("grouped, a wide ridge", cls(0.3, 2.0), heads=4, kv_heads=2, longest=127),
            Example("by conjugate gradients", cls(solver="cg"), longest=127),
        ]


class Solved(torch.autograd.Function):
    """The x of ``(C_i + λ I) x_i = b_i``, C_i the covariance of keys under shares; backward solves for the gradient."""

    @staticmethod
    def forward(ctx, shares, k, b, ridge):
        x = conjugate_gradients(shares, k, b, ridge)
        ctx.save_for_backward(shares, k, x)
        ctx.ridge = ridge
        return x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        shares, k, x = ctx.saved_tensors
        y = conjugate_gradients(shares, k, grad, ctx.ridge)
        with torch.enable_grad():
            leaves = shares.detach().requires_grad_(), k.detach().requires_grad_()
            loss = -(y * covaried(*leaves, x, ctx.ridge)).sum()
            slopes = torch.autograd.grad(loss, leaves)
        return *slopes, y, None


def covaried(shares: Tensor, k: Tensor, x: Tensor, ridge: float) -> Tensor:
    """``(C_i + λ I) x_i``, ``(b, h, n, d)``, without C: products with keys, weighed by shares less their mean."""
    along = x @ k.mT
    centre = (shares * along).sum(-1, keepdim=True)
    return (shares * (along - centre)) @ k + ridge * x


def conjugate_gradients(shares: Tensor, k: Tensor, b: Tensor, ridge: float) -> Tensor:
    """The x of ``(C_i + λ I) x_i = b_i`` of all queries at once, each of whose steps are its own."""
    x, left = torch.zeros_like(b), b
    way, size = left, left.square().sum(-1, keepdim=True)
    least = size * torch.finfo(b.dtype).eps ** 2
    for _ in range(STEPS * b.shape[-1]):
        going = size > least
        if not going.any():
            break
        turned = covaried(shares, k, way, ridge)
        step = torch.where(going, size / torch.where(going, (way * turned).sum(-1, keepdim=True), 1), 0)
        x, left = x + step * way, left - step * turned
        new = left.square().sum(-1, keepdim=True)
        way = left + torch.where(going, new / torch.where(going, size, 1), 0) * way
        size = new
    return x
