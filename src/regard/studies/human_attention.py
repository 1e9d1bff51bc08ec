"""Attention that is taught where people look: a loss beside the task's own."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.build import build
from regard.core.errors import wrong
from regard.core.layout import Layout

USES: Mapping[str, str] = MappingProxyType(
    {
        "weighted pooling": "GazePool: A over places weighs what is pooled",
        "supervised attention": "GazePool.loss: KL of gaze and A beside the task's loss",
        "tokens of scanpaths": "ScanpathReader: places in the order in which they were looked at",
        "measures of maps": "regard.analysis.gaze: NSS, AUC, CC, KL",
        "measures of scanpaths": "regard.analysis.gaze: ScanMatch, edit distance",
    }
)
"""What the survey says that gaze is used for, and what does it here."""


@published(
    "human_attention",
    family="theory",
    kind="study",
    row=15,
    title="Trends, Applications, and Challenges in Human Attention Modelling",
    arxiv="2402.18673",
    year=2024,
    aliases=("gaze_supervision",),
    fidelity="hand values",
    claim=Claim(
        "taught gaze, attention correlates with it by 0.2 more, and digits are told as well, to a point",
        cells="taught.digits_taught",
        holds="taught.follows_gaze",
    ),
)
class GazePool(nn.Module):
    """A classifier that pools what is at each place of an image by softmax attention of one learned query.

        A = softmax_j(w · K h_j / √d),   logits = U Σ_j A_j h_j,   h_j = relu(W₂ relu(W₁ [image near j; place]))

    Shapes: ``images (b, 1, y, x)`` -> ``(b, classes)``.

    Args:
        side: of the images. classes: to tell. width: d. seed: of the initial weights.

    Paper: Cartella et al., arXiv 2402.18673, a survey. Fixations are drawn where the claim needs some.
    """

    def __init__(self, side: int = 8, classes: int = 10, width: int = 48, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.near, self.place = nn.Conv2d(1, width, 3, padding=1), nn.Parameter(0.1 * torch.randn(width, side, side))
        self.second, self.key = nn.Conv2d(width, width, 3, padding=1), nn.Linear(width, width)
        self.query, self.out = nn.Parameter(torch.randn(width)), nn.Linear(width, classes)
        self.attention = build("softmax")

    def parts(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of the pooling."""
        h = F.relu(self.second(F.relu(self.near(images) + self.place))).flatten(2).mT[:, None]
        return self.query.expand(len(h), 1, 1, -1), self.key(h), h

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.attention(*self.parts(images), Layout())[:, 0, 0])

    def maps(self, images: Tensor) -> Tensor:
        """A, ``(b, places)``."""
        q, k, _ = self.parts(images)
        return self.attention.weights(q, k, Layout())[:, 0, 0]

    def loss(self, images: Tensor, labels: Tensor, gaze: Tensor, weight: float) -> Tensor:
        """Cross-entropy, and ``weight`` times KL of gaze ``(b, places)``, which sums to one, from A."""
        loss = F.cross_entropy(self(images), labels)
        if weight == 0:
            return loss
        return loss + weight * F.kl_div(self.maps(images).clamp(min=1e-9).log(), gaze, reduction="batchmean")


class ScanpathReader(GazePool):
    """A classifier that reads the places that were looked at, in that order.

        t_k = h_{s_k} + e_k,   A = softmax_k(w · K t_k / √d),   logits = U Σ_k A_k t_k

    s are the places of a scanpath, e a learned vector for each of its steps, h as in `GazePool`.

    Shapes: ``images (b, 1, y, x)``, ``path (b, steps)`` places, ``lengths (b,)`` of paths -> ``(b, classes)``.

    Args:
        side, classes, width, seed: as in `GazePool`. longest: steps of a path.

    Raises:
        ValueError: a path that is longer, or none.
    """

    def __init__(self, side: int = 8, classes: int = 10, width: int = 48, seed: int = 0, longest: int = 16) -> None:
        super().__init__(side, classes, width, seed)
        self.order = nn.Parameter(0.1 * torch.randn(longest, width))

    def read(self, images: Tensor, path: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor, Layout]:
        """q, k, v ``(b, 1, steps, d)`` and which steps there are."""
        steps, longest = path.shape[1], len(self.order)
        if int(lengths.min()) < 1 or steps > longest:
            raise wrong("path", f"{int(lengths.min())} to {steps} steps", f"1 to {longest}")
        q, _, h = super().parts(images)
        tokens = h.gather(2, path[:, None, :, None].expand(-1, 1, -1, h.shape[3])) + self.order[:steps]
        return q, self.key(tokens), tokens, Layout(key_mask=torch.arange(steps) < lengths[:, None])

    def forward(self, images: Tensor, path: Tensor, lengths: Tensor) -> Tensor:
        return self.out(self.attention(*self.read(images, path, lengths))[:, 0, 0])

    def shares(self, images: Tensor, path: Tensor, lengths: Tensor) -> Tensor:
        """A, ``(b, steps)``."""
        q, k, _, layout = self.read(images, path, lengths)
        return self.attention.weights(q, k, layout)[:, 0, 0]
