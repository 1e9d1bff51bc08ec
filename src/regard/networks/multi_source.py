"""A translator that reads several sources at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.build import build_text
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.networks.encoder_decoder import Decoded, EncoderDecoder
from regard.networks.writer import Encoded

Strategy = Literal["flat", "hierarchical"]


@published(
    "multi_source",
    family="structured",
    kind="network",
    row=218,
    title="Attention Strategies for Multi-Source Sequence-to-Sequence Learning",
    arxiv="1704.06567",
    year=2017,
    aliases=("flat_attention", "hierarchical_attention"),
    fidelity="hand values",
    claim=(
        Claim(
            "where each word is in one of two sources, both strategies are 10 points better than one source alone",
            cells="translation.sources",
            holds="translation.two_are_better",
        ),
        Claim(
            "they look at the source that has the word in at least 85% of the steps",
            cells="translation.sources",
            holds="translation.look_at_the_right_one",
        ),
    ),
)
class MultiSource(EncoderDecoder):
    """An encoder–decoder whose reader attends to several sources, all at once or one after the other.

        flat:          A = softmax over the tokens of all sources of v · tanh(W h + U_s k_sj) + b_s,
                       c = Σ A_sj V_s k_sj
        hierarchical:  c_s = Σ_j A_sj k_sj with a softmax for each source,
                       β = softmax_s v' · tanh(W' h + U'_s c_s) + b_s,   c = Σ_s β_s V'_s c_s
        sentinel:      one more source of one token, z = σ(W_z [x; h_{t−1}]) ⊙ h_t

    Each source has its own encoder, and its own U, b and V; v and W are shared. With one source and V the identity both
    are additive attention.

    Shapes: ``source (b, s, m)`` ids, ``target (b, n)``, ``lengths (b, s)`` -> logits ``(b, n, target)``.

    Args:
        source, target, width, seed: as in `EncoderDecoder`. sources: s. strategy: "flat" or "hierarchical".
        sentinel: whether what the decoder knows is one more source, the last. shared: whether contexts are projected by
            the maps of keys, V = U, or by maps of their own.

    Raises:
        ValueError: another strategy, or no sources.

    Paper: Libovický and Helcl, arXiv 1704.06567, with b as the authors' code has it.
    """

    def __init__(
        self,
        source: int,
        target: int,
        width: int = 64,
        sources: int = 2,
        strategy: Strategy = "hierarchical",
        sentinel: bool = False,
        shared: bool = False,
        seed: int | None = None,
    ) -> None:
        if strategy not in get_args(Strategy):
            raise wrong("strategy", repr(strategy), f"one of {', '.join(get_args(Strategy))}")
        if sources < 1:
            raise wrong("sources", str(sources), "at least 1")
        super().__init__(source, target, width, "composed(score=additive)", seed=seed)
        self.sources, self.strategy, parts = sources, strategy, sources + sentinel
        self.others = nn.ModuleList(
            nn.LSTM(width, width // 2, batch_first=True, bidirectional=True) for _ in range(sources - 1)
        )
        self.query = nn.Linear(width, width)
        flat = strategy == "flat"
        self.keys = maps(width, parts if flat else sources)
        if not flat:
            self.over = build_text("composed(score=additive)", {"heads": 1, "head_dim": width})
            self.over_query, self.over_keys = nn.Linear(width, width), maps(width, parts)
        self.own_values = None if shared else maps(width, parts)
        self.offsets = nn.Parameter(torch.zeros(parts))
        self.known_gate = nn.Linear(2 * width, width) if sentinel else None

    @property
    def values(self) -> nn.ModuleList:
        """V of each source: maps of their own, or those of the keys that are weighed last."""
        if self.own_values is not None:
            return self.own_values
        return self.keys if self.strategy == "flat" else self.over_keys

    def encode(self, source: Tensor, lengths: Tensor | None = None) -> Encoded:
        """The keys of all sources, one after the other, ``(b, s m, width)``, and the mean of their ends."""
        if source.dim() != 3 or source.shape[1] != self.sources:
            raise wrong("source", f"shape {tuple(source.shape)}", f"(b, {self.sources}, m)")
        found = [
            self.encoded_by(encoder, source[:, place], None if lengths is None else lengths[:, place])  # pyright: ignore
            for place, encoder in enumerate((self.encoder, *self.others))
        ]
        masks = [part.layout.key_mask for part in found if part.layout.key_mask is not None]
        keys, end = torch.cat([part.keys for part in found], 1), torch.stack([part.end for part in found]).mean(0)
        return Encoded(keys, end, Layout(key_mask=torch.cat(masks, 1) if masks else None))

    def known(self, fed: Tensor, before: Decoded, cell: Tensor) -> Tensor | None:
        """The gate ``σ(W_z [x; h_{t−1}])`` of the sentinel; None without one."""
        return None if self.known_gate is None else torch.sigmoid(self.known_gate(torch.cat([fed, before.hidden], -1)))

    def read(self, hidden: Tensor, encoded: Encoded, sentinel: Tensor | None, place: Tensor | None = None) -> Tensor:
        """What both strategies give to a state ``(b, width)``; ``sentinel`` is what `known` says."""
        parts = list(encoded.keys.chunk(self.sources, 1))
        own = [] if sentinel is None else [(sentinel * hidden)[:, None]]
        if self.strategy == "flat":
            return self.joined(self.reader, self.query(hidden), [*parts, *own], self.keys, encoded.layout.key_mask)
        q, mask = self.query(hidden)[:, None, None], encoded.layout.key_mask
        masks = [None] * self.sources if mask is None else mask.chunk(self.sources, 1)
        contexts = [
            self.reader(q, project(part)[:, None], part[:, None], Layout(key_mask=real))[:, 0]  # pyright: ignore
            for project, part, real in zip(self.keys, parts, masks, strict=True)
        ]
        return self.joined(self.over, self.over_query(hidden), [*contexts, *own], self.over_keys, None)

    def joined(
        self, reader: Any, query: Tensor, parts: list[Tensor], keys: nn.ModuleList, mask: Tensor | None
    ) -> Tensor:
        """One softmax over the vectors of all parts, each ``(b, tokens, width)`` with maps and an offset of its own."""
        projected, values = (
            torch.cat([project(part) for project, part in zip(projects, parts, strict=True)], 1)[:, None]
            for projects in (keys, self.values)
        )
        counts = torch.tensor([part.shape[1] for part in parts], device=query.device)
        bias = self.offsets.repeat_interleave(counts)[None, None, None]
        real = None if mask is None else F.pad(mask, (0, projected.shape[2] - mask.shape[1]), value=True)
        return reader(query[:, None, None], projected, values, Layout(key_mask=real, bias=bias))[:, 0, 0]

    def shares(self, source: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What each source, and behind them the sentinel, gets of each step's attention; ``(b, n, s or s + 1)``, of sum
        one."""
        with torch.no_grad():
            maps = self.intermediates(source, target, lengths)
        if self.strategy == "hierarchical":
            return torch.cat([a for name, a in maps.items() if name.startswith("over")], 2)[:, 0]
        weights = torch.cat(list(maps.values()), 2)[:, 0]
        m = weights.shape[2] // self.sources
        return torch.stack([part.sum(-1) for part in weights.split(m, 2)], -1)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        made = {"flat": cls(13, 11, 8, 2, "flat", seed=0), "hierarchical": cls(13, 11, 8, 3, seed=0)}
        made["flat, sentinel"] = cls(13, 11, 8, 2, "flat", sentinel=True, seed=0)
        made["sentinel, shared"] = cls(13, 11, 8, 2, sentinel=True, shared=True, seed=0)
        return [
            Sample(label, network, {"inputs": partial(several, sources=network.sources), "output": (7, 11)})
            for label, network in made.items()
        ]


def maps(width: int, count: int) -> nn.ModuleList:
    """As many linear maps."""
    return nn.ModuleList(nn.Linear(width, width) for _ in range(count))


def several(batch: int, seed: int, sources: int = 2) -> tuple[Tensor, Tensor]:
    """Sources and a target for examples."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(13, (batch, sources, 9), generator=generator)
    return source, torch.randint(11, (batch, 7), generator=generator)
