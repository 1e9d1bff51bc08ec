"""Guided context gating."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample
from regard.featuremap.gate import Factors, Gate, MapShape
from regard.featuremap.parts.mixes import bottleneck
from regard.featuremap.parts.pools import Query


@published(
    "gcg",
    family="featuremap",
    kind="gate",
    row=6,
    title="Guided Context Gating: Learning to leverage salient lesions in retinal fundus images",
    arxiv="2406.13126",
    year=2024,
    fidelity="hand values",
    aliases=("guided_context_gating",),
    claim=Claim(
        "its context is one mean of the map's cells under an attention that sums to one, in whatever order they stand",
        cells="featuremap.contexts(gate='gcg(ratio=4)')",
        holds="featuremap.is_one_mean",
    ),
)
class GuidedContextGating(Gate):
    """Cells are weighed by what they share with the map's global context.

        y = x ⊙ σ(ψ(norm(relu(relu(W_x x) + relu(W_g g) + b)))),   g = x + V_2 relu(V_1 Σ_p a_p x_p)

    a is a softmax over cells of w · x: `Query`.
    The layer norm is over the channels of each cell. Parameters: c + 2 c h + 2 (c² + c) + 4 c + 1, h = c / ratio.

    Args:
        channels: c. ratio: of the bottleneck V_1, V_2, which have no biases.

    Paper: Cherukuri et al., arXiv 2406.13126. The authors' code takes the softmax over an axis of length one, so that
    its context is the sum of all cells; here it is over the cells, as the paper has it, and ψ's two biases are one.
    """

    def __init__(self, channels: int, ratio: float = 8) -> None:
        super().__init__(channels)
        self.hidden = bottleneck(channels, ratio, 1)
        self.context = Query(channels, "yx", bias=False)
        self.down, self.up = nn.Linear(channels, self.hidden, bias=False), nn.Linear(self.hidden, channels, bias=False)
        self.own, self.other = (nn.Conv2d(channels, channels, 1) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.norm, self.psi = nn.LayerNorm(channels, 1e-3), nn.Linear(channels, 1)

    def guided(self, x: Tensor) -> Tensor:
        """g: the map with its context added to every cell."""
        context = self.up(torch.relu(self.down(self.context(x)[:, 0])))
        return x + context[:, :, None, None]

    def factors(self, x: Tensor, past: Sequence[Tensor] | None = None) -> Factors:
        both = torch.relu(self.own(x)) + torch.relu(self.other(self.guided(x)))
        cells = torch.relu(both.movedim(1, -1) + self.bias)
        return {"yx": torch.sigmoid(self.psi(self.norm(cells))).movedim(-1, 1)}

    @property
    def parameter_count(self) -> int:
        c = self.channels
        return c + 2 * c * self.hidden + 2 * (c * c + c) + 4 * c + 1

    def flops(self, shape: MapShape) -> int:
        cells = shape[0] * shape[2] * shape[3]
        return cells * self.channels * (4 + 4 * self.channels + 2) + 4 * shape[0] * self.channels * self.hidden

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("gcg", cls(12, ratio=4))]
