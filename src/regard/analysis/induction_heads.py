"""Heads by what they look at: the token before, the same token, what followed it."""

from __future__ import annotations

import torch
from torch import Generator

from regard.analysis.base import HeadAnalysis, Prompt
from regard.analysis.planted import last_plus, samples
from regard.core.atlas import Claim, published
from regard.core.kinds import Sample
from regard.probes.head_statistics import DuplicateToken, Induction, PreviousToken


@published(
    "induction_heads",
    family="observe",
    kind="analysis",
    row=353,
    fidelity="hand values",
    title="In-context Learning and Induction Heads",
    arxiv="2209.11895",
    year=2022,
    claim=(
        Claim(
            "few heads match prefixes of random tokens that repeat",
            cells="heads.induction",
            holds="heads.few_match_prefixes",
        ),
        Claim(
            "without them a repetition saves little",
            cells="heads.induction",
            holds="heads.repetition_is_lost_without",
        ),
        Claim(
            "they form in models of two layers, not of one",
            cells="emergence.formed",
            holds="emergence.need_two_layers",
        ),
        Claim(
            "prefix matching and learning in context come in training at the same time",
            cells="emergence.in_training",
            holds="emergence.comes_together",
        ),
        Claim(
            "the head that matches prefixes copies, by the eigenvalues of its weights",
            cells="emergence.with_rows_of_its_own",
            holds="emergence.it_copies",
        ),
    ),
)
class InductionHeads(HeadAnalysis):
    """Prefix matching: mean weight on the token after the last occurrence of the row's own.

    On random tokens repeated once, `repeats`, nothing but the repetition tells where to look. Whether such a head
    copies what it finds, `analysis.copying_heads` tells by its weights; with the keys of the mechanism ``smeared_keys``
    one layer is enough.

    Paper: Olsson et al., arXiv 2209.11895.
    """

    name, threshold = "induction", 0.4

    @classmethod
    def examples(cls) -> list[Sample]:
        return samples(cls(), repeats(50, 13, 3), lambda ids: last_plus(ids, 1))

    def probe(self, prompt: Prompt) -> Induction:
        return Induction()


class PreviousTokenHeads(HeadAnalysis):
    """Mean weight on the token before. Paper: Olsson et al., arXiv 2209.11895."""

    name, threshold = "previous_token", 0.4

    @classmethod
    def examples(cls) -> list[Sample]:
        return samples(cls(), repeats(50, 13, 3), lambda ids: torch.arange(len(ids)) - 1)

    def probe(self, prompt: Prompt) -> PreviousToken:
        return PreviousToken()


class DuplicateTokenHeads(HeadAnalysis):
    """Mean weight on earlier occurrences of the row's own token. Paper: Wang et al., arXiv 2211.00593."""

    name, threshold = "duplicate_token", 0.4

    @classmethod
    def examples(cls) -> list[Sample]:
        return samples(cls(), repeats(50, 13, 3), lambda ids: last_plus(ids, 0))

    def probe(self, prompt: Prompt) -> DuplicateToken:
        return DuplicateToken()


def repeats(vocabulary: int, block: int = 61, texts: int = 4, seed: int = 0, start: int | None = None) -> list[Prompt]:
    """Blocks of random token ids, each repeated once, behind the token ``start`` if one is given."""
    generator = Generator().manual_seed(seed)
    first = torch.tensor([] if start is None else [start], dtype=torch.int64)
    blocks = [torch.randint(vocabulary, (block,), generator=generator) for _ in range(texts)]
    return [Prompt(torch.cat([first, block, block])) for block in blocks]
