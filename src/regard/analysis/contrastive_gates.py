"""Contrastive causal head gating: gates that keep one task and lose another, which tell what only the other needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regard.analysis.base import Head, Prompt
from regard.analysis.head_gates import EDGE, CausalHeadGating, HeadGates, answer_loss
from regard.analysis.sweep import heads_of
from regard.core.errors import wrong
from regard.core.frozen import frozen
from regard.hosts.attach import attach

MOST = 10.0
"""Nats a token of the task that is to be lost, from which on nothing is gained by losing more."""


def contrastive_gates(
    model: Any, keep: Sequence[Prompt], forget: Sequence[Prompt], fitting: CausalHeadGating | None = None
) -> Tensor:
    """Gates G = σ(logits) ``(layers, heads)`` float64 of a frozen model that keep one task and lose another.

        loss = NLL(keep) − min(NLL(forget), 10) − λ · mean over heads of clip(logits, −4, 4)

    λ > 0 leaves open what need not be shut, so that 1 − G is high in heads that the lost task needs and the kept one
    can do without. Steps, batch, rate, λ and seed are those of ``fitting``, from logits drawn from U(0, 1).

    Args:
        model: of Transformers. keep, forget: prompts with ``answer``. fitting: as for one task; None for its defaults.

    Raises:
        ValueError: no prompts of either task, or one without an answer before its end.

    Paper: Nam et al., arXiv 2505.13737; the bound is ours, and the package of its authors has one task alone.
    """
    fitting = CausalHeadGating() if fitting is None else fitting
    for name, prompts in (("keep", keep), ("forget", forget)):
        if not prompts or any(prompt.answer is None or len(prompt.ids) <= prompt.answer for prompt in prompts):
            raise wrong(name, f"{len(prompts)} prompts", "some, each with an answer that begins before its end")
    draw, heads = torch.Generator().manual_seed(fitting.seed), heads_of(model)
    start = torch.rand(1 + max(heads)[0], 1 + max(h for _, h in heads), generator=draw)
    logits = start.to(model.device).requires_grad_(True)
    descent = torch.optim.Adam([logits], lr=fitting.rate)
    batches = zip(fitting.batches(keep, draw), fitting.batches(forget, draw), strict=True)
    with frozen(model.parameters()), torch.enable_grad():
        for kept, lost in batches:
            descent.zero_grad()
            with attach(model, edits=[HeadGates(logits.sigmoid())]):
                loss = answer_loss(model, kept) - answer_loss(model, lost).clamp(max=MOST)
            (loss - fitting.pull * logits.clamp(-EDGE, EDGE).mean()).backward()
            torch.nn.utils.clip_grad_norm_([logits], 1.0, error_if_nonfinite=True)
            descent.step()
    return logits.detach().cpu().double().sigmoid()


def shut(gates: Tensor, below: float = 0.5) -> list[Head]:
    """The heads whose gates are below a value."""
    return [(int(layer), int(head)) for layer, head in (gates < below).nonzero().tolist()]
