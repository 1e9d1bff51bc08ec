"""Decoding steps of a real model on this machine, to calibrate a plan with and to hold it to."""

from __future__ import annotations

import statistics

import torch

from regard.experiments.timing import clock
from regard.networks import LM, Config
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
def seconds_of_step(model: LM, batch: int, context: int, rounds: int = 5) -> float:
    """Median time of decoding one token after ``context`` tokens."""
    ids = torch.zeros(batch, context, dtype=torch.int64)
    held = [model.extend(ids, model.start(batch))[1]]

    def work() -> None:
        held[0] = model.extend(ids[:, :1], held[0])[1]

    cpu = torch.device("cpu")
    clock(work, cpu)
    return statistics.median(clock(work, cpu) for _ in range(rounds))


def reference() -> LM:
    """A model large enough for the time to go into matrix products: 4 layers of width 1,024."""
    return LM(Config(vocabulary=8192, width=1024, layers="softmax*4", heads=16, kv_heads=4), seed=0).eval()
