"""Efficient probing: learned queries ask the features themselves, each for its own part of the values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.networks.latents.base import Latents, Reading, shares


@published(
    "ep",
    family="latent",
    kind="pool",
    row=121,
    title="Attention, Please! Revisiting Attentive Probing Through the Lens of Efficiency",
    arxiv="2506.10178",
    year=2025,
    aliases=("efficient_probing",),
    fidelity="authors' code",
    claim=(
        Claim(
            "of frozen features it tells more than their mean does, and with a third of the parameters no less than"
            " multi-head attention pooling",
            cells="latents.probes",
            holds="latents.tells_more",
        ),
    ),
)
class EfficientProbing(Latents):
    """M learned queries each pool one M-th of the value channels; keys are the features as they are.

        o_i = Σ_j softmax_j(q_i·x_j / √channels) (W_v x_j)_i,   (·)_i the i-th group of channels

    q is ``initial``, of each query all channels; W_v is ``value``.

    Shapes: ``array (b, n, channels)`` -> ``(b, M, channels / (d_out M))``; flattened, the features of a linear probe.
    Cost: ``2 n channels (2 M + …)`` FLOPs: see `flops`. Parameters: ``M channels + channels² / d_out``.

    Args:
        channels: of the features. queries: M. d_out: how many times fewer channels go out than come in. bias: of W_v.

    Raises:
        ValueError: channels that ``d_out`` times the queries does not divide.

    Paper: Psomas et al., arXiv 2506.10178, whose code scales by the root of all channels, not of a group's.
    """

    alike = False  # each has its own group of values

    def __init__(self, channels: int, queries: int = 32, d_out: int = 1, bias: bool = False) -> None:
        if queries < 1 or d_out < 1 or channels % (queries * d_out):
            came = f"{queries} queries and d_out {d_out} for {channels} channels"
            raise wrong("queries", came, "a number that, times d_out, divides the channels")
        super().__init__(channels, queries, channels // (queries * d_out))
        self.initial = nn.Parameter(0.02 * torch.randn(queries, channels))
        self.value = nn.Linear(channels, channels // d_out, bias=bias)

    def start(self, batch: int, generator: Generator | None = None) -> Tensor:
        return self.initial.expand(batch, -1, -1)

    def reading(self, turn: int, latents: Tensor, array: Tensor) -> Reading:
        values = self.value(array).unflatten(2, (self.latents, -1)).transpose(1, 2)
        return Reading(latents[:, None], array[:, None], values, self.channels**-0.5)

    def gathered(self, turn: int, asked: Reading, real: Tensor | None) -> Tensor:
        return shares(asked, real, "keys").transpose(1, 2) @ asked.v

    def updated(self, turn: int, latents: Tensor, found: Tensor) -> Tensor:
        return found[:, :, 0]

    def flops(self, n: int, batch: int = 1) -> int:
        return 2 * batch * n * (self.value.weight.numel() + self.latents * (self.channels + self.width))

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [Sample("3 queries", cls(12, 3)), Sample("5 queries, d_out 2", cls(30, 5, 2))]
