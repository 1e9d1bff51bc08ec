"""Local linear attention: each query fits a plane to the values around it, and reads it off where it stands."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, Traits, accumulate_dtype, masked_softmax, repeat_heads
from regard.mechanisms.cached import Cached

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
    missing="FlashLLA's conjugate gradients: the systems are solved directly",
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
    Cost: 2 (d² + 3 d + e) FLOPs for each pair, d³ for each query; memory of 64 queries. State: all keys and values.

    Args:
        ridge: λ > 0, against covariances that are singular, as with fewer keys than channels. temperature: h, None for
            √d.

    Raises:
        ValueError: a ridge or temperature that is not positive.

    Paper: Zuo et al., arXiv 2510.01450. There λ is beside unnormalised weights; here p sums to one.
    """

    traits = Traits(masked=True, rows="one", equivariant=True)

    def __init__(self, ridge: float = 0.01, temperature: float | None = None) -> None:
        super().__init__()
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
        flops = 2 * cells * (d * d + 3 * d + shape.values)
        return Cost(shape.batch * shape.heads * flops, shape.io_bytes, shape.cache_bytes)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("plain", cls(), longest=127),
            Example("grouped, a wide ridge", cls(0.3, 2.0), heads=4, kv_heads=2, longest=127),
        ]
