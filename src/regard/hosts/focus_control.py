"""How strongly focus directions are to act on a prompt: so that what they take from the sink stays within a range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from regard.core.errors import wrong
from regard.edits.focus_directions import FocusDirections
from regard.hosts.focus import Marked, relevant_mass

WIDEST = 16.0
"""The largest α that is tried, in units of that which the directions were learned with."""
STEPS = 8
"""Halvings of the range of α."""


@dataclass(frozen=True)
class Control:
    """An edit at the strength that was found for a prompt.

    Args:
        edit: with its α. activation: the mass that it takes from the sink, on average over the heads. held: whether
            that is within the range; where it is not, the edit is the one whose activation is nearest to it.
    """

    edit: FocusDirections
    activation: float
    held: bool


@torch.no_grad()
def activation(
    model: PreTrainedModel, edit: FocusDirections, ids: Tensor, heads: Mapping[int, Sequence[int]], sink: int = 1
) -> float:
    """The mass that an edit takes from the first ``sink`` tokens, of a prompt's last token, on average over heads.

    mean over heads of (m_sink without − m_sink with the edit)
    """
    marked = [Marked(ids, (0, sink))]
    plain, edited = (relevant_mass(model, marked, *edits, heads=heads) for edits in ((), (edit,)))
    return float(torch.cat([(plain[layer] - edited[layer]).flatten() for layer in heads]).mean())


def controlled(
    model: PreTrainedModel,
    edit: FocusDirections,
    ids: Tensor,
    heads: Mapping[int, Sequence[int]],
    within: tuple[float, float] = (0.1, 0.3),
    sink: int = 1,
) -> Control:
    """The edit with an α at which the mass that it takes from the sink lies within a range, found for each prompt.

    α is doubled until the mass reaches the range's lower end or `WIDEST`, then halved between the last two until it is
    inside. Every trial is a pass.

    Args:
        ids: ``(n,)``, the prompt. heads: by layer, over which the mass is averaged: the contextual ones that the
            directions are of. within: least and most mass. sink: how many first tokens are the sink.

    Raises:
        ValueError: a range that is none of masses, a sink of no tokens or of all.

    Paper: Zhu et al., arXiv 2503.23306, whose later version keeps the activation of attention "within a proper range";
    how it searches, and for which range, is not told where it could be read: both are ours.
    """
    low, high = within
    if not 0 <= low < high <= 1:
        raise wrong("within", f"{within}", "two masses, the least and the most, from 0 to 1")
    if not 0 < sink < len(ids):
        raise wrong("sink", str(sink), f"1 to {len(ids) - 1} of the prompt's {len(ids)} tokens")
    unit = edit.alpha if edit.alpha > 0 else 1.0
    tried: list[tuple[float, float]] = []

    def at(alpha: float) -> float:
        tried.append((alpha, activation(model, edit.at(alpha), ids, heads, sink)))
        return tried[-1][1]

    below, above = 0.0, unit
    while (reached := at(above)) < low and above < WIDEST * unit:
        below, above = above, 2 * above
    for _ in range(STEPS if reached > high else 0):
        middle = (below + above) / 2
        reached = at(middle)
        if low <= reached <= high:
            break
        below, above = (middle, above) if reached < low else (below, middle)
    alpha, reached = min(tried, key=lambda one: (max(low - one[1], one[1] - high, 0.0), one[0]))
    return Control(edit.at(alpha), reached, low <= reached <= high)
