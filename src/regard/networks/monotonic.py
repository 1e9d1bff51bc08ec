"""Monotonic attention as a latent variable: where a decoder reads only ever moves forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.networks.encoder_decoder import EncoderDecoder, random_pairs
from regard.networks.writer import Encoded, Remembered

Reads = Literal["hard", "window"]
FAR = -1e30


@dataclass(frozen=True)
class Filtered(Remembered):
    """What is known after a step: the LSTM's ``hidden`` and ``cell``, ``place (b, m)``, log p(a_t = j | y before t),
    ``told (b, m, target)``, log p(y_t | a_t = j), ``fresh (b, 1)``, zero before the first step, then far below, and
    ``scores (b, m)``, e."""

    hidden: Tensor
    cell: Tensor
    place: Tensor
    told: Tensor
    fresh: Tensor
    scores: Tensor

    @property
    def weights(self) -> Tensor:
        """Where the step reads, ``(b, m)``."""
        return self.place.exp()


def checked(reads: str, known: Sequence[str], reach: int) -> tuple[str, int]:
    """What is read at a place, and the reach of a window.

    Raises:
        ValueError: another way to read than the ``known`` ones, or a reach below one.
    """
    if reads not in known:
        raise wrong("reads", repr(reads), f"one of {', '.join(known)}")
    if reach < 1:
        raise wrong("reach", str(reach), "at least 1")
    return reads, reach


class Latent(EncoderDecoder):
    """The base of decoders whose place in the source is a latent variable."""

    def scored(self, reader: Any, hidden: Tensor, encoded: Encoded) -> Tensor:
        """Scores of the keys by states ``(b, H, width)``: ``(b, H, m)``; padding has none."""
        q, k = hidden[:, None], encoded.keys[:, None]
        scores, mask = reader.scores(q, k, encoded.layout, slice(0, q.shape[2]))[:, 0], encoded.layout.key_mask
        return scores if mask is None else scores.masked_fill(~mask[:, None], FAR)

    def written(self, hidden: Tensor, seen: Tensor) -> Tensor:
        """log p(y | c, h) of hidden ``(…, width)`` that belongs to ``seen``."""
        return self.out(torch.tanh(self.say(torch.cat([seen, hidden.expand_as(seen)], -1)))).log_softmax(-1)

    def last(self, encoded: Encoded) -> Tensor:
        """The place of the last key, ``(b, 1)``."""
        mask, keys = encoded.layout.key_mask, encoded.keys
        if mask is None:
            return torch.full((len(keys), 1), keys.shape[1] - 1, device=keys.device)
        return mask.sum(1, keepdim=True) - 1

    def along(self, source: Tensor, target: Tensor, lengths: Tensor | None, path: Tensor) -> tuple[Tensor, Tensor]:
        """log p(a_t | a_{t−1}) and log p(y_t | a), ``(b, n)`` each, of an alignment."""
        raise NotImplementedError

    def loss(
        self,
        source: Tensor,
        target: Tensor,
        real: Tensor,
        lengths: Tensor | None = None,
        path: Tensor | None = None,
        weight: float = 1.0,
    ) -> Tensor:
        """``−log p(y)`` a token as `forward` gives it, or ``−log p(y | a) − weight · log p(a)`` of one alignment.

        Args:
            real: ``(b, n)``, False = padding of the target, at its end. path: a, ``(b, n)``, such as `align`'s; None
                for all. weight: of the places; the authors' code has 0.1.
        """
        if path is None:
            logs = self(source, target, lengths).gather(2, target[..., None])[..., 0]
        else:
            moves, told = self.along(source, target, lengths, path)
            logs = told + weight * moves
        return -(logs * real).sum() / real.sum()


@published(
    "latent_monotonic",
    family="structured",
    kind="network",
    row=344,
    title="A study of latent monotonic attention variants",
    arxiv="2103.16710",
    year=2021,
    aliases=("hard_monotonic_attention", "latent_alignment"),
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
class LatentMonotonic(Latent):
    """A decoder whose place a_t in the source is a latent variable that moves forward with every token.

        p(y, a) = Π_t p(a_t | a_{t−1}) p(y_t | a_t)
        p(a_t = j | a_{t−1} = i) = exp(e_tj) / Σ_{k > i} exp(e_tk) for j > i
        hard: c_tj = k_j,   window: c_tj = Σ_{j − w ≤ k < j + w} softmax_k(e_tk) k_k
        p(y_t | a_t = j) = softmax V tanh(W [c_tj; h_t])

    The first place may be any, and at the last key it stays. e are a reader's scores of h_t, the state of an LSTM over
    y alone. So p(y_t | y before t) is a sum over all alignments, which dynamic programming gives in O(m) a step; that
    is what ``forward`` and `generate` compute. `align` gives the best alignment, `loss` what it is trained by: the
    probability of one alignment, or of all. A decoder that is fed what it read, and segments: `LatentSegmental`.

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
        reader: str = "composed(score=additive)",
        seed: int | None = None,
    ) -> None:
        super().__init__(source, target, width, reader, feed=False, seed=seed)
        self.reads, self.reach = checked(reads, get_args(Reads), reach)

    def start(self, encoded: Encoded) -> Filtered:
        """Before the first step it is at no place."""
        begun = super().start(encoded)
        place = torch.full_like(encoded.keys[..., 0], FAR)
        told = encoded.keys.new_zeros(*place.shape, self.target + 1)
        nothing = torch.zeros_like(place)
        return Filtered(begun.hidden, begun.cell, place, told, nothing[:, :1], nothing)

    def scores(self, hidden: Tensor, encoded: Encoded) -> Tensor:
        """e, ``(b, m)``; padding has none."""
        return self.scored(self.reader, hidden[:, None], encoded)[:, 0]

    def near(self, scores: Tensor) -> Tensor:
        """The softmax of e over the window around each place, ``(b, m, 2 w)``."""
        return F.pad(scores, (self.reach, self.reach - 1), value=FAR).unfold(1, 2 * self.reach, 1).softmax(-1)

    def contexts(self, scores: Tensor, encoded: Encoded) -> Tensor:
        """c, ``(b, m, width)``, for each place that may be read."""
        if self.reads == "hard":
            return encoded.keys
        keys = F.pad(encoded.keys, (0, 0, self.reach, self.reach - 1)).unfold(1, 2 * self.reach, 1)
        return (keys @ self.near(scores)[..., None])[..., 0]

    def advance(
        self, state: Filtered, previous: Tensor, encoded: Encoded
    ) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor, Tensor]:
        """The LSTM's state, e, log Σ exp(e) of keys behind none, the first, … ``(b, m + 1)``, and log p(y | place)."""
        hidden, cell = self.cell(self.embedding(previous), (state.hidden, state.cell))
        scores = self.scores(hidden, encoded)
        ahead = scores.flip(1).logcumsumexp(1).flip(1)
        nothing = self.end(encoded).expand_as(ahead).int().cumsum(1).bool()
        ahead = torch.cat([ahead[:, :1], F.pad(ahead[:, 1:], (0, 1)).masked_fill(nothing, -FAR)], 1)
        seen = self.contexts(scores, encoded)
        return (hidden, cell), scores, ahead, self.written(hidden[:, None], seen)

    def step(self, state: Filtered, previous: Tensor, encoded: Encoded) -> tuple[Filtered, Tensor]:
        """The state, and log p(y | what was written), after the tokens ``previous``."""
        (hidden, cell), scores, ahead, told = self.advance(state, previous, encoded)
        last = state.told.gather(2, previous[:, None, None].expand(-1, state.told.shape[1], 1))[..., 0]
        before = torch.cat([state.fresh, state.place + last], 1).log_softmax(1)
        place = scores + (before - ahead).logcumsumexp(1)[:, :-1]
        place = torch.where(self.end(encoded), torch.logaddexp(place, before[:, 1:]), place)
        fresh = torch.full_like(state.fresh, FAR)
        return Filtered(hidden, cell, place, told, fresh, scores), torch.logsumexp(place[..., None] + told, 1)

    def end(self, encoded: Encoded) -> Tensor:
        """Where the last key is, ``(b, m)``."""
        return torch.arange(encoded.keys.shape[1], device=encoded.keys.device) == self.last(encoded)

    def intermediates(self, *inputs: Any, **named: Any) -> dict[str, Tensor]:
        """``place (b, 1, n, m)``, p(a_t | what was written), and ``read``, the window's weights over keys in the mean
        over places."""
        source, target, *rest = inputs
        encoded = self.encode(source, *rest, **named)
        with torch.no_grad():
            states, _ = self.states(encoded, target)
        place = torch.stack([state.weights for state in states], 1)
        maps = {"place": place[:, None]}
        if self.reads == "window":
            near = torch.stack([self.near(state.scores) for state in states], 1) * place[..., None]
            m, wide = place.shape[2], 2 * self.reach
            keys = torch.arange(m, device=place.device)[:, None] + torch.arange(wide, device=place.device)
            read = place.new_zeros(*place.shape[:2], m + wide - 1).index_add(2, keys.flatten(), near.flatten(2))
            maps["read"] = read[:, None, :, self.reach : self.reach + m]
        return maps

    def alignment(self, source: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """p(a_t | what was written), ``(b, n, m)``."""
        return self.looked(source, target, lengths)["reader"][:, 0]

    def parts(self, source: Tensor, target: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For each step e ``(n, b, m)``, its sums ahead ``(n, b, m + 1)``, log p(y_t | place) of the target's tokens
        ``(n, b, m)``; and where the last key is."""
        encoded, found = self.encode(source, lengths), []
        state = self.start(encoded)
        first = torch.full_like(target[:, :1], self.target)
        for previous, token in zip(torch.cat([first, target[:, :-1]], 1).unbind(1), target.unbind(1), strict=True):
            (hidden, cell), scores, ahead, told = self.advance(state, previous, encoded)
            state = Filtered(hidden, cell, state.place, state.told, state.fresh, scores)
            found.append((scores, ahead, told.gather(2, token[:, None, None].expand(-1, told.shape[1], 1))[..., 0]))
        scores, ahead, told = (torch.stack(each) for each in zip(*found, strict=True))
        return scores, ahead, told, self.end(encoded)

    @torch.no_grad()
    def align(self, source: Tensor, target: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The likeliest places ``(b, n)`` of a target, by Viterbi's algorithm."""
        scores, ahead, told, end = self.parts(source, target, lengths)
        best, backs = torch.full_like(scores[0], FAR), []
        fresh, own = torch.zeros_like(best[:, :1]), torch.arange(best.shape[1], device=best.device)
        for e, z, y in zip(scores, ahead, told, strict=True):
            before = torch.cat([fresh, best], 1)
            reached, where = (before - z).cummax(1)
            moved, where = reached[:, :-1] + e, where[:, :-1] - 1
            stays = end & (best > moved)
            backs.append(torch.where(stays, own, where))
            best, fresh = torch.where(stays, best, moved) + y, torch.full_like(fresh, FAR)
        place, path = best.argmax(1), []
        for where in reversed(backs):
            path.append(place)
            place = where.gather(1, place[:, None])[:, 0].clamp(min=0)
        return torch.stack(path[::-1], 1)

    def along(self, source: Tensor, target: Tensor, lengths: Tensor | None, path: Tensor) -> tuple[Tensor, Tensor]:
        scores, ahead, told, end = self.parts(source, target, lengths)
        start = torch.cat([torch.zeros_like(path[:, :1]), path[:, :-1] + 1], 1)

        def at(x: Tensor, place: Tensor) -> Tensor:
            return x.transpose(0, 1).gather(2, place[..., None])[..., 0]

        before = torch.cat([torch.full_like(path[:, :1], -1), path[:, :-1]], 1)
        stays = (path == before) & end.expand(len(path), -1).gather(1, path)
        return torch.where(stays, 0.0, at(scores, path) - at(ahead, start)), at(told, path)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        given = {"inputs": random_pairs, "output": (7, 11)}
        made = {"hard": cls(13, 11, 8, seed=0), "window": cls(13, 11, 8, "window", 2, seed=0)}
        return [Sample(label, network, given) for label, network in made.items()]
