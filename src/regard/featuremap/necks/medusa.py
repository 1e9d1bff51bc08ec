"""Medusa's head: one task's map of all scales, each weighed cell by cell by its own attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample
from regard.featuremap.gates.medusa import TaskMask
from regard.featuremap.neck import Neck
from regard.featuremap.resize import Size, resize


@published(
    "medusa_head",
    family="featuremap",
    kind="neck",
    title="Medusa: Universal Feature Learning via Attentional Multitasking",
    arxiv="2204.05698",
    year=2022,
    aliases=("multi_scale_attention_head",),
    fidelity="abstract only",
    claim=Claim(
        "its map depends on the maps of all scales",
        cells="necks.depends(neck_text=medusa_head)",
        holds="necks.reads(wanted='0123')",
    ),
)
class MedusaHead(Neck):
    """One fine map of a task: its masks of the shared maps, and what it takes of each scale at each cell.

        f_l = relu(W_l (c_l ⊙ σ(M_l c_l))),   y = Σ_l up(f_l) ⊙ σ(A_l up(f_l))

    M_l is `TaskMask`, W_l a 3 × 3 convolution, A_l a 1 × 1 one, up bilinear, to the finest map's size. The task's first
    guess of each scale is read from f_l, `guesses`. Other tasks have heads of their own, so that one more changes none.
    Parameters: Σ_l (c_l² + c_l + 9 c_l d + d + d² + d).

    Args:
        channels: c_l, fine to coarse. out: d.

    Paper: Spencer et al., arXiv 2204.05698; the details of the layers are ours, the authors published no code.
    """

    def __init__(self, channels: Sequence[int], out: int) -> None:
        super().__init__(channels, out)
        self.masks = nn.ModuleList(TaskMask(c) for c in channels)
        self.own = nn.ModuleList(nn.Conv2d(c, out, 3, padding=1) for c in channels)
        self.attention = nn.ModuleList(nn.Conv2d(out, out, 1) for _ in channels)

    def guesses(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """f_l, from which each scale's prediction is read in training."""
        levels = zip(self.own, self.masks, maps, strict=True)
        return [torch.relu(own(mask(each))) for own, mask, each in levels]

    def shares(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """What is taken of each scale at each cell and channel ``(b, d, y, x)``, at the finest size."""
        return [
            torch.sigmoid(attention(each)) for attention, each in zip(self.attention, self.grown(maps), strict=True)
        ]

    def grown(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """f_l at the finest size."""
        return [resize(each, maps[0], "bilinear") for each in self.guesses(maps)]

    def fused(self, maps: list[Tensor]) -> list[Tensor]:
        levels = zip(self.attention, self.grown(maps), strict=True)
        return [torch.stack([each * torch.sigmoid(attention(each)) for attention, each in levels]).sum(0)]

    @property
    def reads(self) -> list[tuple[int, ...]]:
        return [tuple(range(len(self.channels)))]

    @property
    def parameter_count(self) -> int:
        d = self.out
        return sum(c * c + c + 9 * c * d + d + d * d + d for c in self.channels)

    def flops(self, given: Sequence[Size], batch: int = 1) -> int:
        d, (fine_y, fine_x) = self.out, given[0]
        own = sum(y * x * (c * c + 9 * c * d) for (y, x), c in zip(given, self.channels, strict=True))
        return 2 * batch * (own + len(given) * fine_y * fine_x * d * d)

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("medusa_head", cls((3, 5, 7), 4)), Sample("one scale", cls((3,), 4))]
