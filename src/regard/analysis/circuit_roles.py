"""Roles of a circuit's heads, stage by stage: movers, what their queries are told, what found the repetition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from regard.analysis.base import Head, Result
from regard.analysis.flow import WatchedMaps
from regard.analysis.head_paths import PathsToHeads
from regard.analysis.path_patching import PathPatching
from regard.analysis.sweep import Effects, Pair
from regard.core.errors import wrong

ROLES = (
    "mover",
    "negative mover",
    "inhibition",
    "content gatherer",
    "duplicate token",
    "induction",
    "previous token",
    "other",
)


@dataclass(frozen=True)
class Mentions:
    """A pair of texts, and where in the base text its parts stand.

    Args:
        pair: the texts. first, second: slots of the two mentions of what is repeated. wrong: slots of the answers that
            are not asked for.
    """

    pair: Pair
    first: int
    second: int
    wrong: tuple[int, ...]

    def __post_init__(self) -> None:
        n = len(self.pair.base)
        slots = (self.first, self.second, *self.wrong)
        if not self.wrong or not 0 <= self.first < self.second < n or not all(0 <= slot < n for slot in slots):
            what = f"first {self.first}, second {self.second}, wrong {self.wrong} of {n} tokens"
            raise wrong("mentions", what, "slots of the text, the first mention before the second, and wrong answers")


@dataclass(frozen=True)
class CircuitRoles(Result):
    """The heads of a circuit by role.

    Args:
        heads: by role, the largest effect first. effects: of each of them, by role and in the same order.
    """

    heads: Mapping[str, tuple[Head, ...]]
    effects: Mapping[str, tuple[float, ...]]
    name = "circuit_roles"

    @property
    def every(self) -> list[Head]:
        """All heads with a role."""
        return sorted({head for some in self.heads.values() for head in some})

    def shared(self, other: CircuitRoles) -> float:
        """The share of the heads of the smaller circuit that the other one has, whatever their roles there."""
        mine, theirs = set(self.every), set(other.every)
        return len(mine & theirs) / max(1, min(len(mine), len(theirs)))

    def table(self) -> list[dict[str, Any]]:
        return [
            {"role": role, "layer": layer, "head": head, "effect": effect}
            for role, some in self.heads.items()
            for (layer, head), effect in zip(some, self.effects[role], strict=True)
        ]


def circuit_roles(
    model: Any, mentions: Sequence[Mentions], share: float = 0.02, stages: int = 4, rows: int = 32
) -> CircuitRoles:
    """The roles of heads in a task whose answer is found by a repetition, from the output downwards.

        1. directly to the output: movers, and where the effect is below zero negative movers
        2. to the queries of movers, at the last token: inhibition heads, if the token they look at most (the first one
           left out) is a wrong answer; content gatherers, if it is another
        3. to the values of those of 2, at the second mention: duplicate-token heads, which look at the first mention,
           induction heads, at the token behind it, previous-token heads, and others
        4. to the keys of induction heads, behind the first mention: previous-token heads

    Of each stage the ``share`` of all heads with the largest effects, two at least; only those of the sign that is
    meant. A stage that has no receivers above the first layer is left out.

    Args:
        model: a Transformers model with logits. mentions: pairs of texts. share: of the heads in a stage; the paper has
            2%. stages: how many of them, from the output on. rows: interventions in a batch.

    Raises:
        ValueError: no pairs, a share outside of 0 to 1, or another number of stages.

    Papers: Wang et al., arXiv 2211.00593; Merullo et al., arXiv 2310.08744. The stages are theirs; the heads of a stage
    are told apart there by reading maps, here by where their largest weight is.
    """
    if not mentions:
        raise wrong("mentions", "none", "at least one")
    if not 0 < share < 1:
        raise wrong("share", str(share), "above 0 and below 1")
    if stages not in range(1, 5):
        raise wrong("stages", str(stages), "1 to 4")
    maps = [WatchedMaps(model, one.pair.base) for one in mentions]
    direct = PathPatching(rows).run(model, [one.pair for one in mentions])
    found: dict[str, dict[Head, float]] = {role: {} for role in ROLES}
    most = max(2, round(share * len(direct.sites)))
    found["mover"] = top(direct, most)
    found["negative mover"] = {head: -x for head, x in top(replace(direct, values=-direct.values), most).items()}
    for number, stage in enumerate((queries_told, repetition_found, keys_told), 2):
        if number <= stages:
            for head, role, effect in stage(model, maps, mentions, found, most, rows):
                found[role].setdefault(head, effect)
    ranked = {role: sorted(some.items(), key=lambda pair: -abs(pair[1])) for role, some in found.items()}
    return CircuitRoles(
        {role: tuple(head for head, _ in some) for role, some in ranked.items()},
        {role: tuple(effect for _, effect in some) for role, some in ranked.items()},
    )


Stage = Iterator[tuple[Head, str, float]]


def queries_told(
    model: Any, maps: Sequence[Any], mentions: Sequence[Mentions], found: Any, most: int, rows: int
) -> Stage:
    """Stage 2."""
    told = into(model, mentions, found["mover"], "q", [-1] * len(mentions), rows)
    for head, effect in top(told, most).items():
        looks = [looked_at(of, head, len(one.pair.base) - 1) for of, one in zip(maps, mentions, strict=True)]
        inhibits = most_are([at in one.wrong for at, one in zip(looks, mentions, strict=True)])
        yield head, "inhibition" if inhibits else "content gatherer", effect


def repetition_found(
    model: Any, maps: Sequence[Any], mentions: Sequence[Mentions], found: Any, most: int, rows: int
) -> Stage:
    """Stage 3."""
    receivers = {**found["inhibition"], **found["content gatherer"]}
    told = into(model, mentions, receivers, "v", [one.second for one in mentions], rows)
    for head, effect in top(told, most).items():
        yield head, detector(maps, mentions, head), effect


def keys_told(model: Any, maps: Sequence[Any], mentions: Sequence[Mentions], found: Any, most: int, rows: int) -> Stage:
    """Stage 4."""
    told = into(model, mentions, found["induction"], "k", [one.first + 1 for one in mentions], rows)
    for head, effect in top(told, most).items():
        looks = [looked_at(of, head, one.first + 1) == one.first for of, one in zip(maps, mentions, strict=True)]
        yield head, "previous token" if most_are(looks) else "other", effect


def into(
    model: Any, mentions: Sequence[Mentions], receivers: Mapping[Head, float], way: Any, slots: Sequence[int], rows: int
) -> Effects | None:
    """The effects of earlier heads into some, each pair at its own slot; None where nothing speaks to them."""
    above = [head for head in receivers if head[0] > 0]
    if not above:
        return None
    found: Effects | None = None
    for one, slot in zip(mentions, slots, strict=True):
        effects = PathsToHeads(above, way, slot, rows).run(model, [one.pair])
        effects = replace(effects, sites=tuple(replace(site, slot=-1) for site in effects.sites))
        found = effects if found is None else found.merge(effects)
    return found


def top(effects: Effects | None, most: int) -> dict[Head, float]:
    """The heads with the largest mean effects above zero."""
    if effects is None:
        return {}
    ranked = [((site.layer, site.head or 0), effect) for site, effect in effects.ranked()[:most]]
    return {head: effect for head, effect in ranked if effect > 0}


def looked_at(maps: Any, head: Head, row: int) -> int:
    """The key that a row of a head gives most, the first one and the row's own left out unless there is no other."""
    layer, index = head
    weights, start = maps.rows(layer, torch.tensor([row]))
    seen: Tensor = weights[index, 0, : row + 1 - start].clone()
    keys = start + torch.arange(len(seen))
    if row > 1:
        seen[(keys == 0) | (keys == row)] = -1.0
    return int(keys[seen.argmax()])


def detector(maps: Sequence[Any], mentions: Sequence[Mentions], head: Head) -> str:
    """The role of a head by where it looks from the second mention."""
    looks = [looked_at(of, head, one.second) for of, one in zip(maps, mentions, strict=True)]
    steps = {"duplicate token": 0, "induction": 1}
    for role, step in steps.items():
        if most_are([at == one.first + step for at, one in zip(looks, mentions, strict=True)]):
            return role
    return "previous token" if most_are([x == m.second - 1 for x, m in zip(looks, mentions, strict=True)]) else "other"


def most_are(values: Sequence[bool]) -> bool:
    """Whether it is so of more than half of them."""
    return 2 * sum(values) > len(values)
