"""Attention sinks: heads whose first token receives more from all later ones than a threshold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from regard.analysis.base import HeadAnalysis, Prompt, sample_moments
from regard.analysis.planted import samples
from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.probes.head_statistics import Moments
from regard.probes.places import ColumnMeans


@published(
    "sink_emergence",
    family="observe",
    kind="analysis",
    row=212,
    fidelity="hand values",
    title="When Attention Sink Emerges in Language Models: An Empirical View",
    arxiv="2410.10781",
    year=2024,
    aliases=("sink_heads",),
    claim=(
        Claim(
            "the first token is a sink in most heads",
            cells="heads.sinks",
            holds="heads.the_first_token",
        ),
        Claim(
            "other tokens are one in few",
            cells="heads.sinks",
            holds="heads.no_other_token",
        ),
        Claim(
            "sinks emerge in training with softmax, and do not with sigmoid attention: Bigram-Backcopy, one head",
            cells="dormant.emergence()",
            holds="dormant.emerges_with_softmax",
        ),
        Claim(
            "how many there are depends on how a model is trained: fewer with small steps, not more without decay",
            cells="sink_settings.grid",
            holds="sink_settings.depends_on_training",
        ),
        Claim(
            "a learned key without a value takes what they would take",
            cells="dormant.of_mechanism()",
            holds="dormant.is_absorbed",
        ),
    ),
)
class SinkHeads(HeadAnalysis):
    """How often a token is a head's sink: its column's mean, from the rows at and after it, exceeds ε.

        sink_k = mean over texts of 1[mean_{i >= k} A_ik > ε]

    Texts of exactly ``tokens`` tokens, see `windows`. The model's own figure is the mean over all heads. The paper's
    learnable key is the mechanism `key_bias`; its grid of training settings is that of the claims.

    Args:
        tokens: T. epsilon: ε. position: k, of the token, 0 for the first.

    Paper: Gu et al., arXiv 2410.10781 (T = 64, ε = 0.3).
    """

    name, threshold = "sink", 0.5

    @classmethod
    def examples(cls) -> list[Sample]:
        data = [Prompt(torch.randint(0, 50, (23,), generator=torch.Generator().manual_seed(i))) for i in range(4)]
        return samples(cls(23), data, torch.zeros_like)

    def __init__(self, tokens: int = 64, epsilon: float = 0.3, position: int = 0) -> None:
        if not 0 <= position < tokens:
            raise wrong("position", str(position), f"0 to {tokens - 1}")
        self.tokens, self.epsilon, self.position = tokens, epsilon, position

    def probe(self, prompt: Prompt) -> ColumnMeans:
        return ColumnMeans(self.tokens, self.epsilon)

    def found(self, probe: ColumnMeans) -> Mapping[int, Moments]:
        return sample_moments(
            {layer: (probe.means(layer)[:, :, self.position] > self.epsilon).double() for layer in probe.sums}
        )


def windows(ids: Sequence[int] | Tensor, tokens: int = 64, most: int = 16) -> Iterator[Prompt]:
    """Texts of ``tokens`` tokens cut from a longer one, evenly spread, at most ``most``.

    Raises:
        ValueError: it is shorter.
    """
    every = torch.as_tensor(ids)
    if len(every) < tokens:
        raise wrong("text", f"{len(every)} tokens", f"at least {tokens}, the windows in which sinks are looked for")
    count = min(most, len(every) // tokens)
    starts = torch.linspace(0, len(every) - tokens, count).long().tolist()
    return (Prompt(every[start : start + tokens]) for start in starts)
