"""Stochastic depth: branches that some samples of a batch go without in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.core.errors import wrong


def dropped(branch: Tensor, share: float, training: bool) -> Tensor:
    """Stochastic depth: ``d branch``, d zero for a ``share`` of the batch and 1 / (1 − share) for the others.

    Nothing is drawn and nothing changes in evaluation, or where the share is 0.

    Args:
        branch: ``(b, …)``, what is added to what came in. share: from 0, below 1. training: whether it is trained.

    Paper: Huang et al., arXiv 1603.09382.
    """
    if not share or not training:
        return branch
    kept = torch.rand(branch.shape[0], *(1,) * (branch.dim() - 1), device=branch.device) >= share
    return branch * kept.to(branch.dtype) / (1 - share)


class Dropped(nn.Module):
    """`dropped` as a module, in training where this is.

    Args:
        share: of a batch whose branch is left out.

    Raises:
        ValueError: a share that is none.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        if not 0 <= share < 1:
            raise wrong("share", str(share), "from 0, below 1")
        self.share = share

    def forward(self, branch: Tensor) -> Tensor:
        return dropped(branch, self.share, self.training)
