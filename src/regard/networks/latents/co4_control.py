"""Co4 for control: the modulations of its networks that act, and the one that reads any observations in any order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.networks.base import Network


def modulated(r: Tensor, context: Tensor) -> Tensor:
    """``ReLU6(r² + 2 r + c (1 + |r|))``: what r says, driven by a context c that speaks of the same."""
    return torch.nn.functional.relu6(r.square() + 2 * r + context * (1 + r.abs()))


class Driven(nn.Module):
    """Scores of queries and keys that the queries have modulated.

        S = Q MOD(K, W Q)ᵀ / s,   MOD(r, c) = ReLU6(r² + 2 r + c (1 + |r|))

    Row j of W Q is the context of key j, a learned mixture of all queries for its place. Of CartPole, Acrobot,
    MountainCar and Ant.

    Shapes: ``queries (…, n, a), keys (…, m, b)`` -> ``(…, n, m)``.

    Args:
        queries, keys: n and m. inside: a, b. width: of the projections. bias: whether they have one. scaled: whether s
            is √width, else 1.
    """

    def __init__(
        self, queries: int, keys: int, inside: tuple[int, int], width: int, bias: bool = True, scaled: bool = True
    ) -> None:
        super().__init__()
        self.query, self.key = (nn.Linear(size, width, bias=bias) for size in inside)
        self.context, self.scale = nn.Linear(queries, keys), width**-0.5 if scaled else 1.0

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        q = self.query(queries)
        return q @ modulated(self.key(keys), self.context(q.mT).mT).mT * self.scale


class Paired(nn.Module):
    """Scores where each key has queries of its own, and both are modulated by each other's product.

        S_jf = Q_jf ⊙ (1 + K_j) (K ⊙ (1 + Q_·1))ᵀ / √width

    Queries are parted into as many groups as there are keys, f counts in a group, whose first modulates its key. Of
    CarRacing, whose attention is the softmax of S.

    Shapes: ``queries (n, a), keys (m, b)`` -> ``(m, n / m, m)``.

    Args:
        inside: a, b. width: of the projections.

    Raises:
        ValueError: keys that do not divide the queries.
    """

    def __init__(self, inside: tuple[int, int], width: int) -> None:
        super().__init__()
        self.query, self.key = (nn.Linear(size, width) for size in inside)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        if queries.shape[0] % keys.shape[0]:
            raise wrong("keys", str(keys.shape[0]), f"a divisor of the {queries.shape[0]} queries")
        q, k = self.query(queries).unflatten(0, (keys.shape[0], -1)), self.key(keys)
        q = q * (1 + k[:, None])
        return q @ (k * (1 + q[:, 0])).mT * k.shape[-1] ** -0.5


@published(
    "co4_control",
    family="latent",
    kind="network",
    row=45,
    title="Beyond Attention: Toward Machines with Intrinsic Higher Mental States",
    arxiv="2505.06257",
    year=2025,
    fidelity="authors' code",
    claim=Claim(
        "holds a pole upright for 200 steps after at most half of the generations that it needs without modulation",
        cells="co4.pole",
        holds="co4.learns_in_half",
    ),
)
class Co4Policy(Network):
    """A policy of observations, each of which a shared LSTM reads, and of queries that gather what they are about.

        h_j ← LSTM([x_j, a], h_j),   m = tanh(tanh(S(P, h)) x),   a = tanh(W m)

    P ``(queries, places)`` are sines and cosines, S are `Driven`'s scores, or plain ones where ``driven`` is False; a
    is the action before. Without the modulation the policy gives the same for observations in any order.

    Shapes: ``x (b, steps, observations)`` -> actions ``(b, steps, actions)`` from −1 to 1; the LSTM begins with zeros.

    Args:
        observations, actions: how many numbers. queries: hidden channels of the policy. width: of queries and keys.
        places: of P and of the LSTM. bias, scaled: see `Driven`. driven: whether there is the modulation. seed: of the
            weights.

    Raises:
        ValueError: a size below 1, or observations of another number.

    Papers: Adeel, arXiv 2505.06257; the policy without modulation: Tang and Ha (Sensory Neuron), 2109.02869. Defaults
    are those of the authors' CartPole. Their CarRacing has `Paired` scores, before the latter's convolutional network.
    """

    def __init__(
        self,
        observations: int,
        actions: int = 1,
        queries: int = 16,
        width: int = 32,
        places: int = 8,
        bias: bool = False,
        scaled: bool = False,
        driven: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        sizes = {"observations": observations, "actions": actions, "queries": queries, "width": width, "places": places}
        for name, size in sizes.items():
            if size < 1:
                raise wrong(name, str(size), "at least 1")
        self.observations, self.actions = observations, actions
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.memory = nn.LSTMCell(1 + actions, places)
            if driven:
                self.scores: nn.Module = Driven(queries, observations, (places, places), width, bias, scaled)
            else:
                self.scores = Plain(places, width, bias, scaled)
            self.act = nn.Linear(queries, actions)
        self.register_buffer("table", positions(queries, places), persistent=False)

    def begun(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """h, c ``(b · observations, places)`` and the action before the first step of ``x (b, …)``."""
        nothing = x.new_zeros(x.shape[0] * self.observations, self.memory.hidden_size)
        return nothing, nothing, x.new_zeros(x.shape[0], self.actions)

    def step(self, x: Tensor, state: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """One step of ``x (b, observations)``: the weights ``(b, queries, observations)`` and the new state."""
        h, c, before = state
        told = torch.cat([x[..., None], before[:, None].expand(-1, self.observations, -1)], 2)
        h, c = remembered(self.memory, told.flatten(0, 1), h, c)
        weights = torch.tanh(self.scores(self.table.to(x.dtype), h.unflatten(0, (-1, self.observations))))
        found = torch.tanh(weights @ x[..., None])[..., 0]
        return weights, (h, c, torch.tanh(self.act(found)))

    def run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Actions ``(b, steps, actions)`` and weights ``(b, steps, queries, observations)``."""
        if x.dim() != 3 or x.shape[2] != self.observations:
            raise wrong("x", f"shape {tuple(x.shape)}", f"(batch, steps, {self.observations})")
        state, acts, maps = self.begun(x), [], []
        for t in range(x.shape[1]):
            weights, state = self.step(x[:, t], state)
            acts.append(state[2])
            maps.append(weights)
        return torch.stack(acts, 1), torch.stack(maps, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)[0]

    def intermediates(self, x: Tensor) -> dict[str, Tensor]:
        """A ``(b, steps, queries, observations)``, each step for a head."""
        return {"scores": self.run(x)[1]}

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        def draw(batch: int, seed: int) -> tuple[Tensor]:
            return (torch.randn(batch, 7, 5, generator=torch.Generator().manual_seed(seed)),)

        given = {"inputs": draw, "output": (7, 2)}
        return [
            Sample("driven", cls(5, 2, 6, 8, 4, bias=True, scaled=True), given),
            Sample("not driven", cls(5, 2, 6, 8, 4, driven=False), given),
        ]


class Plain(nn.Module):
    """``Q Kᵀ / s`` of projections, ``s`` as of `Driven`."""

    def __init__(self, inside: int, width: int, bias: bool, scaled: bool) -> None:
        super().__init__()
        self.query, self.key = (nn.Linear(inside, width, bias=bias) for _ in range(2))
        self.scale = width**-0.5 if scaled else 1.0

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        return self.query(queries) @ self.key(keys).mT * self.scale


def remembered(cell: nn.LSTMCell, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The cell's h and c after x, by plain operations, which `torch.func.vmap` runs for many policies at once."""
    linear = torch.nn.functional.linear
    gates = linear(x, cell.weight_ih, cell.bias_ih) + linear(h, cell.weight_hh, cell.bias_hh)
    taken, kept, new, shown = gates.chunk(4, -1)
    c = torch.sigmoid(kept) * c + torch.sigmoid(taken) * torch.tanh(new)
    return torch.sigmoid(shown) * torch.tanh(c), c


def positions(count: int, width: int) -> Tensor:
    """``sin, cos (i / 10000^(2 ⌊c / 2⌋ / width))`` of place i, even channels the sines."""
    rates = 10_000.0 ** (-2 * (torch.arange(width, dtype=torch.float64) // 2) / width)
    turns = torch.arange(count, dtype=torch.float64)[:, None] * rates
    return torch.where(torch.arange(width) % 2 == 0, turns.sin(), turns.cos()).float()
