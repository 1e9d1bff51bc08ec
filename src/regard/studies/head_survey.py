"""A survey's roles of heads, with what finds each of them here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from regard.core.atlas import Claim, published
from regard.core.errors import did_you_mean, wrong

STAGES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "recall": ("retrieval_heads", "sink"),
        "context identification": ("previous_token", "duplicate_token", "retrieval_heads", "lookback_lens"),
        "latent reasoning": ("induction_heads", "circuit_reuse"),
        "expression": ("head_pruning", "causal_head_gating", "circuit_reuse"),
    }
)
"""The four stages of the survey, and the analyses of regard that find heads of each: most need no training, the ratios
of `lookback_lens` are what a logistic probe is trained on, and `causal_head_gating` trains gates."""


@published(
    "head_survey",
    family="observe",
    kind="study",
    row=93,
    title="Attention Heads of Large Language Models: A Survey",
    arxiv="2409.03752",
    year=2024,
    aliases=("attention_heads_survey",),
    fidelity="hand values",
    claim=(
        Claim(
            "SmolLM2 has a head that matches prefixes, and a repetition loses 5 times more by it than by others",
            cells="survey.best_of(model='smollm2')",
            holds="survey.is_the_cause",
        ),
        Claim(
            "the model that ships has several, and loses 5 times more by them together than by as many others",
            cells="survey.together(model='tiny')",
            holds="survey.together_they_are",
        ),
    ),
)
def detectors(stage: str) -> tuple[str, ...]:
    """What finds the heads of a stage of the survey: names of analyses, for `regard.heads` and `regard.patch`.

    Args:
        stage: "recall", "context identification", "latent reasoning" or "expression".

    Raises:
        LookupError: another stage.

    Paper: Zheng et al., arXiv 2409.03752.
    """
    if stage not in STAGES:
        wanted = f"one of {', '.join(STAGES)}{did_you_mean(stage, STAGES)}"
        raise wrong("stage", repr(stage), wanted, LookupError)
    return STAGES[stage]
