"""Mutants of objectives: for each law, a penalty on large logits broken in one way."""

from __future__ import annotations

import torch

from regard.core.kinds import Sample
from regard.train.objective import Objective, entropy_of, run


class Plain(Objective):
    """The plain loss and the mean square of the log-sum-exp of the targets' logits."""

    dial = ("weight", 0.0)

    def __init__(self, weight=0.5):
        self.weight = weight

    def penalty(self, logits, batch, generator):
        return logits.logsumexp(-1)[:, :-1][batch.targets[:, 1:]].square().mean()

    def loss(self, model, batch, generator):
        logits = run(model, batch).logits
        return entropy_of(logits, batch) + self.weight * self.penalty(logits, batch, generator)

    @classmethod
    def examples(cls):
        return [Sample(cls.__name__, cls())]


ORIGINAL = Plain
MUTANTS: dict[str, list[type[Objective]]] = {}


def breaks(*laws: str):
    """Registers a mutant under the laws that must reject it."""

    def register(mutant: type[Objective]) -> type[Objective]:
        for law in laws:
            MUTANTS.setdefault(law, []).append(mutant)
        return mutant

    return register


@breaks("neutral")
class NeverIdle(Plain):
    """Its weight is a little more than it says."""

    @property
    def idle(self):
        return False

    def loss(self, model, batch, generator):
        return Plain.loss(Plain(self.weight + 1e-3), model, batch, generator)


@breaks("neutral")
class NoEffect(Plain):
    """The weight is forgotten."""

    def loss(self, model, batch, generator):
        return entropy_of(run(model, batch).logits, batch)


@breaks("neutral")
class OwnToken(Plain):
    """Every token is predicted from itself, also where it is idle."""

    def __call__(self, model, batch, generator):
        logits = run(model, batch).logits
        return torch.nn.functional.cross_entropy(logits[batch.targets], batch.ids[batch.targets])


@breaks("resumes", "seeded")
class Grows(Plain):
    """It remembers how often it was asked."""

    calls = 0

    def penalty(self, logits, batch, generator):
        self.calls += 1
        return self.calls * super().penalty(logits, batch, generator)


@breaks("leaves")
class LeavesHooks(Plain):
    """It listens to the model for ever."""

    def loss(self, model, batch, generator):
        model.register_forward_hook(lambda *_: None)
        return super().loss(model, batch, generator)


@breaks("leaves")
class WritesWeights(Plain):
    """It makes the weights smaller itself."""

    def loss(self, model, batch, generator):
        value = super().loss(model, batch, generator)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= 0.999
        return value


@breaks("leaves")
class Freezes(Plain):
    """It leaves the embeddings frozen."""

    def loss(self, model, batch, generator):
        model.get_input_embeddings().weight.requires_grad_(False)
        return super().loss(model, batch, generator)


@breaks("leaves", "seeded")
class DrawsElsewhere(Plain):
    """It draws from the random numbers of everybody."""

    def penalty(self, logits, batch, generator):
        return super().penalty(logits, batch, generator) * (1 + torch.rand(()))


@breaks("gradients")
class Detached(Plain):
    """What it adds has no gradient."""

    def penalty(self, logits, batch, generator):
        return super().penalty(logits, batch, generator).detach()


@breaks("padding")
class CountsPadding(Plain):
    """Its mean is over padding too."""

    def penalty(self, logits, batch, generator):
        return logits.logsumexp(-1).square().mean()
