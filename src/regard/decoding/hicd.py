"""HICD: contrastive decoding against a copy whose heads that read the context attend evenly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from regard.analysis.base import Prompt
from regard.analysis.head_importance import HeadImportance
from regard.core.atlas import Claim, published
from regard.core.edit import Heads
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.decoding.contrast import Contrast
from regard.edits.scaling import Temperature


@published(
    "hicd",
    family="steering",
    kind="decoding",
    row=104,
    title="HICD: Hallucination-Inducing via Attention Dispersion for Contrastive Decoding to Mitigate Hallucinations",
    arxiv="2503.12908",
    year=2025,
    fidelity="authors' code",
    claim=Claim(
        "on lookups among keys that differ in a letter SmolLM2 is right more often by it than by greedy decoding, and "
        "than with random heads dispersed",
        cells="decoding.dispersed",
        holds="decoding.mends",
    ),
)
class HICD(Contrast):
    """Contrast with a copy that hallucinates: in some of its heads attention is uniform over all visible tokens.

        s = log p + α (log p − log p̃),   Ã_h = uniform for the chosen heads h

    Heads are chosen by `of`: of importance c on contexts with the right answer and a on contexts with a wrong one, both
    scaled to [0, 1], the ``top`` of c + σ (c − a).

    Args:
        heads: those that are dispersed. weight: α; the authors take 1.1 to 0.38 by task. plausibility: as for
            `Contrast`; the authors' own path has none.

    Paper: arXiv 2503.12908. The authors' code contrasts two runs that each go on with their own tokens; here both go on
    with the token that was chosen.
    """

    def __init__(self, heads: Heads, weight: float = 1.1, plausibility: float = 0.0) -> None:
        self.heads = heads
        super().__init__([Temperature(math.inf, heads=heads)], weight, plausibility)

    @classmethod
    def of(
        cls,
        model: Any,
        right: Iterable[Prompt],
        misleading: Iterable[Prompt],
        top: int = 30,
        scale: float = 20.0,
        weight: float = 1.1,
    ) -> Self:
        """The strategy with the heads that matter where the answer is ``right``, and not in ``misleading`` texts.

        Args:
            model: a causal language model of Transformers. right, misleading: texts with the right answer, and with a
                wrong one. top: how many heads. scale: σ.
        """
        return cls(contrasted(importance(model, right), importance(model, misleading), top, scale), weight)

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample("3 heads", cls({0: [1, 4], 1: [2]}, 1.5)), Sample("plausible ones", cls([0, 3], 2.0, 0.2))]


def importance(model: Any, texts: Iterable[Prompt]) -> Tensor:
    """``(layers, heads)`` in [0, 1]: how much the texts' loss hangs on each head, the least 0 and the most 1."""
    found = HeadImportance().run(model, texts).values
    every = torch.stack([found[layer] for layer in sorted(found)])
    return (every - every.min()) / (every.max() - every.min()).clamp(min=torch.finfo(every.dtype).tiny)


def contrasted(right: Tensor, misleading: Tensor, top: int, scale: float) -> Mapping[int, list[int]]:
    """The ``top`` heads of c + σ (c − a), by layer.

    Raises:
        ValueError: more than there are.
    """
    if not 0 < top <= right.numel():
        raise wrong("top", str(top), f"1 to {right.numel()}, the heads there are")
    chosen = (right + scale * (right - misleading)).flatten().topk(top).indices.tolist()
    layers: dict[int, list[int]] = {}
    for index in sorted(chosen):
        layers.setdefault(index // right.shape[1], []).append(index % right.shape[1])
    return layers
