"""Tokens of rules that are said several times: how much attention they get, and what that costs in certainty."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.errors import wrong


@published(
    "rule_anchors",
    family="theory",
    kind="study",
    row=106,
    title="Rule Encoding and Compliance in Large Language Models: An Information-Theoretic Analysis",
    arxiv="2510.05106",
    year=2025,
    aliases=("pointer_fidelity",),
    fidelity="abstract only",
    claim=(
        Claim(
            "attention on anchors and its entropy keep to their bounds in 10,000 draws under four masks",
            cells="anchors.drawn",
            holds="anchors.keep_to_the_bounds",
        ),
        Claim(
            "they keep to them in kernelized and in cross-attention too, by the margins that are there",
            cells="anchors.architectures",
            holds="anchors.keep_to_the_bounds",
        ),
        Claim(
            "the more anchors that stand out by 4 nats say a rule, the more attention it gets, and the less certain it "
            "is",
            cells="anchors.redundant",
            holds="anchors.trade",
        ),
        Claim(
            "rules that are loaded again at every check are kept more often than rules that are not",
            cells="anchors.reloaded",
            holds="anchors.keeps_more",
        ),
    ),
)
def fidelity_bound(anchors: Tensor, others: Tensor, margin: float) -> Tensor:
    """The least attention on r anchors whose scores lie a margin above all others': ``r e^Δ / (r e^Δ + o)``.

    Softmax rises with every anchor's score and falls with every other's, so that the least is where all anchors lie
    just Δ above all others, which then score alike. It is so for all weights that are a positive number of each token
    over their sum, kernelized attention's too, with Δ the logarithm of their quotient.

    Args:
        anchors: r that a query sees. others: o that it sees. margin: Δ.
    """
    return anchors / (anchors + others * torch.exp(torch.tensor(-margin, dtype=torch.float64)))


def entropy_bound(fidelity: Tensor, anchors: Tensor, others: Tensor) -> Tensor:
    """The most entropy that attention has with a mass F on r anchors: ``h(F) + F log r + (1 − F) log o``, in nats.

    The entropy of a mixture is that of the choice and those of the parts, and a part's is at most the logarithm of how
    many it has.
    """
    rest = 1 - fidelity
    choice = -torch.special.xlogy(fidelity, fidelity) - torch.special.xlogy(rest, rest)
    return choice + fidelity * anchors.clamp(min=1).log() + rest * others.clamp(min=1).log()


def compliance(kept: float, lost: float, every: int, steps: int) -> float:
    """How often a rule is kept over so many steps, where it is forgotten with a chance and loaded again at times.

        P(loaded at t) = (1 − lost)^(steps since it was loaded)

    Args:
        kept: the chance that a loaded rule is kept; one that is not is kept half as often. lost: the chance that it is
            forgotten in a step. every: steps between loads; 0 for one load at the start.

    Raises:
        ValueError: chances out of 0 to 1, or no steps.
    """
    if not (0 <= kept <= 1 and 0 <= lost <= 1) or steps < 1 or every < 0:
        raise wrong("kept, lost, every, steps", f"{kept}, {lost}, {every}, {steps}", "chances, and at least one step")
    age = torch.arange(steps, dtype=torch.float64)
    loaded = (1 - lost) ** (age % every if every else age)
    return (kept * loaded + kept / 2 * (1 - loaded)).mean().item()
