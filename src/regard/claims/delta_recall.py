"""The delta correction in SmolLM2: what is recalled of a context that was read with it."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.claims.routed import planted

WINDOW = "window(size=64, sinks=4)"
LAST = 64
"""So many last queries of the context are dense, as are those of all questions: decoding is."""
NEVER = 1 << 30
"""A γ that no context reaches."""


@cache
def asked(seed: int) -> tuple[Any, Tensor, Tensor, int]:
    """SmolLM2, a context with planted codes and its questions, which of their tokens are answers, and how many ask."""
    from regard.hosts import small

    model, words = small.load("smollm2")
    context, questions, answers = planted(words, torch.Generator().manual_seed(seed))
    return model, torch.cat([context, questions])[None], answers, len(questions)


@cache
def dense_states(seed: int) -> Tensor:
    """The last states of the context with attention to everything."""
    model, ids, _, tail = asked(seed)
    return model.model(input_ids=ids[:, :-tail], use_cache=False).last_hidden_state[0]


GAMMAS = {"γ = 4": 4, "γ = 16": 16, "γ = 64": 64, "window": NEVER}
ARMS = ("dense", *GAMMAS, "window throughout")
"""The last decodes by the window too; all others decode by all keys."""


@measured(arm=ARMS, seed=[0])
@torch.no_grad()
def recalls(arm: str, seed: int) -> dict[str, float]:
    """The share of right answer tokens of 40 planted codes, and how near the context's states are to dense ones."""
    from regard.hosts.swap import swap

    model, ids, answers, tail = asked(seed)
    plain = {"dense": "softmax", "window throughout": WINDOW}
    with swap(model, plain.get(arm) or f"delta(of='{WINDOW}', gamma={GAMMAS[arm]}, tail={tail + LAST})"):
        states = model.model(input_ids=ids, use_cache=False).last_hidden_state[0]
    right = model.lm_head(states[-tail:-1]).argmax(-1) == ids[0, 1 - tail :]
    near = torch.cosine_similarity(states[: -tail - LAST], dense_states(seed)[:-LAST], dim=-1).mean().item()
    return {"recall": right[answers[1:]].float().mean().item(), "cosine": near, "tokens": float(ids.shape[1])}


def wins_half_back(found: Figures) -> Finding:
    """With γ = 16 at least half of what the window loses of dense recall, and states that are nearer to dense ones.

    Both decode by all keys, so that what is won is the correction's.
    """
    recall = {arm: found.mean("recall", arm=arm) for arm in ARMS}
    near = {arm: found.mean("cosine", arm=arm) for arm in ARMS}
    lost, tokens = recall["dense"] - recall["window"], found.mean("tokens")
    told = ", ".join(f"{arm} {recall[arm]:.1%} ({near[arm]:.3f})" for arm in ARMS)
    figure = f"recall at {tokens:,.0f} tokens (cosine with dense states): {told}"
    won = recall["γ = 16"] - recall["window"] >= lost / 2
    return Finding.of(figure, lost > 0.1, won, near["γ = 16"] > near["window"])
