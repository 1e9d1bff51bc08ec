"""Slot attention: slots compete for the elements of an array, so that each comes to hold one object."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.networks.latents.base import Latents, Normalise, Reading, linear_flops


@published(
    "slot_attention",
    family="latent",
    kind="pool",
    row=64,
    title="Object-Centric Learning with Slot Attention",
    arxiv="2006.15055",
    year=2020,
    aliases=("slots",),
    fidelity="third-party code",
    claim=(
        Claim(
            "slots come to hold one cluster each of a drawn set, of more clusters than in training too",
            cells="latents.clusters",
            holds="latents.are_told_apart",
        ),
    ),
)
class Slots(Latents):
    """Slots drawn from one normal distribution read the array T times; elements are shared out among the slots.

        A_ij = S_ij / Σ_j S_ij,   S_ij = softmax_i(q_i·k_j / √width) + 1e-8
        z ← GRU(A v, z),   z ← z + MLP(LN(z));   q = W_q LN(z),   k, v = W_k, W_v LN(x)

    z starts as ``μ + exp(log σ) ε``; μ is ``mean``, log σ is ``log_deviation``, T is ``rounds``. No biases in q, k, v.

    Shapes: ``array (b, n, channels)`` -> ``(b, slots, width)``; another number of slots by ``start``.

    Args:
        channels: of the array. slots: how many. width: of each. rounds: T. hidden: of the MLP.

    Paper: Locatello et al., arXiv 2006.15055; its convolutional encoder and spatial broadcast decoder are
    `regard.networks.latents.slot_autoencoder`. Results of training vary with the seed; see the claim.
    """

    normalise: Normalise = "slots"

    def __init__(self, channels: int, slots: int = 7, width: int = 64, rounds: int = 3, hidden: int = 128) -> None:
        super().__init__(channels, slots, width)
        if rounds < 1:
            raise wrong("rounds", str(rounds), "at least 1")
        self.rounds = rounds
        self.mean, self.log_deviation = (nn.Parameter(torch.empty(1, 1, width)) for _ in range(2))
        for parameter in (self.mean, self.log_deviation):
            nn.init.xavier_uniform_(parameter)
        self.norm_inputs, self.norm_slots, self.norm_mlp = (nn.LayerNorm(size) for size in (channels, width, width))
        self.query = nn.Linear(width, width, bias=False)
        self.key, self.value = (nn.Linear(channels, width, bias=False) for _ in range(2))
        self.gru = nn.GRUCell(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def start(self, batch: int, generator: Generator | None = None, slots: int | None = None) -> Tensor:
        """Slots drawn anew; ``slots`` of them, None for as many as the module has."""
        noise = torch.randn(
            batch,
            slots or self.latents,
            self.width,
            generator=generator,
            dtype=self.mean.dtype,
            device=self.mean.device,
        )
        return self.mean + self.log_deviation.exp() * noise

    def prepared(self, array: Tensor) -> Tensor:
        normed = self.norm_inputs(array)
        return torch.cat([self.key(normed), self.value(normed)], -1)

    def reading(self, turn: int, latents: Tensor, array: Tensor) -> Reading:
        k, v = array[:, None].chunk(2, -1)
        return Reading(self.query(self.norm_slots(latents))[:, None], k, v, self.width**-0.5)

    def updated(self, turn: int, latents: Tensor, found: Tensor) -> Tensor:
        slots = self.gru(found[:, 0].flatten(0, 1), latents.flatten(0, 1)).view_as(latents)
        return slots + self.mlp(self.norm_mlp(slots))

    def flops(self, n: int, batch: int = 1) -> int:
        own = linear_flops(self.query, *(part for part in self.mlp if isinstance(part, nn.Linear)))
        own += 2 * (self.gru.weight_ih.numel() + self.gru.weight_hh.numel())
        reads = 4 * self.latents * n * self.width
        return batch * (linear_flops(self.key, self.value) * n + self.rounds * (self.latents * own + reads))

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [Sample("3 slots", cls(7, 3, 8, 2, 11)), Sample("5 slots, once", cls(5, 5, 6, 1, 7))]
