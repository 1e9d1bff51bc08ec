"""Mutants of decoding strategies: for each law, contrastive decoding broken in one way."""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import MaxLengthCriteria, StoppingCriteriaList

from regard.core.edit import Where
from regard.core.kinds import Sample
from regard.decoding.base import Mixture
from regard.edits.tilt import KnockOut
from regard.hosts.attach import attach


class Plain(Mixture):
    """The model against itself without some keys."""

    dial = ("weight", 0.0)
    copies = 2

    def __init__(self, weight=1.5):
        self.weight = weight

    def edits(self, copy):
        return [KnockOut([(2, 5)])] if copy else []

    def mixed(self, logits):
        own, other = logits.log_softmax(-1).unbind(1)
        return own + self.weight * (own - other)

    @classmethod
    def examples(cls):
        return [Sample(cls.__name__, cls())]


ORIGINAL = Plain
MUTANTS: dict[str, list[type[Mixture]]] = {}


def breaks(*laws: str):
    """Registers a mutant under the laws that must reject it."""

    def register(mutant: type[Mixture]) -> type[Mixture]:
        for law in laws:
            MUTANTS.setdefault(law, []).append(mutant)
        return mutant

    return register


@breaks("neutral")
class OtherCopy(Plain):
    """The edited copy is taken for the model."""

    def mixed(self, logits):
        return super().mixed(logits.flip(1))


@breaks("neutral")
class NoEffect(Plain):
    """The weight is forgotten."""

    def mixed(self, logits):
        return logits[:, 0]


@breaks("definition")
class BothEdited(Plain):
    """The edits are put on both copies."""

    def running(self, model, sequences, copies):
        stack = super().running(model, sequences, copies)
        if len(copies) > 1:
            where = Where(keys=[(2, 5)])
            stack.enter_context(attach(model, edits=[KnockOut([(2, 5)]).but(where=where)]))
        return stack


@breaks("definition", "batch")
class CopiesInTurn(Plain):
    """Rows are taken for all first copies and then all second ones, where they stand in turn."""

    def mixed(self, logits):
        b, copies, vocabulary = logits.shape
        return super().mixed(logits.flatten(0, 1).view(copies, b, vocabulary).transpose(0, 1).flip(1))


@breaks("batch")
class OverTheBatch(Plain):
    """The contrast is taken against the mean over the batch."""

    def mixed(self, logits):
        return super().mixed(torch.stack([logits[:, 0], logits[:, 1].mean(0, keepdim=True).expand_as(logits[:, 1])], 1))


@breaks("cached")
class Forgetful(Plain):
    """What it contrasts with depends on how the prompt comes."""

    def decode(self, request):
        chunked = request.config.prefill_chunk_size is not None
        return Mixture.decode(Plain(self.weight + 2 * chunked), request)


@breaks("ends")
class Beams(Plain):
    """It takes any mode of generation without a word."""

    def __call__(self, model, input_ids, logits_processor, stopping_criteria, generation_config, **inputs):
        generation_config.num_beams = 1
        return super().__call__(model, input_ids, logits_processor, stopping_criteria, generation_config, **inputs)


@breaks("ends")
class GoesOn(Plain):
    """It pads nothing behind the end."""

    def decode(self, request):
        only = [criterion for criterion in request.criteria if isinstance(criterion, MaxLengthCriteria)]
        return super().decode(replace(request, criteria=StoppingCriteriaList(only)))
