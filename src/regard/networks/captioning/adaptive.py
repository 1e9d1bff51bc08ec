"""Adaptive attention: a captioner that may look at what it knows instead of the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.kinds import Sample
from regard.mechanisms.scored.sentinel import Sentinel
from regard.networks.captioning.base import GIVEN, Asked, Captioner, Looked
from regard.networks.writer import Encoded


class AdaptiveCaptioner(Captioner):
    """The captioner that `Sentinel` was published with: an LSTM that looks after its step, at the image or at itself.

        v_g = relu(W_g mean a),   v_i = relu(W_v a_i),   x_t = [E y_{t−1}; v_g],   h_t, m_t = LSTM(x_t, h_{t−1})
        s_t = relu(W_s (σ(W [x_t; h_{t−1}]) ⊙ tanh m_t)),   ĥ_t = tanh(W_h h_t)
        A, β = softmax over [z(v_i); z(s_t)],   z(k) = w · tanh(W_k k + W_q ĥ_t)
        ĉ_t = Σ_i A_i v_i + β s_t,   logits = W_p tanh(W_c (ĉ_t + ĥ_t))

    ``weights`` of its states are A, whose sum is 1 − β. Without ``sentinel`` they sum to one.

    Shapes: ``images (b, c, y, x)``, ``target (b, n)`` ids -> logits ``(b, n, target)``.

    Args:
        target, width, channels, wide, seed: as in `Captioner`. sentinel: whether there is one.

    Paper: Lu et al., arXiv 1612.01887, with the layers of the authors' code.
    """

    def __init__(
        self,
        target: int,
        width: int = 128,
        channels: int = 3,
        sentinel: bool = True,
        wide: float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(target, width, channels, wide, seed)
        self.reader = Sentinel("additive", 1, width)
        self.whole, self.part = nn.Linear(width, width), nn.Linear(width, width)
        self.cell, self.known = nn.LSTMCell(2 * width, width), sentinel
        self.ask, self.query, self.key = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        if sentinel:
            self.gate, self.own = nn.Linear(3 * width, width, bias=False), nn.Linear(width, width)
            self.own_key = nn.Linear(width, width)
        self.say, self.out = nn.Linear(width, width), nn.Linear(width, target)

    def encode(self, source: Tensor, lengths: Tensor | None = None) -> Encoded:
        """The vectors v_i, and v_g."""
        found = super().encode(source, lengths)
        keys = F.relu(self.part(found.keys))
        return Asked(keys, F.relu(self.whole(found.end)), found.layout, self.key(keys))

    def start(self, encoded: Encoded) -> Looked:
        nothing = torch.zeros_like(encoded.end)
        return Looked(nothing, nothing, torch.zeros_like(encoded.keys[..., 0]))

    def step(self, state: Looked, previous: Tensor, encoded: Encoded) -> tuple[Looked, Tensor]:
        x = torch.cat([self.embedding(previous), encoded.end], -1)
        hidden, cell = self.cell(x, (state.hidden, state.cell))
        asked = torch.tanh(self.ask(hidden))
        q, k = self.query(asked)[:, None, None], cast(Asked, encoded).projected[:, None]
        if self.known:
            own = torch.sigmoid(self.gate(torch.cat([x, state.hidden], -1))) * torch.tanh(cell)
            own = F.relu(self.own(own))
            weights = self.reader.weights(q, k, encoded.layout, sentinel=self.own_key(own)[:, None, None])[:, 0, 0]
            seen = (weights[..., None] * encoded.keys).sum(1) + (1 - weights.sum(-1, keepdim=True)) * own
        else:
            weights = self.reader.scorer.weights(q, k, encoded.layout)[:, 0, 0]
            seen = (weights[..., None] * encoded.keys).sum(1)
        return Looked(hidden, cell, weights), self.out(torch.tanh(self.say(seen + asked)))

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        made: dict[str, Any] = {"sentinel": cls(11, 8, seed=0), "none": cls(11, 8, sentinel=False, seed=0)}
        return [Sample(label, network, GIVEN) for label, network in made.items()]
