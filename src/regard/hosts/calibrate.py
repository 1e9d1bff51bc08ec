"""Choosing an edit by examples: searched on one half, held to the other with controls, or not recommended."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from regard.core.edit import Edit, Heads, Where
from regard.core.errors import wrong
from regard.experiments.bootstrap import bootstrap
from regard.hosts.attention_interface import host
from regard.hosts.steer import steer

CONTROLS = 5
"""Random edits of each kind that the chosen one is held against."""


@dataclass(frozen=True)
class Answered:
    """A prompt and what is to follow it.

    Args:
        prompt: ``(n,)`` token ids. answer: ``(a,)``, what the model is to say.
    """

    prompt: Tensor
    answer: Tensor


Candidate = Edit | Callable[[Answered], Edit]
"""An edit, or what makes one for an example, as where spans differ."""


@dataclass(frozen=True)
class Calibration:
    """What a search found, and what is left of it on examples that it has not seen.

    Args:
        best: the candidate's name. edit: itself. searched: the mean gain of each on the half that was searched.
        gain, low, high: mean on the other half and its 95% interval, in nats a token of the answer.
        controls: the mean gains there of random heads and of random tokens, where the edit is confined to some.
        examples: how many were searched and held out.
    """

    best: str
    edit: Candidate
    searched: Mapping[str, float]
    gain: float
    low: float
    high: float
    examples: tuple[int, int]
    controls: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def recommended(self) -> bool:
        """Whether the interval lies above zero, and the gain above that of every control."""
        return self.low > 0 and all(self.gain > other for gains in self.controls.values() for other in gains)

    def __str__(self) -> str:
        told = f"{self.best}: {self.gain:+.3f} nats a token ({self.low:+.3f} to {self.high:+.3f}) on {self.examples[1]}"
        others = "".join(
            f"; random {name} {min(gains):+.3f} to {max(gains):+.3f}" for name, gains in self.controls.items()
        )
        if self.recommended:
            return f"{told} examples held out{others}"
        why = "controls do as well" if self.low > 0 else "it hurts" if self.high < 0 else "the interval contains 0"
        return f"not recommended, as {why}: {told} examples held out{others}"


def calibrate(
    model: PreTrainedModel,
    candidates: Mapping[str, Candidate] | Sequence[Edit],
    examples: Sequence[Answered],
    *,
    split: float = 0.5,
    seed: int = 0,
) -> Calibration:
    """Searches for the edit that makes the answers likeliest on some examples, and measures it on the others.

    The gain is that of the mean log-probability of the answers' tokens, against the model without an edit on the same
    examples; the interval is a paired bootstrap's. An edit that is confined to heads is held against as many others of
    the same layers, one of some keys against spans as long elsewhere in the prompt.

    Args:
        model: as for `regard.steer`, with a language model's logits. candidates: edits, by their names if a mapping;
            a function of the example where spans differ. examples: what is to be said to what. split: the share of
            examples that is searched. seed: of the split and of the controls.

    Raises:
        ValueError: no candidates; too few examples for two halves of two.
    """
    model = host(model)
    named = candidates if isinstance(candidates, Mapping) else {repr(edit): edit for edit in candidates}
    count = round(split * len(examples))
    if not named:
        raise wrong("candidates", "none", "at least one edit")
    if min(count, len(examples) - count) < 2:
        raise wrong("examples", f"{len(examples)} with split={split}", "at least two to search and two to hold out")
    order = random.Random(seed).sample(range(len(examples)), len(examples))
    seen, unseen = ([examples[index] for index in part] for part in (order[:count], order[count:]))
    base = {id(part): torch.tensor([log_probability(model, one) for one in part]) for part in (seen, unseen)}

    def gains(edit: Candidate, part: Sequence[Answered]) -> Tensor:
        return torch.tensor([log_probability(model, one, edit) for one in part]) - base[id(part)]

    searched = {name: gains(edit, seen).mean().item() for name, edit in named.items()}
    best = max(searched, key=lambda name: searched[name])
    chosen = named[best]
    each = gains(chosen, unseen)
    low, high = (end.item() for end in bootstrap(each, seed=seed))
    source = random.Random(seed + 1)
    controls = {
        kind: [gains(other, unseen).mean().item() for other in others]
        for kind, others in controls_of(chosen, unseen[0], model, source).items()
    }
    return Calibration(best, chosen, searched, each.mean().item(), low, high, (count, len(unseen)), controls)


@torch.no_grad()
def log_probability(model: PreTrainedModel, example: Answered, edit: Candidate | None = None) -> float:
    """The mean log-probability of an answer's tokens, under an edit or without."""
    made = [] if edit is None else [edit if isinstance(edit, Edit) else edit(example)]
    ids = torch.cat([example.prompt, example.answer])[None].to(model.device)
    with steer(model, *made):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0, -len(example.answer) :]
    logs = logits.float().log_softmax(-1)
    return logs.gather(1, example.answer[:, None].to(logs.device)).mean().item()


def controls_of(
    chosen: Candidate, example: Answered, model: PreTrainedModel, source: random.Random
) -> dict[str, list[Candidate]]:
    """The edits that the chosen one is held against: of other heads, and of other keys."""
    where = (chosen if isinstance(chosen, Edit) else chosen(example)).where
    found: dict[str, list[Candidate]] = {}
    if where.heads is not None:
        of = model.config.get_text_config().num_attention_heads
        drawn = [other_heads(where.heads, of, source) for _ in range(CONTROLS)]
        found["heads"] = [moved(chosen, lambda _, where, heads=heads: replace(where, heads=heads)) for heads in drawn]
    if where.keys is not None and not isinstance(where.keys, Mapping):
        places = [source.random() for _ in range(CONTROLS)]
        found["tokens"] = [
            moved(chosen, lambda one, where, at=at: other_keys(where, len(one.prompt), at)) for at in places
        ]
    return found


def moved(chosen: Candidate, change: Callable[[Answered, Where], Where]) -> Candidate:
    """The chosen edit somewhere else."""

    def make(example: Answered) -> Edit:
        edit = chosen if isinstance(chosen, Edit) else chosen(example)
        return edit.but(where=change(example, edit.where))

    return make


def other_heads(heads: Heads, of: int, source: random.Random) -> Heads:
    """As many heads of the same layers, of those that were not chosen while there are enough."""

    def drawn(named: Sequence[int]) -> list[int]:
        free = [head for head in range(of) if head not in named]
        return source.sample(free if len(free) >= len(named) else range(of), len(named))

    if isinstance(heads, Mapping):
        return {layer: drawn(named) for layer, named in heads.items()}
    return drawn(heads)


def other_keys(where: Where, length: int, at: float) -> Where:
    """The spans moved along the prompt by a share ``at`` of it, at least a token, around its end."""
    shift, found = 1 + int(at * (length - 1)), []
    for start, stop in () if where.keys is None or isinstance(where.keys, Mapping) else where.keys:
        first = (start + shift) % length
        last = first + min(stop - start, length)
        found += [(first, last)] if last <= length else [(first, length), (0, last - length)]
    return replace(where, keys=found)
