"""Positional hidden states: one channel, which counts places, made smaller where the newest token looks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.edit import Edit, Heads, Place, Rows, Where, sampled
from regard.core.errors import wrong
from regard.core.kinds import Sample


@published(
    "positional_hidden",
    family="steering",
    kind="edit",
    row=327,
    title="Mitigate Position Bias in Large Language Models via Scaling a Single Dimension",
    arxiv="2406.02536",
    year=2024,
    fidelity="authors' code",
    claim=(
        Claim(
            "a channel that is planted to count places is among the first three that the search finds",
            cells="positional_channel.planted",
            holds="positional_channel.found",
        ),
        Claim(
            "the channel that is found, scaled, recalls the worst place better and the mean no worse, and a random "
            "channel does not: lookup in SmolLM2",
            cells="positional_channel.scaled",
            holds="positional_channel.evens_out",
        ),
    ),
)
class PositionalHidden(Edit):
    """Queries and keys of the newest token's row made of states in which a few channels are scaled.

        x'_c = s x_c for the channels c,   q'_i = W_q x'_i,   k'_j = W_k x'_j for all j ≤ i

    x is what the layer's projections read, after the norm. Only ``rows`` attend with q' and k', to the values as they
    are; the model's other rows, and its cache, keep their own queries and keys.

    Args:
        channels: c, as `hosts.positional.channels` finds them. factor: s; 1 changes nothing, the authors use 0 and −1.
        layers: the authors' are 10 to 25 of 32. rows: the newest token of each pass, as theirs, so that each generated
            token attends so. heads, batch: see `core.edit.Where`. keys: spans of positions of which keys are scaled.

    Raises:
        ValueError: while it runs, a channel that the states do not have. RuntimeError: a text is continued of which the
            beginning was not edited.
    """

    dial: ClassVar[tuple[str, float] | None] = ("factor", 1.0)

    def __init__(
        self,
        channels: Sequence[int],
        factor: float = 0.0,
        *,
        layers: Iterable[int] | None = None,
        heads: Heads | None = None,
        rows: Rows = "last",
        keys: Sequence[tuple[int, int]] | None = None,
        batch: Sequence[int] | None = None,
    ) -> None:
        if not channels or min(channels) < 0:
            raise wrong("channels", str(list(channels)), "indices of channels of the hidden states, from 0")
        super().__init__(Where(layers, heads, rows, keys, batch=batch))
        self.channels, self.factor = list(channels), factor

    def inputs(self, x: Tensor, place: Place) -> Tensor:
        if max(self.channels) >= x.shape[2]:
            raise wrong("channels", str(self.channels), f"some of 0 to {x.shape[2] - 1}")
        scaled = x.clone()
        scaled[..., self.channels] *= self.factor
        return scaled

    @classmethod
    def examples(cls) -> list[Sample]:
        return sampled(
            cls([3, 11], -1.0, rows=slice(4, None)), cls([5], 0.0, layers=[1]), cls([7, 2], -2.0, heads=[1, 2])
        )
