"""StreamingLLM: attention sinks and the recent tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample
from regard.core.policy import Policy, View, sampled


@published(
    "streaming",
    family="cache",
    kind="policy",
    title="Efficient Streaming Language Models with Attention Sinks",
    arxiv="2309.17453",
    year=2023,
    missing="positions within the cache: tokens keep those that they had in the text",
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

    Shapes: as `core.policy.View`. Cost: none.

    Args:
        sinks: tokens at the beginning, which take the attention that no other token should have.

    Paper: Xiao et al., arXiv 2309.17453: 4 sinks. There positions are those in the cache, so that texts may become
    longer than the model's positions; here a token keeps its own.
    """

    sinks: int = 4

    def scores(self, view: View) -> Tensor:
        return view.positions.double()

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return sampled(cls(sinks=1, recent=3, every=2))
