"""Attention sinks from step to step, as of a text that is denoised: where they are, if they stay, what they cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.analysis.base import Analysis, Prompt, Result
from regard.analysis.head_divergence import every_map
from regard.core.atlas import Claim, published
from regard.core.edit import Edit, Place
from regard.core.errors import wrong
from regard.core.kinds import Sample


@dataclass(frozen=True)
class MovingSinks(Result):
    """Which positions are sinks of which heads, step by step.

    Args:
        steps: of each step of one sequence ``(layers, heads, n)`` bool, n that of the longest.
    """

    steps: tuple[Tensor, ...]
    name = "moving_sinks"

    def merge(self, other: MovingSinks) -> MovingSinks:
        """The steps of this one, then those of the other.

        Raises:
            ValueError: other heads.
        """
        heads = [tuple(of.steps[0].shape[:2]) for of in (self, other)]
        if heads[0] != heads[1]:
            raise wrong("other", f"layers and heads {heads[1]}", f"{heads[0]}")
        return MovingSinks(padded([*self.steps, *other.steps]))

    @property
    def share(self) -> float:
        """The share of heads with a sink, over all steps."""
        return float(torch.stack(self.steps).any(3).double().mean())

    @property
    def drift(self) -> float:
        """1 − |S_t ∩ S_{t+1}| / |S_t ∪ S_{t+1}|, S_t a head's sinks: the mean over heads with one, and over steps.

        0 where all stay where they are, 1 where none does; NaN where there is nothing to move.
        """
        found = []
        for one, other in zip(self.steps, self.steps[1:], strict=False):
            both, either = (one & other).sum(2), (one | other).sum(2)
            found.append(1 - both[either > 0].double() / either[either > 0])
        return float(torch.cat(found).mean()) if found else math.nan

    def ranked(self, step: int = -1) -> list[int]:
        """The positions of a step by how many heads they are sinks of, those of none left out."""
        counts = self.steps[step].sum((0, 1))
        order = counts.argsort(descending=True, stable=True).tolist()
        return [at for at in order if counts[at]]

    def table(self) -> list[dict[str, Any]]:
        return [
            {"step": step, "layer": layer, "head": head, "sinks": of.nonzero()[:, 0].tolist()}
            for step, layers in enumerate(self.steps) for layer, heads in enumerate(layers)
            for head, of in enumerate(heads)
        ]  # fmt: skip


@published(
    "moving_sinks",
    family="observe",
    kind="analysis",
    row=265,
    title="Attention Sinks in Diffusion Language Models",
    arxiv="2510.15731",
    year=2025,
    aliases=("dlm_sinks",),
    fidelity="abstract only",
    missing="the published diffusion models; how the paper sets the threshold",
    claim=(
        Claim(
            "sinks of a model that denoises move more from step to step than those of one that goes from left to right",
            cells="denoising.of_characters",
            holds="denoising.sinks_move",
        ),
        Claim(
            "masking the sinks costs the model that goes from left to right more",
            cells="denoising.of_characters",
            holds="denoising.masking_costs_less",
        ),
    ),
)
class SinkDrift(Analysis[Prompt, MovingSinks]):
    """Sinks of every head in every step of one sequence: positions that receive more than the others, by a margin.

        m_j = mean over i of A_ij,   j is a sink where m_j > mean_{l≠j} m_l + ε

    In causal maps the mean is over the rows that see j. The steps are the texts in their order, as a denoising loop
    leaves them, or the same text as it grows. `SinkMask` hides sinks, to be told what they cost.

    Paper: Rulli et al., arXiv 2510.15731, from whose abstract the definition is.

    Args:
        epsilon: ε, above 0.

    Raises:
        ValueError: no margin; in a run, no texts.
    """

    name = "moving_sinks"

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("by hand", cls(), {"known": by_hand})]

    def __init__(self, epsilon: float = 0.3) -> None:
        if not epsilon > 0:
            raise wrong("epsilon", str(epsilon), "above 0")
        self.epsilon = epsilon

    def run(self, subject: Any, data: Iterable[Prompt]) -> MovingSinks:
        texts = list(data)
        if not texts:
            raise wrong("data", "no texts", "at least one")
        steps = [torch.stack([sinks(of, self.epsilon) for of in every_map(subject, text.ids)]) for text in texts]
        return MovingSinks(padded(steps))


def padded(steps: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """All steps as long as the longest, without sinks where there is nothing yet."""
    longest = max(of.shape[2] for of in steps)
    return tuple(torch.nn.functional.pad(of, (0, longest - of.shape[2])) for of in steps)


def sinks(maps: Tensor, epsilon: float) -> Tensor:
    """``(…, n)`` bool of ``maps (…, n, n)``: which keys receive more than the mean of the others by ``epsilon``."""
    n = maps.shape[-1]
    causal = n > 1 and not bool(maps.triu(1).any())
    seen = torch.arange(n, 0, -1) if causal else torch.full((n,), n)
    mass = maps.double().sum(-2) / seen
    others = (mass.sum(-1, keepdim=True) - mass) / max(1, n - 1)
    return mass > others + epsilon


class SinkMask(Edit):
    """Hides some positions from all other tokens, in all heads: what a model loses without its sinks.

    Args:
        slots: the positions. A token sees itself in any case.
    """

    resumable = False

    def __init__(self, slots: Sequence[int]) -> None:
        super().__init__()
        self.slots = tuple(slots)

    def scores(self, place: Place) -> Tensor | None:
        if not self.slots:
            return None
        keys = place.start + torch.arange(place.m, device=place.rows.device)
        hidden = torch.isin(keys, torch.tensor(self.slots, device=keys.device)) & (place.rows[:, None] != keys)
        return torch.zeros(hidden.shape, device=hidden.device).masked_fill(hidden, -math.inf)


def by_hand() -> tuple[Tensor, Tensor]:
    """Three steps of one head: its sink is key 0, then keys 0 and 2, then key 1; drifts ½ and 1."""
    first = torch.tensor([[0.8, 0.1, 0.1]]).expand(3, 3)
    both = torch.tensor([[0.5, 0.0, 0.5]]).expand(3, 3)
    last = torch.tensor([[0.1, 0.9, 0.0]]).expand(3, 3)
    found = MovingSinks(tuple(sinks(of[None, None], 0.2) for of in (first, both, last)))
    got = torch.cat([torch.stack(found.steps).flatten().double(), torch.tensor([found.drift, found.share])])
    return got, torch.tensor([1, 0, 0, 1, 0, 1, 0, 1, 0, 0.75, 1]).double()
