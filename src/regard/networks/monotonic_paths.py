"""Latent monotonic attention whose decoder is fed what it read: each place keeps the best way that led to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.build import build_text
from regard.core.kinds import Sample
from regard.networks.encoder_decoder import random_pairs
from regard.networks.monotonic import FAR, Latent, checked
from regard.networks.writer import Encoded, Remembered

Reads = Literal["hard", "window", "segment"]


@dataclass(frozen=True)
class Paths(Remembered):
    """What is known after a step, of each place i of the step before and j of its own; the first of each is none.

    ``hidden`` and ``cell (b, m + 1, width)`` of the LSTM; ``joint (b, m + 1, m + 1)``, log p(a_{t−1} = i, a_t = j | y
    before t); ``seen (b, m + 1, m + 1, width)``, c; ``told (b, m + 1, m + 1, target)``, log p(y_t | i, j).
    """

    hidden: Tensor
    cell: Tensor
    joint: Tensor
    seen: Tensor
    told: Tensor

    @property
    def weights(self) -> Tensor:
        """p(a_t | what was written), ``(b, m)``."""
        return self.joint[..., 1:].logsumexp(1).exp()


@published(
    "latent_segmental",
    family="structured",
    kind="network",
    row=344,
    title="A study of latent monotonic attention variants",
    arxiv="2103.16710",
    year=2021,
    aliases=("segmental_attention", "fed_monotonic_attention"),
    fidelity="hand values",
    claim=(
        Claim(
            "it makes no more errors than soft attention over all of the source, to half a point",
            cells="monotone.segments()",
            holds="monotone.is_as_good",
        ),
        Claim(
            "on sources four times as long as those it learned from it loses a fifth of what soft attention loses",
            cells="monotone.segments()",
            holds="monotone.keeps_its_place",
        ),
        Claim("what it reads never goes back", cells="monotone.segments()", holds="monotone.never_goes_back"),
    ),
)
class LatentSegmental(Latent):
    """A decoder that is fed what it read, at a latent place that moves forward; it reads the segment in between.

        h_t = LSTM([x_{t−1}; c_{t−1}], h_{t−1})
        p(a_t = j | a_{t−1} = i) = softmax_j(f_tj over j ≥ s),   s = min(i + 1, last)
        segment: c = Σ_{s ≤ k ≤ j} softmax_k(e_tk) k_k,   window: over j − w ≤ k < j + w,   hard: c = k_j
        p(y_t | i, j) = softmax V tanh(W [c; h_t])

    e and f are scores of two readers for segments, and the same for the others. Since h depends on all that was read,
    no sum over alignments is exact: each place keeps the hypothesis of the best way that led to it, and its
    probability is the sum over the ways. `forward`, `generate` and `align` compute with these; without ``feed`` h is
    the same for all ways and the sums are exact. The cost of a step is O(m²), O(m³) where segments or windows are read.

    Shapes: ``source (b, m)``, ``target (b, n)`` ids, ``lengths (b,)`` -> log-probabilities ``(b, n, target)``.

    Args:
        source, target, width, seed: as in `EncoderDecoder`. reads: "segment", "window" or "hard". reach: w, of a
            window. reader: a mechanism that scores queries and keys and reads no places. feed: c to the next step.

    Raises:
        ValueError: another way to read, or a reach below one.

    Paper: Zeyer, Schlüter and Ney, arXiv 2103.16710. The decoder around it is Luong's; the authors' code counts p(a)
    by a power of 0.1 when it searches segments, here all of it counts.
    """

    def __init__(
        self,
        source: int,
        target: int,
        width: int = 64,
        reads: Reads = "segment",
        reach: int = 5,
        reader: str = "composed(score=additive)",
        feed: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__(source, target, width, reader, feed=feed, seed=seed)
        self.reads, self.reach = checked(reads, get_args(Reads), reach)
        self.mover = build_text(reader, {"heads": 1, "head_dim": width}) if reads == "segment" else None

    def looked_at(self, hidden: Tensor, first: Tensor, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """log p(a_t = j | i) ``(b, H, m)``, and c ``(b, H, m, width)``, of hypotheses that may go on at ``first``."""
        read = self.scored(self.reader, hidden, encoded)
        move = read if self.mover is None else self.scored(self.mover, hidden, encoded)
        place = torch.arange(read.shape[2], device=read.device)
        moves = move.masked_fill(place < first[..., None], 2 * FAR).log_softmax(-1)
        if self.reads == "hard":
            return moves, encoded.keys[:, None].expand(-1, hidden.shape[1], -1, -1)
        j, k = place[:, None], place
        near = (k >= j - self.reach) & (k < j + self.reach)
        near = (k >= first[..., None, None]) & (k <= j) if self.reads == "segment" else near[None, None]
        shares = read[:, :, None].masked_fill(~near, FAR).softmax(-1)
        return moves, shares @ encoded.keys[:, None]

    def next(self, x: Tensor, seen: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """The LSTM's step of hypotheses, ``(b, H, width)`` each, after the tokens x ``(b, width)``."""
        fed = x[:, None].expand_as(hidden)
        fed = torch.cat([fed, seen], -1) if self.feed else fed
        states = self.cell(fed.flatten(0, 1), (hidden.flatten(0, 1), cell.flatten(0, 1)))
        hidden, cell = (state.unflatten(0, (len(x), -1)) for state in states)
        return hidden, cell

    def start(self, encoded: Encoded) -> Paths:
        """Before the first step it is at no place."""
        begun, (b, m, width) = super().start(encoded), encoded.keys.shape
        hidden, cell = (x[:, None].expand(-1, m + 1, -1) for x in (begun.hidden, begun.cell))
        nothing = encoded.keys.new_zeros(b, m + 1, m + 1)
        joint = torch.full_like(nothing, FAR)
        joint[:, 0, 0] = 0
        seen, told = (nothing[..., None].expand(-1, -1, -1, size) for size in (width, self.target + 1))
        return Paths(hidden, cell, joint, seen, told)

    def arrived(self, state: Paths, previous: Tensor, best: bool) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """log p of each place ``(b, m + 1)``; hidden, cell and c of its best way; and the place that it came from."""
        told = state.told.gather(3, previous[:, None, None, None].expand(*state.joint.shape, 1))[..., 0]
        top, came = (state.joint + told).max(1)
        row, own = (torch.arange(size, device=came.device) for size in came.shape)
        kept = (state.hidden[row[:, None], came], state.cell[row[:, None], came], state.seen[row[:, None], came, own])
        return top if best else torch.logsumexp(state.joint + told, 1), kept, came

    def moved(self, state: Paths, previous: Tensor, encoded: Encoded, best: bool) -> tuple[Paths, Tensor]:
        """The state after the tokens ``previous``, with log p summed over ways or of the best; and whence they came."""
        place, (hidden, cell, seen), came = self.arrived(state, previous, best)
        hidden, cell = self.next(self.embedding(previous), seen, hidden, cell)
        first = torch.minimum(torch.arange(place.shape[1], device=place.device)[None], self.last(encoded))
        moves, seen = self.looked_at(hidden, first, encoded)
        place = place if best else place.log_softmax(1)
        joint, seen = F.pad(place[..., None] + moves, (1, 0), value=FAR), F.pad(seen, (0, 0, 1, 0))
        return Paths(hidden, cell, joint, seen, self.written(hidden[:, :, None], seen)), came

    def step(self, state: Paths, previous: Tensor, encoded: Encoded) -> tuple[Paths, Tensor]:
        """The state, and log p(y | what was written), after the tokens ``previous``."""
        state, _ = self.moved(state, previous, encoded, best=False)
        return state, torch.logsumexp(state.joint[..., None] + state.told, (1, 2))

    def intermediates(self, *inputs: Any, **named: Any) -> dict[str, Tensor]:
        """``reader (b, 1, n, m)``, p(a_t | what was written)."""
        return self.looked(*inputs, **named)

    @torch.no_grad()
    def align(self, source: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The likeliest places ``(b, n)`` of a target that are found, by Viterbi's algorithm with one way a place."""
        encoded, backs = self.encode(source, lengths), []
        state, first = self.start(encoded), torch.full_like(target[:, :1], self.target)
        for previous in torch.cat([first, target[:, :-1]], 1).unbind(1):
            state, came = self.moved(state, previous, encoded, best=True)
            backs.append(came)
        place, _, came = self.arrived(state, target[:, -1], best=True)
        at, path = place.argmax(1), []
        for back in reversed([*backs[1:], came]):
            path.append(at - 1)
            at = back.gather(1, at[:, None])[:, 0]
        return torch.stack(path[::-1], 1)

    def along(self, source: Tensor, target: Tensor, lengths: Tensor | None, path: Tensor) -> tuple[Tensor, Tensor]:
        encoded, found = self.encode(source, lengths), []
        begun, previous = super().start(encoded), torch.full_like(target[:, 0], self.target)
        hidden, cell = begun.hidden[:, None], begun.cell[:, None]
        seen, first, last = torch.zeros_like(hidden), torch.zeros_like(path[:, :1]), self.last(encoded)
        for token, place in zip(target.unbind(1), path.unbind(1), strict=True):
            hidden, cell = self.next(self.embedding(previous), seen, hidden, cell)
            moves, every = self.looked_at(hidden, first, encoded)
            seen = every.gather(2, place[:, None, None, None].expand(-1, 1, 1, every.shape[3]))[:, :, 0]
            told = self.written(hidden, seen)[:, 0].gather(1, token[:, None])[:, 0]
            found.append((moves[:, 0].gather(1, place[:, None])[:, 0], told))
            previous, first = token, torch.minimum(place[:, None] + 1, last)
        moves, told = (torch.stack(each, 1) for each in zip(*found, strict=True))
        return moves, told

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        given = {"inputs": random_pairs, "output": (7, 11)}
        made = {
            "segments": cls(13, 11, 8, seed=0),
            "segments, not fed": cls(13, 11, 8, feed=False, seed=0),
            "window": cls(13, 11, 8, "window", 2, seed=0),
            "hard": cls(13, 11, 8, "hard", seed=0),
        }
        return [Sample(label, network, given) for label, network in made.items()]
