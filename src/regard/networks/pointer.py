"""Pointer networks: attention over the input is the output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.networks.base import Network

Valid = Callable[[Tensor, int], Tensor]
"""Where may be pointed at next ``(b, m)`` bool, after places ``(b, t)``, of m inputs."""


def once(chosen: Tensor, m: int) -> Tensor:
    """Wherever has not been pointed at: orders."""
    return F.one_hot(chosen, m).sum(1) == 0


def tour(chosen: Tensor, m: int) -> Tensor:
    """Through all inputs from the first, and at the end back to it."""
    if chosen.shape[1] in (0, m):
        return (torch.arange(m, device=chosen.device) == 0).expand(len(chosen), m)
    return once(chosen, m)


def triangles(chosen: Tensor, m: int) -> Tensor:
    """Places in threes, each rising and after the three before it in the order of words, never into a dead end."""
    place, inside = torch.arange(m, device=chosen.device), chosen.shape[1] % 3
    room = (place < m - 2 + inside).expand(len(chosen), m)
    own = chosen[:, chosen.shape[1] - inside :]
    allowed = room & (place > own[:, -1:]) if inside else room
    if chosen.shape[1] < 3:
        return allowed
    before = chosen[:, chosen.shape[1] - inside - 3 :][:, :3]
    least, rest = before[:, inside : inside + 1], before[:, inside + 1 :]
    last = torch.arange(m - rest.shape[1], m, device=chosen.device)
    follows = (rest < last).any(1, keepdim=True)  # a three with the same beginning may still come
    behind = (place > least) | ((place == least) & follows)
    return allowed & (behind | (own != before[:, :inside]).any(1, keepdim=True))


@published(
    "pointer",
    family="structured",
    kind="network",
    row=216,
    title="Pointer Networks",
    arxiv="1506.03134",
    year=2015,
    aliases=("ptr_net", "pointer_network"),
    fidelity="hand values",
    claim=(
        Claim(
            "trained on 5 to 10 numbers it sorts more than 60% of unseen lists without a fault",
            cells="pointing.sorted_lists",
            holds="pointing.sorts",
        ),
        Claim(
            "it gets more lists right than a network with attention that names places out of a vocabulary",
            cells="pointing.sorted_lists",
            holds="pointing.beats_the_vocabulary",
        ),
    ),
)
class PointerNetwork(Network):
    """An LSTM that reads a set of vectors, and one that points at them one after the other.

        u_ij = v · tanh(W₁ e_j + W₂ d_i),   p(next is j) = softmax_j(u_ij)

    e are the encoder's states, d the decoder's, whose next input is the vector that was pointed at. As many inputs as
    one likes, whatever it was trained on. `tasks.planar` has the problems of the paper, which `search` solves by a
    beam. With ``vocabulary`` the outputs are places 0 … vocabulary − 1 instead, read from d and what additive attention
    reads of e: the baseline that pointers are beside.

    Shapes: ``points (b, m, c)``, ``order (b, n)`` -> log-probabilities ``(b, n, m)``, or ``(b, n, vocabulary)``.

    Args:
        channels: c. width: of the states. vocabulary: None for pointers. seed: of the initial weights.

    Raises:
        ValueError: sizes below one, or points of other channels.

    Paper: Vinyals, Fortunato and Jaitly, arXiv 1506.03134.
    """

    def __init__(self, channels: int = 1, width: int = 64, vocabulary: int | None = None, seed: int | None = None):
        super().__init__()
        if min(channels, width, vocabulary or 1) < 1:
            raise wrong("channels, width, vocabulary", f"{channels}, {width}, {vocabulary}", "at least 1")
        if seed is not None:
            torch.manual_seed(seed)
        self.channels, self.vocabulary = channels, vocabulary
        self.embed, self.first = nn.Linear(channels, width), nn.Parameter(0.1 * torch.randn(width))
        self.encoder, self.cell = nn.LSTM(width, width, batch_first=True), nn.LSTMCell(width, width)
        self.key, self.query = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.score = nn.Linear(width, 1, bias=False)
        self.out = None if vocabulary is None else nn.Linear(2 * width, vocabulary)

    def steps(self, points: Tensor, count: int, choose: Callable[[int, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Log-probabilities and weights of ``count`` steps; ``choose`` says where each of them points.

        Raises:
            ValueError: points of other channels.
        """
        if points.dim() != 3 or points.shape[2] != self.channels:
            raise wrong("points", f"shape {tuple(points.shape)}", f"(b, m, {self.channels})")
        x = self.embed(points)
        states, (hidden, cell) = self.encoder(x)
        keys, hidden, cell = self.key(states), hidden[0], cell[0]
        fed, found, maps = self.first.expand(points.shape[0], -1), [], []
        rows = torch.arange(points.shape[0], device=points.device)
        for step in range(count):
            hidden, cell, logits = self.advance(fed, hidden, cell, keys)
            weights = logits.softmax(-1)
            maps.append(weights)
            if self.out is not None:
                logits = self.out(torch.cat([hidden, (weights[..., None] * states).sum(1)], -1))
            found.append(logits.log_softmax(-1))
            fed = x[rows, choose(step, found[-1]).clamp(max=points.shape[1] - 1)]
        return torch.stack(found, 1), torch.stack(maps, 1)

    def advance(self, fed: Tensor, hidden: Tensor, cell: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The decoder's state after it was fed ``(b, width)``, and u over the inputs, ``(b, m)``."""
        hidden, cell = self.cell(fed, (hidden, cell))
        return hidden, cell, self.score(torch.tanh(keys + self.query(hidden)[:, None]))[..., 0]

    def forward(self, points: Tensor, order: Tensor) -> Tensor:
        return self.steps(points, order.shape[1], lambda step, logits: order[:, step])[0]

    def intermediates(self, *inputs: Any, **named: Any) -> dict[str, Tensor]:
        """What is looked at in each step, ``(b, 1, n, m)``: of pointers the output itself."""
        points, order = inputs
        with torch.no_grad():
            return {"pointer": self.steps(points, order.shape[1], lambda step, logits: order[:, step])[1][:, None]}

    @torch.no_grad()
    def generate(self, points: Tensor, steps: int, once: bool = True) -> Tensor:
        """The likeliest place at each step, ``(b, steps)``; with ``once`` none is pointed at a second time."""
        chosen: list[Tensor] = []

        def best(step: int, logits: Tensor) -> Tensor:
            used = torch.zeros_like(logits, dtype=torch.bool)
            for place in chosen if once else ():
                used = used | F.one_hot(place, logits.shape[1]).bool()
            chosen.append(logits.masked_fill(used, -torch.inf).argmax(-1))
            return chosen[-1]

        self.steps(points, steps, best)
        return torch.stack(chosen, 1)

    @torch.no_grad()
    def search(self, points: Tensor, steps: int, beam: int = 4, valid: Valid = once) -> Tensor:
        """The likeliest places ``(b, steps)`` that a beam of pointers finds.

        Args:
            beam: how many sequences are kept. valid: where may be pointed at next, such as `once`, `tour` or
                `triangles`; at least one place always.

        Raises:
            ValueError: a beam below one, or a network that names places.
        """
        if beam < 1 or self.out is not None:
            raise wrong("beam", str(beam), "at least 1, of a network of pointers")
        (b, m, _), x = points.shape, self.embed(points)
        states, (hidden, cell) = self.encoder(x)
        keys, hidden, cell = self.key(states), hidden[0], cell[0]
        fed, score = self.first.expand(b, -1), points.new_zeros(b, 1)
        chosen = torch.zeros(b, 0, dtype=torch.int64, device=points.device)
        for _ in range(steps):
            hidden, cell, logits = self.advance(fed, hidden, cell, keys)
            logits = logits.masked_fill(~valid(chosen, m), -torch.inf)
            logs = logits.log_softmax(-1).nan_to_num(-torch.inf, neginf=-torch.inf)
            total = (score.flatten()[:, None] + logs).unflatten(0, (b, -1)).flatten(1)
            score, index = total.topk(min(beam, total.shape[1]))
            width = len(chosen) // b
            rows = (torch.arange(b, device=points.device)[:, None] * width + index // m).flatten()
            place = (index % m).flatten()
            chosen = torch.cat([chosen[rows], place[:, None]], 1)
            hidden, cell, x, keys = hidden[rows], cell[rows], x[rows], keys[rows]
            fed = x[torch.arange(len(x), device=points.device), place]
        return chosen.unflatten(0, (b, -1))[:, 0]

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [
            Sample("pointers", cls(2, 8, seed=0), {"inputs": random_order, "output": (7, 7)}),
            Sample("places", cls(2, 8, 11, seed=0), {"inputs": random_order, "output": (7, 11)}),
        ]


def random_order(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points and an order of them for examples."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 7, 2, generator=generator), torch.rand(batch, 7, generator=generator).argsort(1)
