"""Decorrelation of sinks: states that become like the first token's are pushed away from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from transformers import PreTrainedModel

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.mechanism import accumulate_dtype
from regard.edits.trace import Trace
from regard.hosts.steer import steer
from regard.train.objective import Batch, Objective, entropy_of, run


@published(
    "sink_decorrelation",
    family="training",
    kind="objective",
    row=300,
    title="Mitigating Attention Sinks and Massive Activations in Audio-Visual Speech Recognition with LLMS",
    arxiv="2510.22603",
    year=2025,
    missing="audio and video: the models and data of the paper",
    fidelity="abstract only",
    claim=Claim(
        "tuned with it, states are half as like the first token's, no other token is a sink, and the loss is within "
        "1%: SmolLM2 on text with repeats and punctuation",
        cells="decorrelation.tuned",
        holds="decorrelation.fewer_sinks",
    ),
)
class SinkDecorrelation(Objective):
    """The plain loss and the likeness of all tokens' states to the first one's.

        L + λ · mean over layers and tokens t > 0 of |cos(h_t, h_0)|^p

    h is what leaves a block, h_0 that of a text's first token.

    Args:
        weight: λ. power: p, 2 for the square, 1 for the absolute value. layers: blocks that count, all if None.

    Raises:
        ValueError: a negative weight or a power that is not positive; while it trains, layers that the model does not
            have.

    Paper: arXiv 2510.22603, of which the abstract was at hand.
    """

    dial: ClassVar[tuple[str, float] | None] = ("weight", 0.0)

    def __init__(self, weight: float = 1.0, power: float = 2.0, layers: Iterable[int] | None = None) -> None:
        if weight < 0:
            raise wrong("weight", str(weight), "a number from 0 on")
        if not power > 0:
            raise wrong("power", str(power), "above 0: 2 for squares, 1 for absolute values")
        self.weight, self.power = weight, power
        self.layers = None if layers is None else sorted(layers)

    def loss(self, model: PreTrainedModel, batch: Batch, generator: Generator) -> Tensor:
        with steer(model, trace := Trace("resid")):
            logits = run(model, batch).logits
        last = max(layer for _, layer in trace.kept)
        layers = range(last) if self.layers is None else self.layers
        if any(not 0 <= layer < last for layer in layers) or not layers:
            raise wrong("layers", str(list(layers)), f"some of 0 to {last - 1}")
        alike = torch.stack([likeness(trace.get("resid", layer + 1), batch, self.power) for layer in layers])
        return entropy_of(logits, batch) + self.weight * alike.mean()

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("squares", cls(3.0)), Sample("absolute, one layer", cls(0.5, 1.0, [1]))]


def likeness(states: Tensor, batch: Batch, power: float = 2.0) -> Tensor:
    """The mean of |cos(h_t, h_0)|^p over the tokens behind the first, of ``states (b, n, channels)``."""
    real = batch.real
    first = real.int().argmax(1)
    states = states.to(accumulate_dtype(states.dtype))
    begun = states[torch.arange(len(states), device=states.device), first]
    cosines = F.cosine_similarity(states, begun[:, None], dim=2)
    return cosines[real & (real.cumsum(1) > 1)].abs().pow(power).mean()
