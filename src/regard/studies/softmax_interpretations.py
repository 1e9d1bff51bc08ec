"""What attention computes, read in other words: posterior expectation, energy descent, sparse distributed memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.errors import wrong

COMMAND = "pytest tests/claims/test_readings.py"


@published(
    "posterior",
    family="scored",
    kind="study",
    row=0,
    title="Attention: Marginal Probability is All You Need?",
    arxiv="2304.04556",
    year=2023,
    aliases=("bayesian_attention", "slot_competition"),
    claim=Claim(
        text="with a uniform prior the responsibilities of a mixture are softmax attention, a log prior is an additive "
        "bias, competition of queries is a step of Slot Attention, and repeated reading never raises the free energy",
        status="works",
        figure="equalities to 1e-12 in float64; the free energy falls or stays over 20 steps in 64 draws",
        command=COMMAND,
    ),
)
def responsibilities(q: Tensor, k: Tensor, log_prior: Tensor | None = None, slots: bool = False) -> Tensor:
    """``p(φ_i = j | q, k) ∝ p(φ_i = j) exp(q_i · k_j / √d)``: which key each query comes from.

    With ``slots`` queries compete for keys instead, ``softmax`` over i, and each query's shares are then divided by
    their sum, as in Slot Attention.

    Shapes: ``q (…, n, d)``, ``k (…, m, d)``, ``log_prior (…, n, m)`` -> ``(…, n, m)``.

    Paper: Singh and Buckley, arXiv 2304.04556; slots: Locatello et al., 2006.15055.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    scores = scores if log_prior is None else scores + log_prior
    if not slots:
        return torch.softmax(scores, dim=-1)
    shares = torch.softmax(scores, dim=-2)
    return shares / shares.sum(-1, keepdim=True)


def free_energy(q: Tensor, k: Tensor, beta: float) -> Tensor:
    """``½ |q|² − log Σ_j exp(β q · k_j) / β`` of each query, ``(…, n)``: what `retrieve` descends."""
    return q.square().sum(-1) / 2 - torch.logsumexp(beta * (q @ k.mT), -1) / beta


def retrieve(q: Tensor, k: Tensor, beta: float, steps: int) -> list[Tensor]:
    """``q ← Σ_j softmax_j(β q · k_j) k_j``, repeated: the queries before and after each step.

    Paper: Ramsauer et al., arXiv 2008.02217.
    """
    found = [q]
    for _ in range(steps):
        found.append(torch.softmax(beta * (found[-1] @ k.mT), -1) @ k)
    return found


@dataclass(frozen=True)
class Fit:
    """The softmax that is nearest to a sparse distributed memory.

    Args:
        beta: of the cosine. log_correlation: of log overlap and distance. correlation: of the overlap and the fit.
    """

    beta: float
    log_correlation: float
    correlation: float


@published(
    "sparse_distributed_memory",
    family="scored",
    kind="study",
    row=71,
    title="Attention Approximates Sparse Distributed Memory",
    arxiv="2111.05498",
    year=2021,
    aliases=("sdm",),
    claim=Claim(
        text="the overlap of two addresses' circles falls about exponentially with their distance, so that reading the "
        "memory is softmax attention at a β set by the radius",
        status="works",
        figure="64 bits, radii 5 … 22: see docs/claims.md for the correlations and the cosine of both readings",
        command=COMMAND,
    ),
)
def overlap(bits: int, radius: int) -> list[int]:
    """Addresses within ``radius`` of both of two addresses, for each distance 0 … ``bits`` of the two.

        I(v) = Σ_a Σ_c C(bits − v, a) C(v, c),   over those with (bits − v − a) + max(c, v − c) ≤ radius

    a counts bits on which all three agree, c those of the v differing ones on which the third agrees with the first.

    Paper: Bricken and Pehlevan, arXiv 2111.05498.

    Raises:
        ValueError: a radius outside of 0 … bits.
    """
    if not 0 <= radius <= bits:
        raise wrong("radius", str(radius), f"0 to the {bits} bits")
    return [
        sum(
            math.comb(bits - v, a) * math.comb(v, c)
            for a in range(bits - v + 1)
            for c in range(v + 1)
            if bits - v - a + max(c, v - c) <= radius
        )
        for v in range(bits + 1)
    ]


def fit_beta(bits: int, radius: int) -> Fit:
    """β of ``I(v) ≈ exp(β cos)``, cos = 1 − 2 v / bits, by least squares of log I within the radius."""
    counts = overlap(bits, radius)[: radius + 1]
    cosines = torch.tensor([1 - 2 * v / bits for v in range(len(counts))], dtype=torch.float64)
    logs = torch.tensor([math.log(count) for count in counts], dtype=torch.float64)
    centred = cosines - cosines.mean()
    beta = ((centred * logs).sum() / centred.square().sum()).item()
    both = torch.stack([(logs - logs[0]).exp(), (beta * (cosines - 1)).exp()])
    distance = torch.stack([logs, -cosines])
    return Fit(beta, torch.corrcoef(distance)[0, 1].item(), torch.corrcoef(both)[0, 1].item())


def read_memory(query: Tensor, addresses: Tensor, values: Tensor, radius: int) -> Tensor:
    """The mean of ``values (m, e)`` weighted by the overlap of each address ``(m, bits)`` with the query, all ±1."""
    bits = query.shape[-1]
    counts = torch.tensor([float(x) for x in overlap(bits, radius)], dtype=torch.float64)
    distance = ((bits - query.double() @ addresses.double().mT) / 2).long()
    weights = counts[distance]
    return weights @ values.double() / weights.sum(-1, keepdim=True)


def betas(bits: int, radii: Sequence[int]) -> dict[int, Fit]:
    """`fit_beta` for each radius."""
    return {radius: fit_beta(bits, radius) for radius in radii}
