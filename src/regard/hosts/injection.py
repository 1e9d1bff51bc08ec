"""What soft injection needs of a model: the states of a task, and how much of them each head takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from regard.core.frozen import frozen
from regard.edits.soft_injection import SoftInjection
from regard.edits.trace import Trace
from regard.hosts.calibrate import Answered
from regard.hosts.steer import steer


def together(prompts: Sequence[Tensor]) -> dict[str, Tensor]:
    """Prompts of any lengths as one batch, padded on the left."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.stack([torch.nn.functional.pad(prompt, (longest - len(prompt), 0)) for prompt in prompts])
    lengths = torch.tensor([len(prompt) for prompt in prompts])[:, None]
    mask = (torch.arange(longest) >= longest - lengths).long()
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


@torch.no_grad()
def task_states(model: PreTrainedModel, prompts: Sequence[Tensor]) -> dict[int, Tensor]:
    """By layer ``(heads, e)``: the mean output of every head at the last token of prompts with examples."""
    with steer(model, trace := Trace("z")):
        model(**together(prompts), use_cache=False)
    return {layer: held[0][:, :, -1].mean(0) for (_, layer), held in trace.kept.items()}


def learned(
    model: PreTrainedModel,
    states: Mapping[int, Tensor],
    examples: Sequence[Answered],
    steps: int = 100,
    rate: float = 0.1,
) -> dict[int, Tensor]:
    """By layer ``(heads,)``: α = σ(logit) of every head, learned so that prompts without examples are answered.

    The model is frozen; the loss is that of the first token of each answer. Learning begins at α = ½.
    """
    logits = {layer: torch.zeros(len(state), requires_grad=True) for layer, state in states.items()}
    optimiser = torch.optim.Adam(logits.values(), lr=rate)
    batch = together([one.prompt for one in examples])
    answers = torch.stack([one.answer[0] for one in examples])
    with frozen(model.parameters()):
        for _ in range(steps):
            with steer(model, SoftInjection(states, {layer: logit.sigmoid() for layer, logit in logits.items()})):
                out = model(**batch, use_cache=False, logits_to_keep=1).logits[:, -1]
            loss = torch.nn.functional.cross_entropy(out.float(), answers)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return {layer: logit.detach().sigmoid() for layer, logit in logits.items()}
