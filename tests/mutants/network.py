"""Mutants of networks: for each law, a small language model broken in one way."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.networks.base import Network
from regard.networks.lm import LM, TOKENS, Config, random_ids
from regard.networks.stages.network import Stages
from regard.networks.stages.presets import Preset
from regard.networks.vision.davit import design
from regard.networks.vision.vit import image_sample

VOCABULARY = 29


class Small(LM):
    """One layer of softmax attention."""

    @classmethod
    def examples(cls):
        model = cls(Config(VOCABULARY, 12, "softmax", heads=2, inner=8), seed=0)
        given = {"inputs": partial(random_ids, VOCABULARY), "output": (TOKENS, VOCABULARY)}
        return [Sample(cls.__name__, model, given)]


ORIGINAL = Small
MUTANTS: dict[str, list[type[Network]]] = {}


def breaks(*laws: str):
    """Registers a mutant under the laws that must reject it."""

    def register(mutant: type[Network]) -> type[Network]:
        for law in laws:
            MUTANTS.setdefault(law, []).append(mutant)
        return mutant

    return register


@breaks("shapes")
class LastToken(Small):
    """Gives logits of the last token alone."""

    def read(self, x):
        return super().read(x[:, -1])


@breaks("shapes")
class TwoForOne(Small):
    """Gives a list of two outputs where one is told."""

    def forward(self, *inputs, **named):
        return [super().forward(*inputs, **named)] * 2


@breaks("shapes")
class Deaf(Small):
    """Reads nothing of its input."""

    def embed(self, ids):
        return super().embed(torch.zeros_like(ids))


@breaks("batch")
class NormedOverTheBatch(Small):
    """Centres hidden states over the batch."""

    def embed(self, ids):
        x = super().embed(ids)
        return x - x.mean(0)


@breaks("batch")
class FirstOfTheBatch(Small):
    """The first sequence of a batch is treated in another way."""

    def embed(self, ids):
        x = super().embed(ids)
        return torch.cat([2 * x[:1], x[1:]])


@breaks("maps")
class Hidden(Small):
    """Shows no attention."""

    def intermediates(self, *inputs, **named):
        return {}


@breaks("maps")
class AnotherMap(Small):
    """Shows the attention to the sequence in reverse."""

    def intermediates(self, *inputs, **named):
        return super().intermediates(inputs[0].flip(1))


@breaks("maps")
class LeavesItsHooks(Small):
    """Once looked at it doubles what attention gives."""

    def intermediates(self, *inputs, **named):
        found = super().intermediates(*inputs, **named)
        self.layers[0].attention.register_forward_hook(lambda _, given, out: 2 * out)
        return found


@breaks("gradients")
class DetachedEmbedding(Small):
    """Hidden states without a gradient, and logits by another matrix."""

    def __init__(self, config, seed=None):
        super().__init__(config, seed)
        self.out = torch.nn.Linear(config.width, config.vocabulary)

    def embed(self, ids):
        return super().embed(ids).detach()

    def read(self, x):
        return self.out(self.norm(x))


@breaks("size")
class UncountedOutput(Small):
    """Counts no FLOPs for the logits."""

    def flops(self, n, batch=1):
        return super().flops(n, batch) - 2 * batch * n * self.config.width * self.config.vocabulary


@breaks("size")
class AnotherCount(Small):
    """Its paper prints another number of parameters."""

    @classmethod
    def examples(cls):
        (found,) = super().examples()
        return [Sample(found.label, found.thing, {**found.given, "published": (lambda: found.thing, 0.1)})]


class Hierarchical(Stages):
    """Two stages of windows, and a preset with the sizes of its paper."""

    printed = Preset(design((1, 1), (8, 12), (2, 3), 3), "0.02095", "0.00029", 32)

    @classmethod
    def examples(cls):
        return [image_sample(cls.__name__, cls(cls.printed.design, 7), presets={"small": cls.printed})]


@breaks("size")
class WithoutBiases(Hierarchical):
    """Its preset leaves the biases of queries, keys and values out."""

    printed = replace(Hierarchical.printed, design=replace(Hierarchical.printed.design, bias=False))


@breaks("size")
class HalfTheWork(Hierarchical):
    """Its preset prints multiply-adds of an image of half of the side."""

    printed = replace(Hierarchical.printed, side=16)


@breaks("saved")
class WeightNotSaved(Small):
    """Keeps a part of what it computes with out of its state."""

    def __init__(self, config, seed=None):
        super().__init__(config, seed)
        self.noise = torch.nn.Buffer(torch.randn(config.width), persistent=False)

    def embed(self, ids):
        return super().embed(ids) + self.noise


@breaks("padding")
class PaddingSeen(Small):
    """Attends to padding."""

    def forward(self, ids, key_mask=None, segments=None):
        return super().forward(ids)


@breaks("padding")
class SlotsForPositions(Small):
    """Adds a number for each slot, whether padding stands before it or not."""

    def forward(self, ids, key_mask=None, segments=None):
        layout, x = Layout(causal=True, key_mask=key_mask, segments=segments), self.embed(ids)
        x = x + torch.arange(ids.shape[1], dtype=x.dtype)[:, None]
        for block in self.layers:
            x = block(x, layout)
        return self.read(x)


@breaks("decoding")
class LooksAhead(Small):
    """Each token takes half of the next one's embedding."""

    def embed(self, ids):
        x = super().embed(ids)
        return x + torch.nn.functional.pad(x, (0, 0, -1, 1)) / 2


@breaks("decoding")
class StateNotKept(Small):
    """Begins anew at every call."""

    def extend(self, ids, state, key_mask=None):
        return super().extend(ids, self.start(len(ids)), key_mask)


@breaks("seeded")
class IgnoresItsSeed(Small):
    """Draws its weights from what was drawn before."""

    def __init__(self, config, seed=None):
        super().__init__(config)


@breaks("seeded")
class HasOneSeed(Small):
    """Has the same initial weights whatever its seed."""

    def __init__(self, config, seed=None):
        super().__init__(config, seed=0)
