"""Recurrent attention as a linear dynamical system, and what its memory holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.mechanisms.linear.base import Recurrent


@dataclass(frozen=True)
class System:
    """A time-varying linear system ``h_t = Λ_t h_{t−1} + b_t u_tᵀ, y_t = h_tᵀ c_t``.

    Args:
        transition: Λ, ``(b, h, n, D, D)``. write, read: b and c, ``(b, h, n, D)``. inputs: u, ``(b, h, n, E)``.
    """

    transition: Tensor
    write: Tensor
    inputs: Tensor
    read: Tensor

    def run(self) -> Tensor:
        """``y (b, h, n, E)``, step by step from zero."""
        state, out = self.inputs.new_zeros(*self.write.shape[:2], self.write.shape[3], self.inputs.shape[3]), []
        for t in range(self.write.shape[2]):
            state = self.transition[:, :, t] @ state + self.write[:, :, t, :, None] * self.inputs[:, :, t, None]
            out.append((self.read[:, :, t, :, None] * state).sum(-2))
        return torch.stack(out, 2) if out else self.inputs

    @property
    def matrix(self) -> Tensor:
        """A with ``y = A u``, ``(b, h, n, n)``: ``c_iᵀ Λ_i ⋯ Λ_{j+1} b_j``."""
        n = self.write.shape[2]
        found = self.write.new_zeros(*self.write.shape[:2], n, n)
        for j in range(n):
            carried = self.write[:, :, j]
            for i in range(j, n):
                carried = carried if i == j else (self.transition[:, :, i] @ carried[..., None])[..., 0]
                found[:, :, i, j] = (self.read[:, :, i] * carried).sum(-1)
        return found


@published(
    "dynamical_systems",
    family="linear",
    kind="study",
    row=131,
    title="Understanding the differences in Foundation Models: Attention, State Space Models, and Recurrent "
    "Neural Networks",
    arxiv="2405.15731",
    year=2024,
    aliases=("dsf",),
    claim=Claim(
        text="linear attention, state-space and delta-rule layers are one kind of system; linear attention equals a "
        "state-space layer whose transition is the identity, and a gated one with the same decay",
        status="partly",
        figure="system, matrix and mechanism agree to 1e-9 for every recurrence over a matrix; the paper's training "
        "experiments are not repeated",
        command="pytest tests/claims/test_dynamics.py",
    ),
)
def as_system(mechanism: Recurrent, q: Tensor, k: Tensor, v: Tensor, **signals: Tensor) -> System:
    """A recurrent mechanism on given inputs as the dynamical system that it is.

        Λ_t = (I − β_t k_t k_tᵀ) G_t,   b_t = β_t k_t,   c_t = q_t

    without the delta rule Λ_t = G_t and b_t = k_t; with a removal of its own Λ_t = (I − r_t p_tᵀ) G_t, where what p_t
    recalls is taken away along r_t.

    Shapes: as in a call, without padding.

    Paper: Sieber et al., arXiv 2405.15731.

    Raises:
        TypeError: a mechanism that is no plain recurrence: whose rows are normalised, or that reads its state early.
    """
    plain = isinstance(mechanism, Recurrent) and type(mechanism).run is Recurrent.run and not mechanism.normalised
    if not plain:
        raise wrong("mechanism", type(mechanism).__name__, "a recurrence over a matrix, not normalised", TypeError)
    x = mechanism.scan_inputs(q, k, v, None, None, signals)
    d = x.k.shape[3]
    stays = torch.ones_like(x.k) if x.log_decay is None else x.log_decay.exp()
    stays = stays if stays.dim() == 4 else stays[..., None].expand_as(x.k)
    transition, write = torch.diag_embed(stays), x.k
    if x.beta is not None:
        write = x.beta[..., None] * x.k
    recalled, along = (x.erase_key, x.erase_value) if x.beta is None else (x.k, write)
    if recalled is not None and along is not None:
        eye = torch.eye(d, dtype=x.k.dtype, device=x.k.device)
        transition = (eye - along[..., :, None] * recalled[..., None, :]) @ transition
    return System(transition, write, x.v, x.q)


@published(
    "pavlovian",
    family="linear",
    kind="study",
    row=16,
    title="Understanding Transformers through the Lens of Pavlovian Conditioning",
    arxiv="2508.08289",
    year=2025,
    aliases=("conditioning", "associative_capacity"),
    claim=Claim(
        text="a linear memory of M random pairs in d dimensions recalls with a squared error of (M − 1) / d: its "
        "capacity grows with d; repeated error correction recalls exactly while M ≤ d",
        status="works",
        figure="error over (M − 1) / d between 0.9 and 1.1 for d = 32 … 256; 10 sweeps of the delta rule at M = d / 2: "
        "0.001 (5 sweeps: 0.012)",
        command="pytest tests/claims/test_dynamics.py",
    ),
)
def recall_errors(pairs: int, dim: int, sweeps: int = 0, trials: int = 16, seed: int = 0) -> Mapping[str, float]:
    """Mean squared error, of values of variance one, that a memory makes of pairs written into it.

        hebbian: S = Σ_j k_j v_jᵀ,   corrected: S ← S + k_j (v_j − Sᵀ k_j)ᵀ in turn, ``sweeps`` times;   v̂_i = Sᵀ k_i

    Keys are random directions of length one in ``dim`` dimensions.

    Paper: Qiao, arXiv 2508.08289 (capacity linear in d on average, √d without error), where keys are conditioned
    stimuli, values unconditioned ones and queries tests.
    """
    generator = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(trials, pairs, dim, generator=generator, dtype=torch.float64) for _ in range(2))
    k = torch.nn.functional.normalize(k, dim=-1)
    found = {"hebbian": (k @ (k.mT @ v) - v).square().mean().item()}
    if sweeps:
        state = torch.zeros(trials, dim, dim, dtype=torch.float64)
        for _ in range(sweeps):
            for j in range(pairs):
                key = k[:, j, :, None]
                state = state + key * (v[:, j, None] - key.mT @ state)
        found["corrected"] = (k @ state - v).square().mean().item()
    return found
