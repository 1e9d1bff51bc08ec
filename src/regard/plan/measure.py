"""Decoding steps of a real model on this machine, to calibrate a plan with and to hold it to."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from time import process_time

import torch

from regard.networks import LM, Config
from regard.networks.lm import LMState
from regard.plan.mixers import GroupedAttention
from regard.plan.roofline import ModelShape, Network


def shape_of(model: LM) -> ModelShape:
    """The sizes of a model whose layers are plain softmax attention."""
    c = model.config
    attention = GroupedAttention(c.width, c.heads, c.kv_heads or c.heads, c.head_dim or c.width // c.heads)
    network = Network(c.width, c.inner_width)
    itemsize = model.embedding.weight.element_size()
    return ModelShape(((c.depth, attention),), ((c.depth, network),), c.vocabulary, tied=True, itemsize=itemsize)


@torch.no_grad()
def seconds_of_steps(
    model: LM, batches: Sequence[int], contexts: Sequence[int], rounds: int = 5
) -> dict[tuple[int, int], float]:
    """Median time of decoding one token for each batch after each context, ``(batch, context)``.

    All are measured in turn, round by round, as seconds of this process's own work on a CPU: a machine that is slower
    for a while, or that others use, is so for all of them. Sequences of a batch are copies of one.
    """
    ready = ready_states(model, batches, contexts)
    seconds: dict[tuple[int, int], list[float]] = {place: [] for place in ready}
    for number in range(rounds + 1):
        for place, state in ready.items():
            ids = torch.zeros(place[0], 1, dtype=torch.int64)
            begun = process_time()
            ready[place] = model.extend(ids, state)[1]
            if number:  # the first warms up
                seconds[place].append(process_time() - begun)
    return {place: statistics.median(times) for place, times in seconds.items()}


def ready_states(model: LM, batches: Sequence[int], contexts: Sequence[int]) -> dict[tuple[int, int], LMState]:
    """The state of each batch after each context, from one sequence that is read once."""
    state, seen, ready = model.start(1), 0, {}
    for context in sorted(contexts):
        state = model.extend(torch.zeros(1, context - seen, dtype=torch.int64), state)[1]
        seen = context
        ready |= {(batch, context): state.select(torch.zeros(batch, dtype=torch.int64)) for batch in batches}
    return ready


def reference() -> LM:
    """A model large enough for the time to go into matrix products: 4 layers of width 1,024."""
    return LM(Config(vocabulary=8192, width=1024, layers="softmax*4", heads=16, kv_heads=4), seed=0).eval()
