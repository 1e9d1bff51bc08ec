"""StreamingLLM: attention sinks and the recent tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.policy import Policy, View, sampled


@published(
    "streaming",
    family="cache",
    kind="policy",
    title="Efficient Streaming Language Models with Attention Sinks",
    arxiv="2309.17453",
    year=2023,
    fidelity="third-party code",
    aliases=("streaming_llm",),
    claim=Claim(
        "SmolLM2 goes on with a text in a cache of 192 tokens of 768 as well as where the last 192 are read anew for "
        "every step, to 5% of the perplexity; the same cache without sinks has half as much again",
        cells="policies.streams",
        holds="policies.sinks_hold",
    ),
)
@dataclass(frozen=True, kw_only=True)
class Streaming(Policy):
    """Keeps the first tokens and the most recent ones.

        kept = {j < sinks} ∪ the newest budget − sinks

    Shapes: as `core.policy.View`. Cost: none; with positions in the cache the sinks' keys are turned at each eviction.

    Args:
        sinks: tokens at the beginning, which take the attention that no other token should have.
        positions: ``"text"``: a token keeps its own. ``"cache"``: its place among what is left, so that no distance is
            longer than the cache, however long the text; the model needs rotary positions. The window has no gaps, so
            that the keys of sinks alone are turned, by as many positions as were evicted.

    Raises:
        ValueError: other positions; when it is attached, positions in the cache for a model without rotary ones.

    Paper: Xiao et al., arXiv 2309.17453: 4 sinks, positions in the cache.
    """

    sinks: int = 4
    positions: Literal["text", "cache"] = "text"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions not in ("text", "cache"):
            raise wrong("positions", repr(self.positions), "'text' or 'cache'")

    @property
    def moves(self) -> bool:
        return self.positions == "cache"

    def scores(self, view: View) -> Tensor:
        return view.positions.double()

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return sampled(cls(sinks=1, recent=3, every=2), cls(sinks=2, positions="cache"))
