"""Activation patching of every site of one kind between two prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from regard.analysis.sweep import KINDS, Effects, LogitDifference, Metric, Pair, Site, SiteKind, Sweep, heads_of
from regard.core.errors import wrong


class SitePatching(Sweep):
    """Every head's output, or every block's state or part, is given the donor's activation, each by itself.

        effect = (m(patched) − m(base)) / (m(donor) − m(base)): 1 moves the answer all the way, 0 not at all

    Args:
        part: ``z`` for heads, ``resid``, ``attn`` or ``mlp``. slots: positions, -1 for the last, None for all at once.

    Paper: Meng et al., arXiv 2202.05262; Wang et al., arXiv 2211.00593.
    """

    def __init__(self, part: str = "z", slots: Sequence[int | None] = (-1,), rows: int = 32) -> None:
        super().__init__(rows)
        if part not in KINDS:
            raise wrong("part", repr(part), f"one of {', '.join(KINDS)}")
        self.part: SiteKind = cast(SiteKind, part)
        self.slots = tuple(slots)

    def sites(self, model: Any) -> list[Site]:
        if self.part == "z":
            return [Site(layer, "z", head, slot) for slot in self.slots for layer, head in heads_of(model)]
        layers = range(model.config.get_text_config().num_hidden_layers)
        return [Site(layer, self.part, None, slot) for slot in self.slots for layer in layers]


def patch(
    model: Any,
    base: str | Sequence[int] | torch.Tensor,
    donor: str | Sequence[int] | torch.Tensor,
    metric: Metric | tuple[str, str],
    *,
    tokenizer: Any = None,
    sites: str | Sweep = "z",
    slots: Sequence[int | None] = (-1,),
    rows: int = 32,
    store: str | Path | None = None,
) -> Effects:
    """What every site of a model causes between two prompts of the same number of tokens.

    Args:
        model: a Transformers model that gives logits. base: the prompt whose run is changed. donor: the one whose
            activations are put in. metric: of the logits of the last position ``(b, vocabulary)``; or two words, for
            the difference of the logits of their first tokens, the donor's answer first.
        tokenizer: for texts and words. sites, slots, rows: as `SitePatching`; or a sweep.
        store: a folder that keeps the effects, for runs that are stopped.

    Raises:
        ValueError: prompts of different lengths, words without a tokenizer.
    """
    if isinstance(metric, tuple):
        first, second = (int(ids_of(tokenizer, word, special=False)[0]) for word in metric)
        if first == second:
            raise wrong("metric", f"{metric}, which begin with the same token", "two words that do not")
        metric = LogitDifference(first, second)
    pair = Pair(ids_of(tokenizer, base), ids_of(tokenizer, donor), metric)
    sweep = sites if isinstance(sites, Sweep) else SitePatching(sites, slots, rows)
    return sweep.run(model, [pair], store)


def ids_of(tokenizer: Any, text: str | Iterable[int] | torch.Tensor, special: bool = True) -> torch.Tensor:
    """The tokens of a text, ``(n,)`` int64; ``special``: with those that the tokenizer puts around it."""
    if not isinstance(text, str):
        return torch.as_tensor(text, dtype=torch.int64).flatten()
    if tokenizer is None:
        raise wrong("tokenizer", "None", "a tokenizer, or token ids for the texts")
    found = torch.tensor(tokenizer(text, add_special_tokens=special)["input_ids"], dtype=torch.int64)
    if not len(found):
        raise wrong("text", "no tokens", "at least one")
    return found
