"""Lookback ratios: how much each head looks at the given text, and how much at what the model itself has said."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard.analysis.base import DenseMaps, Prompt, subject_of
from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample, shown_by
from regard.probes.places import SpanMeans


@published(
    "lookback_lens",
    family="observe",
    kind="analysis",
    row=80,
    title="Lookback Lens: Detecting and Mitigating Contextual Hallucinations in Large Language Models Using Only "
    "Attention Maps",
    arxiv="2407.07071",
    year=2024,
    fidelity="hand values",
    claim=Claim(
        "answers that stand in the text are told from those that do not by the ratios, as well as by hidden states",
        cells="lookback.told",
        holds="lookback.as_well_as_states",
    ),
)
@shown_by(lambda: [Sample("by hand", lookback_ratios, {"known": by_hand})])
def lookback_ratios(subject: Any, prompt: Prompt) -> Tensor:
    """The lookback ratio of every head for each token of an answer, ``(tokens, layers · heads)`` float32.

        LR_t = mean_{j given} A_tj / (mean_{j given} A_tj + mean_{j said, j ≤ t} A_tj)

    of the rows t of the answer. Their mean over a span is what the paper's logistic classifier reads.

    Args:
        subject: a model, or maps. prompt: the whole text with its ``answer``, where what the model said begins.

    Raises:
        ValueError: a prompt without an answer, or without a text before it.

    Paper: Chuang et al., arXiv 2407.07071: means by token as in the authors' code.
    `decoding.LookbackDecoding` is guided by them.
    """
    if prompt.answer is None or not 0 < prompt.answer < len(prompt.ids):
        raise wrong("prompt", f"an answer at {prompt.answer}", "one behind a text, with a token in it")
    means = SpanMeans({"given": (0, prompt.answer), "said": (prompt.answer, None)})
    subject_of(subject).show(prompt.ids[None], [means])
    found = []
    for values in means.result().values():
        given, said = values[0, :, prompt.answer :].unbind(2)
        found.append(given / (given + said))
    return torch.cat(found).T


def by_hand() -> tuple[Tensor, Tensor]:
    """Two given tokens and two said: of (0.3, 0.3, 0.4) 0.3 of 0.7, of (0.1, 0.3, 0.2, 0.4) 0.2 of 0.5."""
    maps = torch.zeros(1, 1, 4, 4)
    maps[0, 0, 2, :3] = torch.tensor([0.3, 0.3, 0.4])
    maps[0, 0, 3] = torch.tensor([0.1, 0.3, 0.2, 0.4])
    found = lookback_ratios(DenseMaps(lambda ids: [maps]), Prompt(torch.arange(4), answer=2))
    return found[:, 0], torch.tensor([0.3 / 0.7, 0.2 / 0.5])
