"""Patterns that people read off maps: how much of a head's mass they explain, and heads that are given them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from regard.analysis.base import HeadAnalysis, Prompt
from regard.analysis.planted import samples
from regard.blocks.block import GatedNetwork
from regard.core.atlas import Claim, published
from regard.core.errors import did_you_mean, wrong
from regard.core.kinds import Sample
from regard.core.tile import Tile
from regard.probes.head_statistics import RowMean

PATTERNS = ("matching", "sentence", "next", "previous")
FIXED = ("next", "previous")
"""Patterns that say of each token which one is looked at, so that nothing is left to learn of the scores."""
HIDDEN = -1e4
"""Added to the scores of what a pattern does not show, as in the authors' code."""


def pattern_masks(ids: Tensor, sentences: Tensor) -> dict[str, Tensor]:
    """What each pattern shows, ``(b, n, n)`` bool.

    matching: other occurrences of the token; all tokens where there is none. sentence: tokens of the same sentence.
    next, previous: the token behind, the token before; none for the last, for the first.

    Args:
        ids: ``(b, n)``. sentences: ``(b, n)`` int64, the number of the sentence that a token is in; -1 for none.
    """
    n = ids.shape[1]
    one = torch.eye(n, dtype=torch.bool, device=ids.device)
    matching = (ids[:, :, None] == ids[:, None]) & ~one
    alone = ~matching.any(2, keepdim=True)
    inside = (sentences[:, :, None] == sentences[:, None]) & (sentences >= 0)[:, :, None]
    after = torch.ones(n, n, device=ids.device)
    after = (after.triu(1) - after.triu(2)).bool().expand(len(ids), -1, -1)
    return {"matching": matching | alone, "sentence": inside, "next": after, "previous": after.mT}


def sentences_of(ids: Tensor, stop: int) -> Tensor:
    """``(b, n)``: the number of each token's sentence; the token ``stop`` ends one and belongs to it."""
    ends = (ids == stop).long()
    return ends.cumsum(1) - ends


class PatternMass(RowMean):
    """Mean weight on what a pattern shows of the keys; rows of which it shows all keys do not count.

    Args:
        pattern: one of `PATTERNS`. stop: the token that ends sentences.
    """

    name = "pattern"

    def __init__(self, pattern: str, stop: int) -> None:
        super().__init__()
        self.pattern, self.stop = pattern, stop

    def rows(self, tile: Tile) -> tuple[Tensor, Tensor]:
        if tile.tokens is None:
            raise wrong("tile", "no tokens", "a subject that tells its token ids")
        ids = tile.tokens.ids
        shown = pattern_masks(ids, sentences_of(ids, self.stop))[self.pattern][:, tile.rows]
        counted = tile.queries & ~shown.all(2) & shown.any(2)
        return (tile.weights * shown[:, None, :, tile.columns]).sum(3), counted


@published(
    "human_patterns",
    family="observe",
    kind="analysis",
    row=336,
    title="Human Guided Exploitation of Interpretable Attention Patterns in Summarization and Topic Segmentation",
    arxiv="2112.05364",
    year=2022,
    aliases=("human_guided_patterns", "pattern_injection"),
    fidelity="authors' code",
    claim=(
        Claim(
            "heads of a model that was trained without patterns look where its task needs it, at twice the chance",
            cells="injected.of_summaries",
            holds="injected.are_found",
        ),
        Claim(
            "with the patterns injected it finds what is in a summary better, with half of the scores learned",
            cells="injected.of_summaries",
            holds="injected.help_to",
        ),
        Claim(
            "so it does where topics change",
            cells="injected.of_segments",
            holds="injected.help_to",
        ),
        Claim(
            "in layers beside those of a pretrained encoder they help to find what is in a summary, too",
            cells="injected.of_pretrained",
            holds="injected.help_to",
        ),
    ),
)
class HumanPatterns(HeadAnalysis):
    """The global relevance of a pattern for a head: the mean weight that its rows give to what the pattern shows.

        GR(P, h) = mean over rows i of Σ_j A_ij [P(i, j)],   of the rows of which P shows something, and not all

    `chance` is what a row that looks everywhere alike would give. Patterns with a relevance far above it, in heads of
    importance, are given to heads of new models by `InjectedAttention`, and of pretrained ones by
    `projected_patterns.ProjectedPatterns`. The claims' texts are drawn: what is claimed is that patterns help, not by
    how much on the paper's corpora.

    Args:
        pattern: "matching", "sentence", "next" or "previous". stop: the token that ends sentences.

    Raises:
        LookupError: another pattern.

    Paper: Li et al., arXiv 2112.05364; masks as in the authors' code.
    """

    name, threshold = "pattern", 0.4

    def __init__(self, pattern: str = "matching", stop: int = 0) -> None:
        if pattern not in PATTERNS:
            wanted = f"one of {', '.join(PATTERNS)}{did_you_mean(pattern, PATTERNS)}"
            raise wrong("pattern", repr(pattern), wanted, LookupError)
        self.pattern, self.stop = pattern, stop

    @classmethod
    def examples(cls) -> list[Sample]:
        draw = torch.Generator().manual_seed(0)
        texts = [Prompt(torch.cat([torch.randperm(11, generator=draw)] * 2)) for _ in range(3)]
        found = samples(cls(), texts, lambda ids: torch.where(torch.arange(22) < 11, -1, torch.arange(22) - 11))
        before = samples(cls("previous"), texts, lambda ids: torch.arange(len(ids)) - 1)
        return [*found, replace(before[0], label="previous")]

    def probe(self, prompt: Prompt) -> PatternMass:
        return PatternMass(self.pattern, self.stop)

    def chance(self, prompts: Sequence[Prompt], causal: bool = False) -> float:
        """The relevance of a head that gives all keys it sees the same."""
        total, rows = 0.0, 0
        for prompt in prompts:
            ids = prompt.ids[None]
            shown = pattern_masks(ids, sentences_of(ids, self.stop))[self.pattern][0]
            seen = torch.ones_like(shown).tril() if causal else torch.ones_like(shown)
            counted = ~shown.all(1) & shown.any(1)
            total += float(((shown & seen).sum(1) / seen.sum(1))[counted].sum())
            rows += int(counted.sum())
        return total / max(rows, 1)


class InjectedAttention(nn.Module):
    """Multi-head attention some of whose heads have a pattern: masked by it, or fixed to it where it names one token.

        learned: softmax(q · k / √d),   masked: softmax((q · k + hidden) / √d),   fixed: softmax(hidden)

    hidden is 0 where the pattern shows a key and −10⁴ elsewhere, so that a row of a fixed head that is shown nothing is
    the mean of all. Fixed heads have no queries and keys.

    Shapes: ``x (b, n, c)``, masks of each pattern ``(b, n, n)`` -> ``(b, n, c)``, and A ``(b, h, n, n)``.

    Args:
        width: c. patterns: of each head, None for learned ones.

    Raises:
        ValueError: heads that do not divide the width. LookupError: another pattern.
    """

    def __init__(self, width: int, patterns: Sequence[str | None]) -> None:
        super().__init__()
        if not patterns or width % len(patterns):
            raise wrong("width", str(width), f"a multiple of the {len(patterns)} heads")
        for pattern in patterns:
            if pattern is not None:
                HumanPatterns(pattern)
        self.patterns, self.size = tuple(patterns), width // len(patterns)
        self.scored = [head for head, pattern in enumerate(patterns) if pattern not in FIXED]
        self.score = nn.Linear(width, 2 * len(self.scored) * self.size)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def weights(self, x: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
        """A ``(b, h, n, n)``."""
        b, n, _ = x.shape
        q, k = self.score(x).view(b, n, 2, len(self.scored), self.size).permute(2, 0, 3, 1, 4)
        scores = x.new_zeros(b, len(self.patterns), n, n)
        if self.scored:
            scores[:, self.scored] = q @ k.mT / self.size**0.5
        hidden = [
            x.new_zeros(b, n, n) if pattern is None else HIDDEN * (~masks[pattern]).to(x.dtype)
            for pattern in self.patterns
        ]
        return (scores + torch.stack(hidden, 1)).softmax(3)

    def forward(self, x: Tensor, masks: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        a = self.weights(x, masks)
        v = self.value(x).unflatten(2, (len(self.patterns), self.size)).transpose(1, 2)
        return self.out((a @ v).transpose(1, 2).flatten(2)), a


class PatternEncoder(nn.Module):
    """An encoder of `InjectedAttention` and gated networks behind norms, with a number for each token.

    Shapes: ``ids (b, n)`` -> ``(b, n)``.

    Args:
        vocabulary, width, layers, inner: sizes. patterns: of the heads of every layer. places: tokens at most. stop:
            the token that ends sentences. seed: of the weights.
    """

    def __init__(
        self,
        vocabulary: int,
        patterns: Sequence[str | None],
        places: int,
        width: int = 32,
        layers: int = 2,
        inner: int = 64,
        stop: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.stop = stop
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(vocabulary, width)
            self.places = nn.Parameter(0.02 * torch.randn(places, width))
            self.attention = nn.ModuleList(InjectedAttention(width, patterns) for _ in range(layers))
            self.networks = nn.ModuleList(GatedNetwork(width, inner) for _ in range(layers))
            self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2 * layers + 1))
            self.read = nn.Linear(width, 1)

    def maps(self, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The numbers of the tokens, and A of each layer."""
        masks, found = pattern_masks(ids, sentences_of(ids, self.stop)), []
        x = self.embedding(ids) + self.places[: ids.shape[1]]
        for i, (attention, network) in enumerate(zip(self.attention, self.networks, strict=True)):
            y, a = attention(self.norms[2 * i](x), masks)
            x = x + y
            x = x + network(self.norms[2 * i + 1](x))
            found.append(a)
        return self.read(self.norms[-1](x))[..., 0], found

    def forward(self, ids: Tensor) -> Tensor:
        return self.maps(ids)[0]
