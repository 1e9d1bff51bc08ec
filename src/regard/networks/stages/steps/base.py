"""The contract of steps: a map in, a map of the same shape out, which is added to what came in."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from regard.featuremap.parts.dropped import dropped


class Step(nn.Module):
    """The base of every step of a block: ``(b, c, y, x)`` -> the same shape, of any height and width.

    A constructor takes any of ``width`` (c), ``heads``, ``norm`` and ``bias`` of its stage, and arguments of its own.
    """

    normed: ClassVar[bool] = True
    """Whether what it reads passes the network's norm first, and what it gives the network's scale."""
    alone: ClassVar[bool] = False
    """Whether it adds nothing to what came in by itself: its output is what follows."""

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        """What it weighs the map by, ``(b, …, y, x)`` each, where that is no attention; see `Network.intermediates`."""
        return {}


class Added(nn.Module):
    """``y = x + d γ ⊙ step(norm(x))``.

    Args:
        step: the branch. norm: of what it reads. width: c. scale: γ at the start, learned for each channel; None for
            none. drop: the share of images whose branch is left out in training; d is 1 / (1 − drop) for the others.

    Papers: γ: Touvron et al. (LayerScale), arXiv 2103.17239; d: Huang et al. (stochastic depth), 1603.09382.
    """

    def __init__(self, step: Step, norm: nn.Module, width: int, scale: float | None, drop: float) -> None:
        super().__init__()
        self.step, self.norm, self.drop = step, norm, drop
        self.scale = None if scale is None else nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor) -> Tensor:
        out = self.step(self.norm(x))
        if self.scale is not None:
            out = out * self.scale[:, None, None]
        return x + dropped(out, self.drop, self.training)
