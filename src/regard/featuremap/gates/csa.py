"""Class semantics-based attention: features weighed by what classes are where in time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.featuremap.gate import Factors, Gate, MapShape


@published(
    "csa",
    family="featuremap",
    kind="gate",
    row=105,
    title="Class Semantics-based Attention for Action Detection",
    arxiv="2109.02613",
    year=2021,
    aliases=("class_semantics",),
    fidelity="abstract only",
    claim=Claim(
        "of two events that look alike, the one whose class the semantics show is found at least 5 points of average "
        "precision better than with squeeze and excitation of the features, and than with no gate",
        cells="featuremap_time.events",
        holds="featuremap_time.finds_the_shown",
    ),
)
class ClassSemantics(Gate):
    """Channels and steps of features are weighed by the classes beside them: the mean of both products.

        f_c = σ(W_2 relu(W_1 mean_t r)),   f_t = σ(w * r)_t,   y = x ⊙ (f_c + f_t) / 2

    r ``(b, classes, y, x)`` are the last ``classes`` channels of the map, which come out as they are; time runs along
    y, along which w is a convolution. Parameters: h (classes + c + 1) + c + k classes + 1, h = classes / ratio.

    Args:
        channels: of the map, those of the classes among them. classes: how many. kernel: k, odd. ratio: of the
            bottleneck h, one at least.

    Raises:
        ValueError: no channel beside the classes, an even kernel.

    The proposal network that it feeds is `regard.networks.proposals.BoundaryMatching`.

    Paper: Sridhar et al., arXiv 2109.02613.
    """

    rule = "mean"

    def __init__(self, channels: int, classes: int = 4, kernel: int = 3, ratio: float = 1) -> None:
        super().__init__(channels)
        if not 0 < classes < channels:
            raise wrong("classes", str(classes), f"1 to below the {channels} channels")
        if kernel < 1 or kernel % 2 == 0:
            raise wrong("kernel", str(kernel), "odd")
        self.classes, self.kernel, self.hidden = classes, kernel, max(1, int(classes / ratio))
        self.first, self.second = nn.Linear(classes, self.hidden), nn.Linear(self.hidden, channels - classes)
        self.steps = nn.Conv2d(classes, 1, (kernel, 1), padding=(kernel // 2, 0))

    def factors(self, x: Tensor, past: Sequence[Tensor] | None = None) -> Factors:
        semantics = x[:, -self.classes :]
        channels = torch.sigmoid(self.second(torch.relu(self.first(semantics.mean((2, 3))))))
        channels = F.pad(channels, (0, self.classes), value=1.0)[:, :, None, None]
        steps = torch.sigmoid(self.steps(semantics)).expand(-1, self.channels - self.classes, -1, -1)
        return {"c": channels, "cyx": torch.cat([steps, torch.ones_like(semantics)], 1)}

    @property
    def parameter_count(self) -> int:
        own = self.channels - self.classes
        return self.hidden * (self.classes + own + 1) + own + self.kernel * self.classes + 1

    def flops(self, shape: MapShape) -> int:
        matrices = self.hidden * self.channels
        return 2 * shape[0] * (matrices + shape[2] * shape[3] * self.kernel * self.classes)

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("csa", cls(9, 4)), Sample("5 steps, half", cls(12, 6, 5, 2))]
