"""Head Pursuit: which words of the vocabulary the outputs of a head are made of, and which heads speak of a concept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from regard.analysis.base import Analysis, HeadScores, Prompt
from regard.analysis.planted import model_sample
from regard.analysis.weights import head_weights, unembedding
from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.edits.trace import Trace
from regard.hosts.attach import attach
from regard.probes.head_statistics import Moments


@published(
    "head_pursuit",
    family="observe",
    kind="analysis",
    row=306,
    title="Head Pursuit: Probing Attention Specialization in Multimodal Transformers",
    arxiv="2510.21518",
    year=2025,
    fidelity="hand values",
    claim=(
        Claim(
            "the sign of a fiftieth of the heads turned around, the concept's words lose half of their probability",
            cells="pursuit.turned",
            holds="pursuit.turned_heads_suppress",
        ),
        Claim(
            "other text costs 3% of its loss at most",
            cells="pursuit.turned",
            holds="pursuit.other_text_stays",
        ),
    ),
)
class HeadPursuit(Analysis[Prompt, HeadScores]):
    """The share of a head's outputs that a few words of a concept explain.

        H_h (texts, channels): W_O z_h at the answer;   score_h = ‖H P_S‖² / ‖H‖²

    P_S projects onto the unembedding rows of the words that simultaneous orthogonal matching pursuit picks from the
    concept's, at most ``words`` of them. Data are texts with their ``answer``, before which heads are read;
    all in one fit, so that results of parts do not merge to that of all.

    Args:
        concept: ids of the concept's tokens. words: steps of the pursuit.

    Raises:
        ValueError: no concept, no texts, a text without an answer.

    Paper: Basile et al., arXiv 2510.21518.
    """

    name = "concept"

    @classmethod
    def examples(cls) -> list[Sample]:
        texts = [Prompt(torch.randint(0, 29, (7 + i,), generator=torch.Generator().manual_seed(i)), answer=7 + i)
                 for i in range(5)]  # fmt: skip
        everything = cls(range(29), 4)
        return [model_sample(everything, texts, "concept", known=recovered, pooled=False)]

    def __init__(self, concept: Iterable[int], words: int = 5) -> None:
        self.concept, self.words = tuple(concept), words
        if not self.concept or words < 1:
            raise wrong("concept", f"{len(self.concept)} tokens in {words} steps", "at least one of each")

    def run(self, subject: Any, data: Iterable[Prompt]) -> HeadScores:
        outputs, atoms = outputs_before(subject, list(data)), unembedding(subject)[list(self.concept)].double()
        count, found = torch.tensor(1.0, dtype=torch.float64), {}
        for layer, of_heads in outputs.items():
            scores = torch.stack([explained(of, atoms[pursuit(of, atoms, self.words)]) for of in of_heads])
            found[layer] = Moments(count, torch.full_like(count, math.inf), scores, scores.square())
        return HeadScores(self.name, found)


@torch.no_grad()
def outputs_before(model: Any, data: Sequence[Prompt]) -> dict[int, Tensor]:
    """By layer ``(heads, texts, channels)`` float64: what each head adds before each text's answer."""
    if not data:
        raise wrong("data", "no texts", "at least one")
    weights, rows = head_weights(model), list[dict[int, Tensor]]()
    for prompt in data:
        if prompt.answer is None:
            raise wrong("prompt", "no answer", "the slot of the answer, before which heads are read")
        trace = Trace("z")
        with attach(model, edits=[trace]):
            model(input_ids=prompt.ids[None, : prompt.answer].to(model.device), use_cache=False)
        rows.append({layer: trace.get("z", layer)[0, :, -1].double().cpu() for layer in range(len(weights))})
    return {
        layer: torch.einsum("hce,the->htc", of.o.double().cpu(), torch.stack([row[layer] for row in rows]))
        for layer, of in enumerate(weights)
    }


def pursuit(outputs: Tensor, atoms: Tensor, steps: int) -> list[int]:
    """Simultaneous orthogonal matching pursuit: the atoms that explain all outputs together, one after the other.

    Each step takes the atom, of unit length, whose products with the residuals have the largest sum of sizes, and fits
    all that were taken anew; it ends early where nothing is left.

    Args:
        outputs: ``(n, channels)``. atoms: ``(atoms, channels)``. steps: how many, at most.
    """
    unit, rest, taken = atoms / atoms.norm(dim=1, keepdim=True), outputs, list[int]()
    for _ in range(min(steps, len(atoms))):
        sizes = (rest @ unit.T).abs().sum(0)
        sizes[taken] = 0
        if float(sizes.max()) <= 1e-9 * float(outputs.norm()):
            break
        taken.append(int(sizes.argmax()))
        rest = outputs - projected(outputs, atoms[taken])
    return taken


def projected(outputs: Tensor, atoms: Tensor) -> Tensor:
    """The outputs' projection onto what the atoms span."""
    base = torch.linalg.qr(atoms.T).Q
    return outputs @ base @ base.T


def explained(outputs: Tensor, atoms: Tensor) -> Tensor:
    """The share of the outputs' squares that lies in the span of the atoms; none of nothing."""
    whole = outputs.square().sum()
    return projected(outputs, atoms).square().sum() / whole.clamp(min=torch.finfo(whole.dtype).tiny) * (whole > 0)


def recovered() -> tuple[Tensor, Tensor]:
    """Outputs of three of eleven atoms: these are picked, and explain all of it."""
    draw = torch.Generator().manual_seed(2)
    atoms = torch.randn(11, 23, generator=draw, dtype=torch.float64)
    weights = torch.tensor([[4.0, 0.5, 1.5], [3.0, -0.6, 1.0]], dtype=torch.float64)
    outputs = weights @ atoms[[7, 2, 5]]
    taken = pursuit(outputs, atoms, 3)
    share = explained(outputs, atoms[taken])
    return torch.tensor([*sorted(taken), float(share)]), torch.tensor([2, 5, 7, 1.0])
