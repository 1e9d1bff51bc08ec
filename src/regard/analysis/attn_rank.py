"""Attention by slot: which places of a prompt a model attends to, and what is best put there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.analysis.base import DenseMaps, subject_of
from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample, shown_by
from regard.probes.places import SpanMeans


@dataclass(frozen=True)
class Slotted:
    """A prompt of blocks, such as documents or examples, and a question behind them.

    Args:
        ids: ``(n,)``. blocks: ``(start, stop)`` of each slot, without the first token, which is a sink whatever it
            says. question: ``(start, stop)`` of the tokens that ask.
    """

    ids: Tensor
    blocks: Sequence[tuple[int, int]]
    question: tuple[int, int]

    def __post_init__(self) -> None:
        stops = [stop for _, stop in self.blocks]
        if not self.blocks or min(start for start, _ in self.blocks) < 1 or max(stops) > self.question[0]:
            raise wrong("blocks", str(list(self.blocks)), f"spans from token 1 to the question at {self.question[0]}")
        if not self.question[0] < self.question[1] <= len(self.ids):
            raise wrong("question", str(self.question), f"a span within {len(self.ids)} tokens")


@published(
    "attn_rank",
    family="steering",
    kind="analysis",
    row=219,
    title="Attention Basin: Why Contextual Position Matters in Large Language Models",
    arxiv="2508.05128",
    year=2025,
    fidelity="abstract only",
    claim=Claim(
        "the profile of slots is a model's own, and what is asked for is recalled better in the slot that it attends "
        "to most than in a random one, and worse in that of the least: lookup in SmolLM2",
        cells="attention_slots.reordered",
        holds="attention_slots.better_where_attended",
    ),
)
@shown_by(lambda: [Sample("by hand", slot_profile, {"known": by_hand})])
def slot_profile(subject: Any, prompts: Sequence[Slotted]) -> Tensor:
    """The attention that questions pay to each slot of their prompts, ``(layers, slots)`` float32.

        profile_ls = mean over prompts, heads and rows i of the question of Σ_{j in slot s} A_ij

    Prompts are shuffled ones, so that what stands in a slot is another thing in each; see `by_profile` for what it is
    for.

    Args:
        subject: a model, or maps. prompts: of the same number of slots.

    Raises:
        ValueError: no prompts, or some of another number of slots.

    Paper: Zeng et al., arXiv 2508.05128, of which the abstract was at hand: the layer is chosen by `agreeing_layer`.
    """
    counts = {len(prompt.blocks) for prompt in prompts}
    if len(counts) != 1:
        raise wrong("prompts", f"{sorted(counts)} slots", "at least one prompt, all of the same number of slots")
    found = []
    for prompt in prompts:
        means = SpanMeans({str(slot): span for slot, span in enumerate(prompt.blocks)})
        subject_of(subject).show(prompt.ids[None], [means])
        sizes = torch.tensor([stop - start for start, stop in prompt.blocks], dtype=torch.float32)
        rows = slice(*prompt.question)
        found.append(torch.stack([(x[0, :, rows] * sizes).mean((0, 1)) for x in means.result().values()]))
    return torch.stack(found).mean(0)


def agreeing_layer(one: Tensor, other: Tensor) -> int:
    """The layer whose profiles of two halves of the prompts, ``(layers, slots)`` each, correlate most."""
    return int(torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(one, other, strict=True)]).argmax())


def by_profile(profile: Tensor, relevance: Sequence[float]) -> list[int]:
    """Which block goes into each slot: the most relevant into the slot that is attended to most, and so on.

    Args:
        profile: ``(slots,)``, of one layer. relevance: of each block, as a retriever scores it.

    Raises:
        ValueError: more or fewer blocks than slots.
    """
    if len(relevance) != len(profile):
        raise wrong("relevance", f"{len(relevance)} blocks", f"one for each of {len(profile)} slots")
    slots = profile.argsort(descending=True, stable=True).tolist()
    blocks = torch.tensor(relevance).argsort(descending=True, stable=True).tolist()
    order = [0] * len(slots)
    for slot, block in zip(slots, blocks, strict=True):
        order[slot] = block
    return order


def by_hand() -> tuple[Tensor, Tensor]:
    """Two slots of one and two tokens, a question of two: (0.1 + 0.3) / 2 and (0.2 + 0.3 + 0.1 + 0.2) / 2."""
    maps = torch.zeros(1, 1, 6, 6)
    maps[0, 0, 4, :5] = torch.tensor([0.2, 0.1, 0.2, 0.3, 0.2])
    maps[0, 0, 5] = torch.tensor([0.1, 0.3, 0.1, 0.2, 0.1, 0.2])
    prompt = Slotted(torch.arange(6), [(1, 2), (2, 4)], (4, 6))
    return slot_profile(DenseMaps(lambda ids: [maps]), [prompt, prompt]), torch.tensor([[0.2, 0.4]])
