"""Which heads of a model gain by more attention to the first token and which by less, and the factor for these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from regard.core.edit import Edit
from regard.core.errors import wrong
from regard.edits.zero_tuning import ZeroTuning
from regard.hosts.attention_interface import host
from regard.hosts.calibrate import Answered, log_probability
from regard.hosts.steer import steer

GAMMAS = (0.3, 0.6, 0.8, 1.25, 1.6, 2.5, 4.0)


@dataclass(frozen=True)
class HeadProfile:
    """What more attention to the first token does, head by head.

    Args:
        gains: ``(layers, heads)``, the gain of the answers' mean log-probability; heads that were not asked have NaN.
        gamma: γ, by which each head was tried alone, above 1.
    """

    gains: Tensor
    gamma: float

    def heads(self, kind: Literal["up", "down"]) -> dict[int, list[int]]:
        """Those that gain by more attention to the first token, or lose by it, by layer."""
        chosen = self.gains > 0 if kind == "up" else self.gains < 0
        return {layer: row.nonzero()[:, 0].tolist() for layer, row in enumerate(chosen) if bool(row.any())}

    @property
    def dominant(self) -> Literal["up", "down"]:
        """Which of the two are more."""
        return "up" if int((self.gains > 0).sum()) >= int((self.gains < 0).sum()) else "down"

    def edit(self, gamma: float) -> ZeroTuning:
        """The dominant kind of heads alone, with this factor.

        Raises:
            ValueError: no head gained or lost anything.
        """
        heads = self.heads(self.dominant)
        if not heads:
            raise wrong("profile", "no head that gained or lost", "examples whose answers depend on attention")
        return ZeroTuning(gamma, heads=heads)


def head_profile(
    model: PreTrainedModel,
    examples: Sequence[Answered],
    gamma: float = 1.5,
    layers: Sequence[int] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> HeadProfile:
    """Tries more attention to the first token in each head alone: a pass for each head and example.

    Args:
        examples: what is to be said to what. gamma: γ. layers: whose heads are asked, all if None.

    Raises:
        ValueError: no examples, or a factor that is not above 1.

    Paper: Han et al. (ZeroTuning), arXiv 2505.11739; by which γ heads are sorted was not at hand.
    """
    if not examples or not gamma > 1:
        raise wrong("examples, gamma", f"{len(examples)}, {gamma}", "at least one, and above 1")
    model = host(model)
    config = model.config.get_text_config(decoder=True)
    asked = range(config.num_hidden_layers) if layers is None else layers
    gains = torch.full((config.num_hidden_layers, config.num_attention_heads), torch.nan)
    plain = [log_probability(model, one) for one in examples]
    for place, layer in enumerate(asked):
        for head in range(gains.shape[1]):
            edit = ZeroTuning(gamma, heads={layer: [head]})
            each = [log_probability(model, one, edit) - was for one, was in zip(examples, plain, strict=True)]
            gains[layer, head] = sum(each) / len(each)
        progress(place + 1, len(asked))
    return HeadProfile(gains, gamma)


def tuned(
    model: PreTrainedModel,
    examples: Sequence[Answered],
    profile: HeadProfile,
    gammas: Sequence[float] = GAMMAS,
    by: Literal["answers", "entropy"] = "answers",
) -> tuple[ZeroTuning, dict[float, float]]:
    """``(the dominant heads with the best factor, what each factor gave)``.

    Args:
        by: the answers' mean log-probability; or, where answers are unknown, the least mean entropy of what the model
            says at their places.
    """
    if by not in ("answers", "entropy"):
        raise wrong("by", repr(by), "'answers' or 'entropy'")
    model, told = host(model), {}
    worth = log_probability if by == "answers" else sureness
    for gamma in gammas:
        edit = profile.edit(gamma)
        told[gamma] = sum(worth(model, one, edit) for one in examples) / len(examples)
    best = max(told, key=lambda gamma: told[gamma])
    return profile.edit(best), told


@torch.no_grad()
def sureness(model: PreTrainedModel, example: Answered, edit: Edit) -> float:
    """Minus the mean entropy, in nats, of what is predicted at an answer's tokens."""
    with steer(model, edit):
        ids = torch.cat([example.prompt, example.answer])[None, :-1].to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, -len(example.answer) :]
    logs = logits.float().log_softmax(-1)
    return (logs.exp() * logs).sum(-1).mean().item()
