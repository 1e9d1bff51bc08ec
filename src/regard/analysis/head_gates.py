"""Causal head gating: gates of all heads, fitted to a task, say which it needs, does not need, and is harmed by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from regard.analysis.base import Analysis, Head, Prompt, Result
from regard.analysis.planted import LAYERS, PLACES, planted_model
from regard.analysis.sweep import heads_of
from regard.core.atlas import Claim, published
from regard.core.edit import Edit, Place
from regard.core.errors import wrong
from regard.core.frozen import frozen
from regard.core.kinds import Sample
from regard.hosts.attach import attach

EDGE = 4.0
"""Logits beyond ± this are pushed no further."""


class HeadGates(Edit):
    """Heads whose outputs are multiplied by gates: z_h ← g_{l,h} z_h, with gradients to the gates.

    Args:
        gates: ``(layers, heads)``.
    """

    def __init__(self, gates: Tensor) -> None:
        super().__init__()
        self.gates = gates

    def heads(self, z: Tensor, place: Place) -> Tensor:
        return z * self.gates[place.layer, : place.heads, None, None].to(z.dtype)


@dataclass(frozen=True)
class Gates(Result):
    """Fitted gates, the mean over runs.

    Args:
        open, shut: ``(layers, heads)``, G⁺ fitted while gates were pushed open, G⁻ while they were pushed shut.
        runs: how many fits.
    """

    open: Tensor
    shut: Tensor
    runs: int = 1
    name = "head_gates"

    @property
    def facilitating(self) -> Tensor:
        """G⁻: what the task needs so much that it stays open."""
        return self.shut

    @property
    def irrelevant(self) -> Tensor:
        """G⁺ (1 − G⁻): open or shut, as it is pushed."""
        return self.open * (1 - self.shut)

    @property
    def interfering(self) -> Tensor:
        """1 − G⁺: what the task needs shut."""
        return 1 - self.open

    def merge(self, other: Gates) -> Gates:
        """The mean over the runs of both."""
        if self.open.shape != other.open.shape:
            raise wrong("other", f"gates {tuple(other.open.shape)}", f"gates {tuple(self.open.shape)}")
        runs = self.runs + other.runs
        parts = [(a * self.runs + b * other.runs) / runs for a, b in ((self.open, other.open), (self.shut, other.shut))]
        return replace(self, open=parts[0], shut=parts[1], runs=runs)

    def ranked(self, role: str) -> list[tuple[int, int, float]]:
        """``(layer, head, score)`` by ``facilitating``, ``irrelevant`` or ``interfering``, the highest first."""
        if role not in ("facilitating", "irrelevant", "interfering"):
            raise wrong("role", repr(role), "facilitating, irrelevant or interfering")
        scores: Tensor = getattr(self, role)
        every = [(layer, h, float(x)) for layer, row in enumerate(scores) for h, x in enumerate(row)]
        return sorted(every, key=lambda entry: -entry[2])

    def table(self) -> list[dict[str, Any]]:
        return [
            {"layer": layer, "head": head}
            | {role: float(getattr(self, role)[layer, head]) for role in ("facilitating", "irrelevant", "interfering")}
            for layer in range(len(self.open))
            for head in range(self.open.shape[1])
        ]


@published(
    "causal_head_gating",
    family="observe",
    kind="analysis",
    row=92,
    title="Causal Head Gating: A Framework for Interpreting Roles of Attention Heads in Transformers",
    arxiv="2505.13737",
    year=2025,
    aliases=("chg", "head_gates"),
    fidelity="hand values",
    claim=(
        Claim(
            "heads that a task needs and heads that it does not need are told apart",
            cells="heads.gated",
            holds="heads.needed_and_not",
        ),
        Claim(
            "a planted noise head interferes",
            cells="heads.noisy",
            holds="heads.noise_interferes",
        ),
        Claim(
            "gates that keep one task and lose another shut heads that only the other needs",
            cells="contrast.told_apart",
            holds="contrast.one_is_lost",
        ),
    ),
)
class CausalHeadGating(Analysis[Prompt, Gates]):
    """Gates G = σ(logits) of all heads of a frozen model, fitted three times.

        loss = NLL of the answers − λ · mean over heads of clip(logits, −4, 4)

    First λ = 0 from logits drawn from U(0, 1); then, each going on from there, λ > 0 (G⁺) and −λ (G⁻). Facilitating is
    G⁻, irrelevant G⁺ (1 − G⁻), interfering 1 − G⁺. Adam, gradients clipped at norm one.

    Args:
        steps: of each of the three fits. batch: prompts a step. rate: Adam's. pull: λ. seed: of start and batches.

    Data: prompts of one length, with ``answer``: the likelihood is that of the tokens from there on.

    Two tasks are told apart by `analysis.contrastive_gates`.

    Paper: Nam et al., arXiv 2505.13737; loss, clip and defaults as in the authors' package.
    """

    name = "head_gates"

    def __init__(self, steps: int = 500, batch: int = 32, rate: float = 1.0, pull: float = 0.1, seed: int = 0) -> None:
        if steps < 1 or batch < 1:
            raise wrong("steps, batch", f"{steps}, {batch}", "at least one of each")
        self.steps, self.batch, self.rate, self.pull, self.seed = steps, batch, rate, pull, seed

    @classmethod
    def examples(cls) -> list[Sample]:
        draw = torch.Generator().manual_seed(0)
        texts = [Prompt(torch.randint(0, 29, (11,), generator=draw), answer=5) for _ in range(4)]
        silent = [(layer, head) for layer in range(LAYERS) for head in range(3) if (layer, head) not in PLACES]
        given = {"data": texts, "planted": planted_model(), "heads": silent, "score": "irrelevant", "threshold": 0.9}
        return [Sample("CausalHeadGating", cls(steps=25, batch=4), {**given, "pooled": False})]

    def run(self, subject: Any, data: Iterable[Prompt]) -> Gates:
        prompts = list(data)
        if not prompts or any(prompt.answer is None or len(prompt.ids) <= prompt.answer for prompt in prompts):
            raise wrong("data", f"{len(prompts)} prompts", "some, each with an answer that begins before its end")
        draw = torch.Generator().manual_seed(self.seed)
        heads = heads_of(subject)
        start = torch.rand(1 + max(heads)[0], 1 + max(h for _, h in heads), generator=draw)
        with frozen(subject.parameters()):
            free = self.fit(subject, prompts, start, 0.0, draw)
            ends = [self.fit(subject, prompts, free, pull, draw).sigmoid().double() for pull in (self.pull, -self.pull)]
        return Gates(open=ends[0], shut=ends[1])

    @torch.enable_grad()
    def fit(self, model: Any, prompts: Sequence[Prompt], start: Tensor, pull: float, draw: torch.Generator) -> Tensor:
        """The logits after ``steps`` steps from ``start``."""
        logits = start.clone().to(model.device).requires_grad_(True)
        descent = torch.optim.Adam([logits], lr=self.rate)
        for some in self.batches(prompts, draw):
            descent.zero_grad()
            with attach(model, edits=[HeadGates(logits.sigmoid())]):
                loss = answer_loss(model, some) - pull * logits.clamp(-EDGE, EDGE).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([logits], 1.0, error_if_nonfinite=True)
            descent.step()
        return logits.detach().cpu()

    def batches(self, prompts: Sequence[Prompt], draw: torch.Generator) -> Iterator[list[Prompt]]:
        """As many batches as steps."""
        for _ in range(self.steps):
            chosen = torch.randperm(len(prompts), generator=draw)[: self.batch].tolist()
            yield [prompts[i] for i in chosen]


def answer_loss(model: Any, prompts: Sequence[Prompt]) -> Tensor:
    """Mean negative log-likelihood of the answers' tokens, texts of one length in a batch."""
    by_length: dict[int, list[Prompt]] = {}
    for prompt in prompts:
        by_length.setdefault(len(prompt.ids), []).append(prompt)
    total, count = torch.zeros((), device=model.device), 0
    for some in by_length.values():
        ids = torch.stack([prompt.ids for prompt in some]).to(model.device)
        wanted = torch.full_like(ids, -100)
        for row, prompt in enumerate(some):
            wanted[row, prompt.answer :] = ids[row, prompt.answer :]
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        total = total + cross_entropy(logits.flatten(0, 1), wanted[:, 1:].flatten(), reduction="sum")
        count += int((wanted[:, 1:] != -100).sum())
    return total / count


def heads_above(gates: Gates, role: str, count: int) -> list[Head]:
    """The ``count`` heads that play a role most."""
    return [(layer, head) for layer, head, _ in gates.ranked(role)[:count]]
