"""What an examination finds, in the same words for every kind of thing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from regard.core.mechanism import accumulate_dtype


class Broken(Exception):  # noqa: N818 - a finding, not a fault of the program
    """A law does not hold; the message says where and by how much."""


class Unclaimed(Exception):  # noqa: N818 - likewise
    """The law is about something that the thing does not claim."""


@dataclass(frozen=True)
class Finding:
    """How one example stands to one law. detail: the worst error where it holds, what broke where it does not."""

    law: str
    example: str
    verdict: Literal["holds", "broken", "not claimed"]
    detail: str


@dataclass(frozen=True)
class Report:
    """Every law of its kind against every example of one thing."""

    findings: tuple[Finding, ...]

    @property
    def holds(self) -> bool:
        """Whether no law is broken."""
        return not self.broken

    @property
    def broken(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.verdict == "broken")

    def __str__(self) -> str:
        width = max(len(finding.example) for finding in self.findings)
        return "\n".join(
            f"{f.law:<11} {f.example:<{width}}  {f.verdict:<11}  {f.detail}".rstrip() for f in self.findings
        )


def slopes_hold(function: Callable[..., Tensor], leaves: Sequence[Tensor], fast: bool = True) -> None:
    """Broken unless gradients of the leaves, in float64, are those of finite differences.

    On a GPU some sums have no order: two backward passes may differ by rounding.
    """
    loose = 0.0 if leaves[0].device.type == "cpu" else 1e-9
    try:
        torch.autograd.gradcheck(function, tuple(leaves), fast_mode=fast, nondet_tol=loose)
    except GradcheckError as error:
        raise Broken(f"gradcheck in float64 fails: {str(error).strip().splitlines()[0]}") from None


def same(
    got: Tensor, want: Tensor, tolerance: float, where: str, rows: Tensor | None = None, least: float = 1e-6
) -> float:
    """The relative error ``max|got − want| / max|want|``; Broken if above ``tolerance`` or not finite.

    ``rows (batch, n)`` restricts the comparison to some of the queries of ``(batch, heads, n, …)``; the error is of
    ``least`` where all that is wanted is smaller.
    """
    if got.shape != want.shape:
        raise Broken(f"{where}: shape {tuple(got.shape)}, want {tuple(want.shape)}")
    got, want = (tensor.detach().to(accumulate_dtype(torch.float64)).cpu() for tensor in (got, want))
    if rows is not None:
        got, want = (tensor.transpose(1, 2)[rows] for tensor in (got, want))
    if got.numel() == 0:
        return 0.0
    if not got.isfinite().all():
        raise Broken(f"{where}: not finite")
    error = ((got - want).abs().max() / want.abs().max().clamp(min=least)).item()
    if not error <= tolerance:
        raise Broken(f"{where}: relative error {error:.1e}, want at most {tolerance:.0e}")
    return error
