"""A recurrent encoder, and a recurrent decoder that reads what was encoded by any mechanism."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from regard.core.build import build_text
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.mechanisms.scored.luong import LocalM
from regard.mechanisms.scored.sentinel import Sentinel
from regard.networks.writer import Encoded, Remembered, Writer


@dataclass(frozen=True)
class Decoded(Remembered):
    """What the decoder remembers: ``hidden``, ``cell`` and what it has said of the last step, ``(b, width)`` each, and
    how many steps there were, ``(b,)``."""

    hidden: Tensor
    cell: Tensor
    said: Tensor
    place: Tensor


class EncoderDecoder(Writer):
    """An LSTM that reads a source both ways, and one that writes a target and reads the source at every step.

        h_t = LSTM([x_{t−1}; h̃_{t−1}], h_{t−1}),   c_t = reader(h_t; keys),   h̃_t = tanh(W [c_t; h_t]),   logits = V h̃_t

    The reader is any mechanism of one head that takes more keys than queries: `luong_general`, `local_p`, `softmax`,
    ``composed(score=additive)``; `local_m`, whose place is the number of the step; `sentinel`, whose t is a gate of the
    cell's memory and is read as its own value. With ``before`` it is asked by h_{t−1}, and the LSTM gets c_t, as in
    Bahdanau's and captioning networks.

    Shapes: ``source (b, m)``, ``target (b, n)`` ids, ``lengths (b,)`` of the sources -> logits ``(b, n, target)``, of
    each token from those before it.

    Args:
        source, target: vocabularies. width: of all states. reader: a text of a mechanism; None reads nothing but the
            end of the source. before: ask before the LSTM's step. feed: give the LSTM what was said of the last step.
        seed: of the initial weights; None takes PyTorch's.

    Raises:
        ValueError, LookupError: no such reader. ValueError: a size below one, lengths beyond the source.

    Papers: Luong, Pham and Manning, arXiv 1508.04025; Bahdanau, Cho and Bengio, arXiv 1409.0473.
    """

    def __init__(
        self,
        source: int,
        target: int,
        width: int = 64,
        reader: str | None = "luong_general",
        before: bool = False,
        feed: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if min(source, target) < 1 or width < 2 or width % 2:
            raise wrong("source, target, width", f"{source}, {target}, {width}", "vocabularies, and an even width")
        if seed is not None:
            torch.manual_seed(seed)
        self.target, self.before, self.feed = target, before, feed
        self.source_embedding, self.embedding = nn.Embedding(source, width), nn.Embedding(target + 1, width)
        self.encoder = nn.LSTM(width, width // 2, batch_first=True, bidirectional=True)
        self.begin = nn.Linear(width, 2 * width)
        self.reader = None if reader is None else build_text(reader, {"heads": 1, "head_dim": width})
        seen = width if before and reader is not None else 0
        self.cell = nn.LSTMCell(width + seen + (width if feed else 0), width)
        self.say = nn.Linear(width if reader is None else 2 * width, width)
        self.out = nn.Linear(width, target)
        if isinstance(self.reader, Sentinel):
            self.gate, self.sentinel = nn.Linear(2 * width, width), nn.Linear(width, width)

    def encode(self, source: Tensor, lengths: Tensor | None = None) -> Encoded:
        """The keys of a source, and its end."""
        return self.encoded_by(self.encoder, source, lengths)

    def encoded_by(self, encoder: nn.LSTM, source: Tensor, lengths: Tensor | None) -> Encoded:
        """A source as one encoder reads it."""
        x = self.source_embedding(source)
        if lengths is None:
            keys, (last, _) = encoder(x)
            return Encoded(keys, torch.cat([last[0], last[1]], -1), Layout())
        if lengths.shape != source.shape[:1] or int(lengths.min()) < 1 or int(lengths.max()) > source.shape[1]:
            raise wrong("lengths", str(lengths.tolist()), f"one for each source, from 1 to {source.shape[1]}")
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        out, (last, _) = encoder(packed)
        keys, _ = pad_packed_sequence(out, batch_first=True, total_length=source.shape[1])
        mask = torch.arange(source.shape[1], device=source.device) < lengths[:, None]
        return Encoded(keys, torch.cat([last[0], last[1]], -1), Layout(key_mask=mask))

    def start(self, encoded: Encoded) -> Decoded:
        """The decoder before its first step."""
        hidden, cell = torch.tanh(self.begin(encoded.end)).chunk(2, -1)
        return Decoded(hidden, cell, torch.zeros_like(hidden), torch.zeros_like(hidden[:, 0]))

    def read(self, hidden: Tensor, encoded: Encoded, sentinel: Tensor | None, place: Tensor) -> Tensor:
        """What the reader gives to a state ``(b, width)`` at a step ``(b,)``."""
        q, k = hidden[:, None, None], encoded.keys[:, None]
        if isinstance(self.reader, LocalM):
            return self.reader(q, k, k, encoded.layout, place=place[:, None, None])[:, 0, 0]
        if not isinstance(self.reader, Sentinel):
            return cast(Any, self.reader)(q, k, k, encoded.layout)[:, 0, 0]
        own = cast(Tensor, sentinel)
        given = {"sentinel": self.sentinel(own)[:, None, None]}
        shown = self.reader.looking(q, k, encoded.layout, **given)[:, 0]
        return self.reader(q, k, k, encoded.layout, **given)[:, 0, 0] + (1 - shown) * own

    def known(self, fed: Tensor, before: Decoded, cell: Tensor) -> Tensor | None:
        """The sentinel, ``σ(W [x; h_{t−1}]) ⊙ tanh(cell)``; None where the reader has none."""
        if not isinstance(self.reader, Sentinel):
            return None
        return torch.sigmoid(self.gate(torch.cat([fed, before.hidden], -1))) * torch.tanh(cell)

    def step(self, state: Decoded, previous: Tensor, encoded: Encoded) -> tuple[Decoded, Tensor]:
        """The state and the logits ``(b, target)`` after the tokens ``previous (b,)``."""
        x = self.embedding(previous)
        context = (
            self.read(state.hidden, encoded, self.known(x, state, state.cell), state.place)
            if self.asks_before
            else None
        )
        parts = [x, *([] if context is None else [context]), *([state.said] if self.feed else [])]
        hidden, cell = self.cell(torch.cat(parts, -1), (state.hidden, state.cell))
        if self.reader is not None and context is None:
            context = self.read(hidden, encoded, self.known(x, state, cell), state.place)
        said = torch.tanh(self.say(hidden if context is None else torch.cat([context, hidden], -1)))
        return Decoded(hidden, cell, said, state.place + 1), self.out(said)

    @property
    def asks_before(self) -> bool:
        """Whether the reader is asked before the LSTM's step."""
        return self.before and self.reader is not None

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        given = {"inputs": random_pairs, "output": (7, 11)}
        made = {
            "bilinear": cls(13, 11, 8, seed=0),
            "near a place": cls(13, 11, 8, "local_p(reach=2)", seed=0),
            "in step": cls(13, 11, 8, "local_m(reach=2)", seed=0),
            "additive, before": cls(13, 11, 8, "composed(score=additive)", before=True, feed=False, seed=0),
            "sentinel": cls(13, 11, 8, "sentinel(score=additive)", seed=0),
        }
        return [Sample(label, network, given) for label, network in made.items()]


def random_pairs(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sources and targets for examples."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(13, (batch, 9), generator=generator), torch.randint(11, (batch, 7), generator=generator)
