"""Readers of pages: everything is kept, and each step reads the pages that its query needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.policy import Reader, View, best, sampled


@dataclass(frozen=True, kw_only=True)
class Paged(Reader):
    """The base of readers that choose whole pages of ``page`` tokens, as many as the budget has tokens for.

    Args:
        page: tokens of a page. last: pages at the end that are always read, at least the newest.

    Raises:
        ValueError: less than a token or a page.
    """

    page: int = 16
    last: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.page, self.last) < 1:
            raise wrong("page, last", f"{self.page}, {self.last}", "at least 1 each")

    @property
    def forced(self) -> int:
        return self.page * self.last

    def places(self, scores: Tensor, view: View) -> Tensor:
        """The entries of the best pages by ``scores (pages,)``, the last ones always among them."""
        count, sure = (
            view.budget // self.page,
            torch.arange(len(scores), device=scores.device) >= len(scores) - self.last,
        )
        chosen = best(scores.masked_fill(sure, torch.inf), count)
        at = (chosen[:, None] * self.page + torch.arange(self.page, device=scores.device)).flatten()
        return at[at < view.size]

    def enough(self, view: View) -> bool:
        """Whether the budget has room for everything."""
        return view.size <= view.budget


@dataclass(frozen=True, kw_only=True)
class Quest(Paged):
    """Reads, in each kv head, the pages that could hold the largest score.

        s_p = max over the group's queries of Σ_c max(q_c · min_c K_p, q_c · max_c K_p)

    Shapes: as `core.policy.View`. Cost: two numbers for each channel of a page, kept; one row over these a step.

    Args:
        page: 16. last: pages at the end that are always read. whole: layers at the beginning that read everything.

    Paper: Tang et al., arXiv 2406.10774; `regard.find("quest")` is its router, for all rows at once.
    """

    whole: int = 2

    def source(self, layer: int, layers: int) -> int | None:
        return None if layer < self.whole else layer

    def select(self, views: Sequence[View]) -> Sequence[Tensor] | None:
        if self.enough(views[0]):
            return None
        return [self.places(self.bounds(view), view) for view in views]

    def bounds(self, view: View) -> Tensor:
        """``(pages,)``: the largest score that a key of each page could have; complete pages are looked at once."""
        high, low = view.pages.get("high"), view.pages.get("low")
        known = 0 if high is None else len(high)
        fresh = view.keys[known * self.page :]
        blocks = [
            pad(fresh, (0, 0, 0, -len(fresh) % self.page), value=fill).view(-1, self.page, fresh.shape[1])
            for fill in (-torch.inf, torch.inf)
        ]
        high, low = (
            new if old is None else torch.cat([old, new])
            for old, new in ((high, blocks[0].amax(1)), (low, blocks[1].amin(1)))
        )
        whole = view.size // self.page
        view.pages.update(high=high[:whole].clone(), low=low[:whole].clone())
        q = view.q[:, -1].float()
        return (q.clamp(min=0) @ high.float().T + q.clamp(max=0) @ low.float().T).amax(0)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return sampled(cls(page=3, whole=1))


@published(
    "delta_reader",
    family="cache",
    kind="policy",
    row=297,
    title="DELTA: Dynamic Layer-Aware Token Attention for Efficient Long-Context Reasoning",
    year=2025,
    fidelity="hand values",
    claim=Claim(
        "reading a quarter of the tokens keeps the recall of the full cache to a point, is no worse than choosing in "
        "every layer, and the pages hold 90% of the attention",
        cells="readers.long_needle",
        holds="readers.keeps_recall",
    ),
)
@dataclass(frozen=True, kw_only=True)
class Delta(Paged):
    """A few layers attend to everything and choose pages for the layers after them, the same for all heads.

        s_p = Σ_{j in p} max over heads of A_ij,   in the layers Δ;   a later layer reads the last Δ's pages

    The layers before the first Δ read everything. Shapes: as `core.policy.View`. Cost: one row of A in the Δ layers.

    Args:
        page: 16. last: L, pages at the end that are always read, 8. chosen: Δ as shares of the depth; the authors'
            layers 2, 14 and 22 of 28.

    Raises:
        ValueError: Δ that are no ascending shares.

    Paper: DELTA, 2025: 64 pages, of the authors' code; before so many tokens everything is read.
    """

    last: int = 8
    chosen: tuple[float, ...] = (2 / 28, 14 / 28, 22 / 28)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (
            not self.chosen
            or list(self.chosen) != sorted(set(self.chosen))
            or not 0 <= self.chosen[0] <= self.chosen[-1] < 1
        ):
            raise wrong("chosen", str(self.chosen), "shares of the depth from 0 up to, but not, 1, ascending")

    def source(self, layer: int, layers: int) -> int | None:
        sources = [round(share * layers) for share in self.chosen]
        before = [source for source in sources if source < layer]
        return None if layer in sources or not before else before[-1]

    def select(self, views: Sequence[View]) -> Sequence[Tensor] | None:
        if self.enough(views[0]):
            return None
        peaks = torch.cat([view.weights(slice(-1, None))[:, 0] for view in views]).amax(0)
        scores = pad(peaks, (0, -len(peaks) % self.page)).view(-1, self.page).sum(1)
        scores = scores - 1e-7 * torch.arange(len(scores), device=scores.device)  # of equal pages the first
        return [self.places(scores, views[0])] * len(views)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return sampled(cls(page=2, last=2, chosen=(0.0,)))
