"""Preplan and anchor: credit goes to the tokens that look back far, and to those that are looked back at."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Generator, Tensor
from transformers import PreTrainedModel

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.mechanism import accumulate_dtype
from regard.hosts.watch import watch
from regard.probes.rhythm import Beat, Rhythm
from regard.train.objective import Batch, Objective, run

Credit = Literal["preplan", "anchor", "coupled"]
NEAR = 3
"""How many tokens before an anchor its preplan token may stand at most."""


@published(
    "preplan_anchor",
    family="training",
    kind="objective",
    row=37,
    title="Attention Illuminates LLM Reasoning: The Preplan-and-Anchor Rhythm Enables Fine-Grained Policy Optimization",
    arxiv="2510.13554",
    year=2025,
    fidelity="abstract only",
    claim=Claim(
        "credit by the rhythm needs at most 90% of the steps to the same share of right answers, and credit of as many "
        "random tokens does not: chains of sums",
        cells="rhythm.reinforced",
        holds="rhythm.sooner",
    ),
)
class PreplanAnchor(Objective):
    """The policy gradient of answers, whose advantage counts γ times at the tokens of the model's own rhythm.

        −mean over answers' tokens of min(r_t A_t, clip(r_t, 1 − ε, 1 + ε) A_t),   A_t = γ_t · advantage_t
        r_t = p_t / p'_t,   γ_t = γ at the chosen tokens, 1 at others

    Preplan tokens are those of the largest WAAD, averaged over the heads of the shortest span; anchors those of the
    largest FAI, over the heads of the longest (see `probes.rhythm`); ``"coupled"`` takes the anchors, and of the few
    tokens up to each the one of the largest WAAD.

    Args:
        gamma: γ. credit: which tokens. window: W of WAAD. heads: the share of heads that are short, and that are long.
            tokens: the share of an answer's tokens that are chosen, at least one. clip: ε.

    The batch marks ``"answer"`` and has ``"advantage"``, numbers ``(b, n)``: of a group of answers to one prompt, their
    reward without the group's mean, over its deviation. Where several steps learn from the same samples, as
    `train.reused.Reused` has it, it has ``"old"`` too, log p' of the policy that drew them (`remembered`); without,
    p' is the model itself, and the gradient that of −A_t log p_t.

    Raises:
        ValueError: another credit, or shares out of (0, 1]; while it trains, a batch without these.

    Paper: arXiv 2510.13554, of which the abstract was at hand: shares and distances are ours.
    """

    def __init__(
        self,
        gamma: float = 1.5,
        credit: Credit = "coupled",
        window: int = 10,
        heads: float = 0.3,
        tokens: float = 0.2,
        clip: float = 0.2,
    ) -> None:
        if credit not in ("preplan", "anchor", "coupled"):
            raise wrong("credit", repr(credit), "'preplan', 'anchor' or 'coupled'")
        for name, share in (("heads", heads), ("tokens", tokens)):
            if not 0 < share <= 1:
                raise wrong(name, str(share), "a share above 0 and at most 1")
        if not 0 < clip < 1:
            raise wrong("clip", str(clip), "above 0 and below 1")
        self.gamma, self.credit, self.window, self.heads, self.tokens = gamma, credit, window, heads, tokens
        self.clip = clip

    def loss(self, model: PreTrainedModel, batch: Batch, generator: Generator) -> Tensor:
        factors = 1 + (self.gamma - 1) * self.chosen(model, batch).to(torch.float32)
        return policy_gradient(model, batch, factors, self.clip)

    @torch.no_grad()
    def chosen(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """``(b, n)`` bool: the tokens of the answers that count more."""
        with watch(model, [probe := Rhythm(self.window)]):
            run(model, batch)
        distance, influence = rhythm(probe.result(), self.heads)
        answer = batch.marked("answer") & batch.real
        if self.credit == "preplan":
            return largest(distance, answer, self.tokens)
        anchors = largest(influence, answer, self.tokens)
        return anchors if self.credit == "anchor" else anchors | preplans(distance, anchors, answer)

    @classmethod
    def examples(cls) -> list[Sample]:
        return [Sample(credit, cls(2.0, credit, 3, 0.4, 0.4)) for credit in ("preplan", "anchor", "coupled")]


def policy_gradient(model: PreTrainedModel, batch: Batch, factors: Tensor, clip: float = 0.2) -> Tensor:
    """−mean over answers' tokens of the clipped ratio times factor · advantage, ``factors (b, n)``: see above.

    Without marks ``"old"`` it is −mean of factor · advantage · log p.
    """
    answer = (batch.marked("answer") & batch.targets)[:, 1:]
    if not bool(answer.any()):
        raise wrong("batch", "no token of an answer", "some, behind the first of their text")
    logs, credit = log_probabilities(model, batch), (factors * batch.marked("advantage"))[:, 1:]
    if "old" not in (batch.marks or {}):
        return -(credit * logs)[answer].mean()
    ratio = (logs - batch.marked("old")[:, 1:]).exp()
    return -torch.minimum(ratio * credit, ratio.clamp(1 - clip, 1 + clip) * credit)[answer].mean()


def log_probabilities(model: PreTrainedModel, batch: Batch) -> Tensor:
    """log p of each token but the first, from those before it, ``(b, n − 1)``."""
    logits = run(model, batch).logits[:, :-1]
    return logits.to(accumulate_dtype(logits.dtype)).log_softmax(-1).gather(2, batch.ids[:, 1:, None])[..., 0]


@torch.no_grad()
def remembered(model: PreTrainedModel, batch: Batch) -> Batch:
    """The batch with marks ``"old"``: the log-probabilities that the model gives its tokens now."""
    old = torch.nn.functional.pad(log_probabilities(model, batch), (1, 0))
    return replace(batch, marks={**(batch.marks or {}), "old": old})


def rhythm(beats: dict[int, Beat], share: float = 0.3) -> tuple[Tensor, Tensor]:
    """``(WAAD, FAI)``, ``(b, n)`` each: over the heads of the shortest and of the longest span, of all layers."""
    span, distance, influence = (
        torch.cat([getattr(beats[layer], name) for layer in sorted(beats)], 1)
        for name in ("span", "distance", "influence")
    )
    order = span.mean(0).argsort(stable=True)
    count = max(1, round(share * len(order)))
    return distance[:, order[:count]].mean(1), influence[:, order[-count:]].mean(1)


def largest(values: Tensor, among: Tensor, share: float) -> Tensor:
    """``(b, n)`` bool: the share of the largest values of each text, of the tokens ``among``, at least one of them."""
    found = torch.zeros_like(among)
    for row, (own, meant) in enumerate(zip(values, among, strict=True)):
        places = meant.nonzero()[:, 0]
        count = min(len(places), max(1, round(share * len(places))))
        found[row, places[own[places].topk(count).indices]] = True
    return found


def preplans(distance: Tensor, anchors: Tensor, among: Tensor) -> Tensor:
    """``(b, n)`` bool: of each anchor and the few tokens before it, that of the largest WAAD."""
    found = torch.zeros_like(anchors)
    for row, at in anchors.nonzero().tolist():
        near = [place for place in range(max(0, at - NEAR), at + 1) if bool(among[row, place])]
        found[row, max(near, key=lambda place: float(distance[row, place]))] = True
    return found
