"""Monotonic attention as a latent variable: where a decoder reads only ever moves forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.networks.encoder_decoder import EncoderDecoder, random_pairs
from regard.networks.writer import Encoded, Remembered

Reads = Literal["hard", "window"]
FAR = -1e30


@dataclass(frozen=True)
class Filtered(Remembered):
    """What is known after a step: the LSTM's ``hidden`` and ``cell``, ``place (b, m)``, log p(a_t = j | y before t),
    and ``told (b, m, target)``, log p(y_t | a_t = j)."""

    hidden: Tensor
    cell: Tensor
    place: Tensor
    told: Tensor

    @property
    def weights(self) -> Tensor:
        """Where the step reads, ``(b, m)``."""
        return self.place.exp()


@published(
    "latent_monotonic",
    family="structured",
    kind="network",
    row=344,
    title="A study of latent monotonic attention variants",
    arxiv="2103.16710",
    year=2021,
    aliases=("hard_monotonic_attention", "latent_alignment"),
    missing="segmental attention, and a decoder that is fed what it read",
    fidelity="hand values",
    claim=(
        Claim(
            "it makes no more errors than soft attention over all of the source, to half a point",
            cells="monotone.written",
            holds="monotone.is_as_good",
        ),
        Claim(
            "on sources four times as long as those it learned from it loses a fifth of what soft attention loses",
            cells="monotone.written",
            holds="monotone.keeps_its_place",
        ),
        Claim("what it reads never goes back", cells="monotone.written", holds="monotone.never_goes_back"),
    ),
)
class LatentMonotonic(EncoderDecoder):
    """A decoder whose place a_t in the source is a latent variable that never falls.

        p(y, a) = Π_t p(a_t | a_{t−1}) p(y_t | a_t),   p(a_t = j | a_{t−1} = i) = exp(e_tj) / Σ_{k ≥ i} exp(e_tk)
        hard: c_tj = k_j,   window: c_tj = Σ_{|k − j| ≤ w} softmax_k(e_tk) k_k
        p(y_t | a_t = j) = softmax V tanh(W [c_tj; h_t])

    e are a reader's scores of h_t, the state of an LSTM over y alone. So p(y_t | y before t) is a sum over all
    alignments, which dynamic programming gives in O(m) a step; that is what ``forward`` and `generate` compute. `align`
    gives the best alignment, `loss` what it is trained by: the best alignment's probability, or that of all.

    Shapes: ``source (b, m)``, ``target (b, n)`` ids, ``lengths (b,)`` -> log-probabilities ``(b, n, target)``.

    Args:
        source, target, width, seed: as in `EncoderDecoder`. reads: "hard" or "window". reach: w, on either side.
        reader: a mechanism that scores queries and keys and reads no places.

    Raises:
        ValueError: another way to read, or a reach below one.

    Paper: Zeyer, Schlüter and Ney, arXiv 2103.16710.
    """

    def __init__(
        self,
        source: int,
        target: int,
        width: int = 64,
        reads: Reads = "hard",
        reach: int = 5,
        reader: str = "luong_general",
        seed: int | None = None,
    ) -> None:
        super().__init__(source, target, width, reader, feed=False, seed=seed)
        if reads not in get_args(Reads):
            raise wrong("reads", repr(reads), f"one of {', '.join(get_args(Reads))}")
        if reach < 1:
            raise wrong("reach", str(reach), "at least 1")
        self.reads, self.reach = reads, reach

    def start(self, encoded: Encoded) -> Filtered:
        """Before the first step all places but the first are ruled out."""
        begun = super().start(encoded)
        place = torch.full_like(encoded.keys[..., 0], FAR)
        place = torch.cat([torch.zeros_like(place[:, :1]), place[:, 1:]], 1)
        return Filtered(begun.hidden, begun.cell, place, encoded.keys.new_zeros(*place.shape, self.target + 1))

    def scores(self, hidden: Tensor, encoded: Encoded) -> Tensor:
        """e, ``(b, m)``; padding has none."""
        reader: Any = self.reader
        q, k = hidden[:, None, None], encoded.keys[:, None]
        scores = reader.scores(q, k, encoded.layout, slice(0, 1))[:, 0, 0]
        mask = encoded.layout.key_mask
        return scores if mask is None else scores.masked_fill(~mask, FAR)

    def contexts(self, hidden: Tensor, encoded: Encoded) -> Tensor:
        """c, ``(b, m, width)``, for each place that may be read."""
        if self.reads == "hard":
            return encoded.keys
        m, reader = encoded.keys.shape[1], self.reader
        place = torch.arange(m, device=hidden.device)
        near = (place[:, None] - place).abs() <= self.reach
        q, k = hidden[:, None, None].expand(-1, -1, m, -1), encoded.keys[:, None]
        layout = Layout(key_mask=encoded.layout.key_mask, mask=near[None, None])
        return reader(q, k, k, layout)[:, 0]  # pyright: ignore[reportOptionalCall]

    def advance(
        self, state: Filtered, previous: Tensor, encoded: Encoded
    ) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor, Tensor]:
        """The LSTM's state, e, log Σ_{k ≥ i} exp(e_k) and log p(y | place) of a step."""
        hidden, cell = self.cell(self.embedding(previous), (state.hidden, state.cell))
        scores = self.scores(hidden, encoded)
        ahead = scores.flip(1).logcumsumexp(1).flip(1)
        seen = self.contexts(hidden, encoded)
        said = torch.tanh(self.say(torch.cat([seen, hidden[:, None].expand_as(seen)], -1)))
        return (hidden, cell), scores, ahead, self.out(said).log_softmax(-1)

    def step(self, state: Filtered, previous: Tensor, encoded: Encoded) -> tuple[Filtered, Tensor]:
        """The state, and log p(y | what was written), after the tokens ``previous``."""
        (hidden, cell), scores, ahead, told = self.advance(state, previous, encoded)
        last = state.told.gather(2, previous[:, None, None].expand(-1, state.told.shape[1], 1))[..., 0]
        before = (state.place + last).log_softmax(1)
        place = scores + (before - ahead).logcumsumexp(1)
        return Filtered(hidden, cell, place, told), torch.logsumexp(place[..., None] + told, 1)

    def intermediates(self, *inputs: Any, **named: Any) -> dict[str, Tensor]:
        """What the reader reads around each place, and ``place (b, 1, n, m)``, p(a_t | what was written)."""
        maps = super().intermediates(*inputs, **named)
        return maps | {"place": self.looked(*inputs, **named)["reader"]}

    def alignment(self, source: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """p(a_t | what was written), ``(b, n, m)``."""
        return self.looked(source, target, lengths)["reader"][:, 0]

    def parts(self, source: Tensor, target: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """For each step, ``(n, b, m)``: e, log Σ_{k ≥ i} exp(e_k), and log p(y_t | place) of the target's tokens."""
        encoded, found = self.encode(source, lengths), []
        state = self.start(encoded)
        first = torch.full_like(target[:, :1], self.target)
        for previous, token in zip(torch.cat([first, target[:, :-1]], 1).unbind(1), target.unbind(1), strict=True):
            (hidden, cell), scores, ahead, told = self.advance(state, previous, encoded)
            state = Filtered(hidden, cell, state.place, state.told)
            found.append((scores, ahead, told.gather(2, token[:, None, None].expand(-1, told.shape[1], 1))[..., 0]))
        scores, ahead, told = (torch.stack(each) for each in zip(*found, strict=True))
        return scores, ahead, told

    @torch.no_grad()
    def align(self, source: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The likeliest places ``(b, n)`` of a target, by Viterbi's algorithm."""
        scores, ahead, told = self.parts(source, target, lengths)
        best = torch.full_like(scores[0], FAR)
        best[:, 0], backs = 0, []
        for e, z, y in zip(scores, ahead, told, strict=True):
            reached, where = (best - z).cummax(1)
            best = reached + e + y
            backs.append(where)
        place, path = best.argmax(1), []
        for where in reversed(backs):
            path.append(place)
            place = where.gather(1, place[:, None])[:, 0]
        return torch.stack(path[::-1], 1)

    def loss(
        self,
        source: Tensor,
        target: Tensor,
        real: Tensor,
        lengths: Tensor | None = None,
        path: Tensor | None = None,
    ) -> Tensor:
        """``−log p(y)`` a token over all alignments, or ``−log p(y, a)`` of one, `align`'s or that which is given.

        Args:
            real: ``(b, n)``, False = padding of the target, at its end. path: a, ``(b, n)``; None for all.
        """
        if path is None:
            logs = self(source, target, lengths).gather(2, target[..., None])[..., 0]
            return -(logs * real).sum() / real.sum()
        scores, ahead, told = self.parts(source, target, lengths)
        start = torch.cat([torch.zeros_like(path[:, :1]), path[:, :-1]], 1)

        def along(x: Tensor, place: Tensor) -> Tensor:
            return x.transpose(0, 1).gather(2, place[..., None])[..., 0]

        logs = along(scores + told, path) - along(ahead, start)
        return -(logs * real).sum() / real.sum()

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        given = {"inputs": random_pairs, "output": (7, 11)}
        made = {"hard": cls(13, 11, 8, seed=0), "window": cls(13, 11, 8, "window", 2, seed=0)}
        return [Sample(label, network, given) for label, network in made.items()]
