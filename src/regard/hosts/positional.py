"""The search for the channels of hidden states that count places, which `edits.PositionalHidden` scales."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from regard.core.edit import Edit
from regard.core.errors import wrong
from regard.edits.positional_hidden import PositionalHidden
from regard.hosts.calibrate import Answered, log_probability

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
DEGREE, WINDOW = 3, 10
"""Of the polynomial that is fitted to a channel, and of the Savitzky–Golay filter that smooths it."""


def random_strings(tokenizer: Any, count: int, length: int, seed: int = 0) -> Tensor:
    """``(count, length)`` ids of texts of random letters and digits, which say nothing of what stands where."""
    source, found = random.Random(seed), []
    while len(found) < count:
        ids = tokenizer("".join(source.choices(LETTERS, k=4 * length)), add_special_tokens=False)["input_ids"]
        found += [ids[:length]] if len(ids) >= length else []
    return torch.tensor(found)


@torch.no_grad()
def mean_states(model: PreTrainedModel, texts: Tensor, *edits: Edit) -> Tensor:
    """``(layers, n, channels)``: the states behind each block, their mean over ``texts (count, n)``."""
    from regard.hosts.steer import steer

    total: Tensor = torch.zeros(())
    with steer(model, *edits):
        for text in texts:
            states = model(input_ids=text[None].to(model.device), output_hidden_states=True, use_cache=False)
            total = total + torch.stack([state[0].float().cpu() for state in states.hidden_states[1:]])
    return total / len(texts)


def candidates(states: Tensor, most: int = 10, skip: int = 300, skip_smooth: int = 200) -> list[int]:
    """The channels that rise or fall with the place in more than a quarter of the layers, the smoothest first.

    A channel of a layer is monotone if the cubic fitted to it, from 0 to 1 and without its first ``skip`` tokens, is.
    Its roughness is the sum of its squared second differences, from 0 to 1, without ``skip_smooth`` tokens and after a
    Savitzky–Golay filter of 10 tokens: the least of its monotone layers counts. The first two layers and the last are
    left out.

    Args:
        states: ``(layers, n, channels)``, as `mean_states` gives them. most: how many are given.

    Raises:
        ValueError: states of too few tokens for the filter.
    """
    least = max(skip, skip_smooth) + WINDOW
    if states.shape[1] < least:
        raise wrong("states", f"{states.shape[1]} tokens", f"at least {least}, or a smaller skip")
    from scipy.signal import savgol_filter

    held, rough = states.double().numpy(), {}
    direction = np.stack([monotone(layer[skip:]) for layer in held[2:-1]])  # (layers, channels): 1, −1 or 0
    for channel in range(held.shape[2]):
        rising, falling = ((direction[:, channel] == sign).nonzero()[0] for sign in (1, -1))
        layers = rising if len(rising) > len(falling) else falling
        if len(layers) <= len(held) // 4:
            continue
        curves = [savgol_filter(unit(held[2 + layer, skip_smooth:, channel]), WINDOW, DEGREE) for layer in layers]
        rough[channel] = min(float(np.square(np.diff(np.asarray(curve), 2)).sum()) for curve in curves)
    return sorted(rough, key=lambda channel: rough[channel])[:most]


def unit(values: np.ndarray) -> np.ndarray:
    """Values along the first axis from 0 to 1; those that are all the same are zero."""
    low, high = values.min(0), values.max(0)
    return (values - low) / np.where(high > low, high - low, 1)


def monotone(values: np.ndarray) -> np.ndarray:
    """Of values ``(n, channels)``, whether the cubic fitted to each column rises (1), falls (−1) or does neither."""
    places = np.arange(len(values), dtype=np.float64)
    fitted = np.vander(places, DEGREE + 1) @ np.polyfit(places, unit(values), DEGREE)
    steps = np.diff(fitted, axis=0)
    flat = values.max(0) == values.min(0)
    return np.where(flat, 0, np.where((steps >= 0).all(0), 1, np.where((steps <= 0).all(0), -1, 0)))


def channels(
    model: PreTrainedModel,
    found: Sequence[int],
    examples: Sequence[Answered],
    edit: PositionalHidden,
    most: int = 3,
) -> list[int]:
    """Those of the channels that make the examples' answers likeliest when one of them is scaled, the best first.

    The rows that say the answer attend without the channel, as they do while it is generated.

    Args:
        found: as `candidates` gives them. edit: its factor and where it acts. most: how many are given.
    """

    def gain(channel: int) -> float:
        def made(one: Answered) -> PositionalHidden:
            where = replace(edit.where, rows=slice(len(one.prompt) - 1, None))
            return edit.but(channels=[channel], where=where)

        return sum(log_probability(model, one, made) for one in examples)

    gains = {channel: gain(channel) for channel in found}
    return sorted(gains, key=lambda channel: -gains[channel])[:most]
