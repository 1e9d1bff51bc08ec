"""Medusa's mask: a task's own attention to a shared feature map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.gate import Factors, Gate, GateTraits, MapShape


@published(
    "medusa",
    family="featuremap",
    kind="gate",
    row=227,
    title="Medusa: Universal Feature Learning via Attentional Multitasking",
    arxiv="2204.05698",
    year=2022,
    aliases=("task_mask",),
    fidelity="abstract only",
    claim=Claim(
        "a task's mask trained by itself leaves what other tasks read as it was, bit by bit",
        cells="featuremap.task_masks",
        holds="featuremap.leaves_others_alone",
    ),
)
class TaskMask(Gate):
    """Every number of a shared map is weighed by a convolution of the map that belongs to one task: ``x ⊙ σ(W x + b)``.

    One for each task and map; the backbone knows none of them; `medusa_head` puts the scales together.
    Parameters: c² k² + c.

    Args:
        channels: c. kernel: k, odd.

    Raises:
        ValueError: an even kernel.

    Paper: Spencer et al., arXiv 2204.05698.
    """

    traits = GateTraits()

    def __init__(self, channels: int, kernel: int = 1) -> None:
        super().__init__(channels)
        if kernel < 1 or kernel % 2 == 0:
            raise wrong("kernel", str(kernel), "odd")
        self.convolution = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)

    def factors(self, x: Tensor, past: Sequence[Tensor] | None = None) -> Factors:
        return {"cyx": torch.sigmoid(self.convolution(x))}

    @property
    def parameter_count(self) -> int:
        return self.channels**2 * self.convolution.kernel_size[0] ** 2 + self.channels

    def flops(self, shape: MapShape) -> int:
        return 2 * shape[0] * shape[2] * shape[3] * self.channels**2 * self.convolution.kernel_size[0] ** 2

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("medusa", cls(7)), Sample("3 × 3", cls(5, 3))]
