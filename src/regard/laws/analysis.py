"""The laws of analyses: what is planted is found and nothing else, whatever the order of heads, rows and data.

What examples are ``given``: ``known``, a function that gives a result and what it has to be; or, for analyses of heads,
``data``, the subjects ``planted`` and ``null``, the ``heads`` that are planted, the ``score`` of a row of the table and
the ``threshold`` from which it counts; ``permuted``, from orders of the heads of each layer to the planted subject with
its heads in that order; ``other``, a subject that shows the same otherwise, in other blocks of rows or rows of a batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor

from regard.core.kinds import Sample
from regard.laws.finding import Broken, Unclaimed, same

TOLERANCE = 1e-5


class Case:
    """An analysis under examination.

    Args:
        sample: the analysis with what is known of its subjects. device: unused; subjects bring their own.
    """

    def __init__(self, sample: Sample, device: str = "cpu") -> None:
        self.analysis: Any = sample.thing
        self.sample = sample

    def given(self, name: str) -> Any:
        """What the example says of it."""
        if name not in self.sample.given:
            raise Unclaimed(f"the example says nothing of {name!r}")
        return self.sample.given[name]

    def run(self, subject: Any) -> Any:
        """The result over all data."""
        return self.analysis.run(subject, self.given("data"))

    def scores(self, result: Any) -> dict[tuple[int, int], float]:
        """The score of each ``(layer, head)``."""
        return {(row["layer"], row["head"]): row[self.given("score")] for row in result.table()}


def known(case: Case) -> str:
    """Where the answer is known, the analysis gives it."""
    got, want = case.given("known")()
    return f"{same(got, want, TOLERANCE, 'the known answer'):.1e}"


def planted(case: Case) -> str:
    """The heads that are planted reach the threshold, and no others."""
    scores, threshold = case.scores(case.run(case.given("planted"))), case.given("threshold")
    found, want = {head for head, x in scores.items() if x >= threshold}, set(case.given("heads"))
    if found != want:
        raise Broken(f"found {sorted(found)}, planted {sorted(want)}")
    return f"{len(want)} of {len(scores)} heads"


def null(case: Case) -> str:
    """In a model with nothing planted no head reaches the threshold."""
    scores, threshold = case.scores(case.run(case.given("null"))), case.given("threshold")
    found = {head: x for head, x in scores.items() if not x < threshold}
    if found:
        raise Broken(f"found {found} where nothing is")
    return f"at most {max(scores.values()):.2g}"


def heads(case: Case) -> str:
    """Heads in another order have their scores in that order."""
    permuted: Callable[[list[list[int]]], Any] = case.given("permuted")
    scores = case.scores(case.run(case.given("planted")))
    counts = [1 + max(h for at, h in scores if at == layer) for layer in sorted({layer for layer, _ in scores})]
    orders = [torch.randperm(count, generator=torch.Generator().manual_seed(7 + count)).tolist() for count in counts]
    other = case.scores(case.run(permuted(orders)))
    got = torch.tensor([other[layer, i] for layer, order in enumerate(orders) for i in range(len(order))])
    want = torch.tensor([scores[layer, head] for layer, order in enumerate(orders) for head in order])
    return f"{same(got, want, TOLERANCE, 'permuted heads'):.1e}"


def merge(case: Case) -> str:
    """Results of parts of the data merge to that of all, and stay as they were."""
    data, subject = list(case.given("data")), case.given("planted")
    if len(data) < 2:
        raise Broken(f"{len(data)} texts, which cannot be parted")
    whole, parts = case.run(subject), [case.analysis.run(subject, part) for part in (data[:1], data[1:])]
    before = [case.scores(part) for part in parts]
    merged = parts[0].merge(parts[1])
    if [case.scores(part) for part in parts] != before:
        raise Broken("merging changed what was merged")
    return f"{same(values(case.scores(merged)), values(case.scores(whole)), TOLERANCE, 'merged results'):.1e}"


def rows(case: Case) -> str:
    """In which blocks the subject is shown does not matter."""
    got, want = (case.scores(case.run(case.given(name))) for name in ("other", "planted"))
    return f"{same(values(got), values(want), TOLERANCE, 'other blocks'):.1e}"


def table(case: Case) -> str:
    """The result is frozen, and its table plain: a row a head, once, that JSON can hold."""
    result = case.run(case.given("planted"))
    if not is_dataclass(result) or not result.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise Broken(f"a {type(result).__name__}, which can be changed")
    told = plain(result)
    try:
        json.dumps(told)
    except TypeError as error:
        raise Broken(f"a table that is not plain: {error}") from None
    places = [(row["layer"], row["head"]) for row in told]
    if len(set(places)) != len(places):
        raise Broken("a head with several rows")
    return f"{len(told)} rows"


def plain(result: Any) -> list[dict[str, Any]]:
    """The rows of a result."""
    return result.table()


def values(scores: dict[tuple[int, int], float]) -> Tensor:
    """The scores in the order of the heads."""
    return torch.tensor([x for _, x in sorted(scores.items())], dtype=torch.float64)


LAWS: dict[str, Callable[[Case], str]] = {
    law.__name__: law for law in (known, planted, null, heads, merge, rows, table)
}
subject = Case


def example(analysis: Any, **given: Any) -> Sample:
    """An analysis from elsewhere, with what its laws are to know."""
    return Sample(type(analysis).__name__, analysis, given)
