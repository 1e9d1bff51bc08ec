"""Soft injection: what heads said of a task's examples put in the place of the examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.edit import Edit, Heads, Place, Rows, Where, sampled
from regard.core.errors import wrong
from regard.core.kinds import Sample


@published(
    "soft_injection",
    family="steering",
    kind="edit",
    row=278,
    title="Soft Injection of Task Embeddings Outperforms Prompt-Based In-Context Learning",
    arxiv="2507.20906",
    year=2025,
    fidelity="abstract only",
    claim=Claim(
        "without examples, injected states do at least as well as eight examples; without the heads of the largest α "
        "they do worse than without random ones: labels of words in regard-tiny",
        cells="injection.labels",
        holds="injection.as_well_as_examples",
    ),
)
class SoftInjection(Edit):
    """Heads' outputs mixed with what they were on examples of a task: z_h ← (1 − α_h) z_h + α_h t_h.

    Args:
        states: t, by layer ``(heads, e)``: the mean output at the last token of prompts with examples; see
            `hosts.injection.task_states`. alpha: α from 0 to 1, by layer ``(heads,)``, or one number for all; learned
            with the model frozen by `hosts.injection.learned`. strength: a factor of α.
        heads, layers, batch: see `core.edit.Where`. rows: the newest token of each pass; the paper injects at the last
            token of the prompt alone, for which ``rows=[n − 1]`` says so where decoding goes on.
    """

    dial: ClassVar[tuple[str, float] | None] = ("strength", 0.0)

    def __init__(
        self,
        states: Mapping[int, Tensor],
        alpha: Mapping[int, Tensor] | float = 1.0,
        strength: float = 1.0,
        *,
        heads: Heads | None = None,
        layers: Iterable[int] | None = None,
        rows: Rows = "last",
        batch: Sequence[int] | None = None,
    ) -> None:
        super().__init__(Where(states.keys() if layers is None else layers, heads, rows, batch=batch))
        self.states, self.alpha, self.strength = states, alpha, strength

    def heads(self, z: Tensor, place: Place) -> Tensor:
        if place.layer not in self.states:
            raise wrong("states", f"none of layer {place.layer}", "(heads, e) of every layer that is edited")
        alpha = self.alpha[place.layer] if isinstance(self.alpha, Mapping) else z.new_tensor(self.alpha)
        share = self.strength * alpha.to(z).reshape(1, -1, 1, 1)
        return z + share * (self.states[place.layer].to(z)[None, :, None] - z)

    @classmethod
    def examples(cls) -> list[Sample]:
        states = {layer: torch.linspace(-2, 2, 24).view(6, 4) for layer in (0, 1)}
        alpha = {layer: torch.linspace(0.1, 0.9, 6) for layer in (0, 1)}
        return sampled(cls(states, alpha), cls(states, 0.5, heads=[1, 4], layers=[1], rows=slice(3, None)))
