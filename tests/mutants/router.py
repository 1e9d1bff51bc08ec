"""Mutants of routers: for each law, one that chooses by mean keys, broken in one way."""

from __future__ import annotations

import torch

from regard.core.kinds import Sample
from regard.patterns.choice import Choice, best
from regard.routers.base import Router
from regard.routers.blocks import Mean


class Plain(Mean):
    """Blocks of 4, four of them, by their mean keys."""

    def __init__(self) -> None:
        super().__init__(block=4, budget=4)

    @classmethod
    def examples(cls):
        return [Sample(cls.__name__, cls())]


ORIGINAL = Plain
MUTANTS: dict[str, list[type[Router]]] = {}


def breaks(*laws: str):
    """Registers a mutant under the laws that must reject it."""

    def register(mutant: type[Router]) -> type[Router]:
        for law in laws:
            MUTANTS.setdefault(law, []).append(mutant)
        return mutant

    return register


@breaks("budget")
class ForcedOutsideOfTheCount(Plain):
    """Takes the forced blocks besides as many others as the budget has."""

    def choose(self, scores, rows):
        free = scores.masked_fill(~rows.routable()[:, None, :, : scores.shape[3]], -torch.inf)
        chosen = Choice(best(free, min(self.budget, rows.blocks)), rows).mask | self.forced_on(rows)[:, None]
        return Choice(best(torch.where(chosen, 0.0, -torch.inf), rows.blocks), rows)


@breaks("budget")
class ForcedForgotten(Plain):
    """Forces nothing, though it says so."""

    def choose(self, scores, rows):
        free = scores.masked_fill(~rows.routable()[:, None, :, : scores.shape[3]], -torch.inf)
        return Choice(best(free, min(self.budget, rows.blocks)), rows)


@breaks("budget", "routes")
class OneBlockTwice(Plain):
    """Lists its first block a second time in the place of the last."""

    def choose(self, scores, rows):
        index = super().choose(scores, rows).index.clone()
        index[..., -1] = index[..., 0]
        return Choice(index, rows)


@breaks("causal", "budget")
class BestBeforeCausality(Plain):
    """Takes the best of all blocks, and then drops those that are not past."""

    def choose(self, scores, rows):
        chosen = Choice(best(scores, min(self.budget, scores.shape[3])), rows).mask
        chosen = (chosen & rows.routable()[:, None]) | rows.own()[:, None]
        return Choice(best(torch.where(chosen, 0.0, -torch.inf), self.budget + 1), rows)


@breaks("causal")
class LeaksInVain(Plain):
    """Says that its choice reads later tokens, and it does not."""

    leaks = True


@breaks("dense")
class OwnBlockDropped(Plain):
    """Sees complete blocks only."""

    def __init__(self) -> None:
        Router.__init__(self, 4, 4, forced=())


@breaks("ties")
class LastOfEqual(Plain):
    """Takes the last of equal scores."""

    def choose(self, scores, rows):
        more = rows.blocks - scores.shape[3]
        scores = torch.nn.functional.pad(scores, (0, more), value=-torch.inf)
        scores = scores.masked_fill(~rows.routable()[:, None], -torch.inf)
        scores = scores.masked_fill(self.forced_on(rows)[:, None], torch.inf)
        order = scores.shape[3] - 1 - scores.flip(3).argsort(dim=3, descending=True, stable=True)
        order = order[..., : self.budget]
        real = scores.gather(3, order) > -torch.inf
        return Choice(
            best(
                torch.zeros_like(scores)
                .sub(torch.inf)
                .scatter(3, order, torch.where(real, 0.0, -torch.inf).to(scores.dtype)),
                self.budget,
            ),
            rows,
        )


@breaks("summary")
class CentredOverAll(Plain):
    """Takes the mean of all keys off each block's, later ones included."""

    def summary(self, k):
        return (super().summary(k)[0] - k.mean(2, keepdim=True),)


@breaks("summary")
class WidthMisstated(Plain):
    """Says that it keeps one number less."""

    def width(self, head_dim):
        return head_dim - 1


@breaks("alone")
class OverTheBatch(Plain):
    """Every sequence chooses by the mean of the batch's scores."""

    def scores(self, q, summary, rows):
        return super().scores(q, summary, rows).mean(0, keepdim=True).expand(q.shape[0], -1, -1, -1)


@breaks("alone")
class OverTheGroup(Plain):
    """Heads that share keys choose together."""

    def scores(self, q, summary, rows):
        own = super().scores(q, summary, rows)
        groups = summary[0].shape[1]
        return (
            own.unflatten(1, (groups, -1))
            .mean(2, keepdim=True)
            .expand(-1, -1, q.shape[1] // groups, -1, -1)
            .flatten(1, 2)
        )
