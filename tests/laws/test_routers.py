"""The routers that mechanisms choose by, against the laws of routers."""

import pytest
import torch

import regard
from regard.core.kinds import Sample
from regard.laws import examine, examples_of, laws_of
from regard.laws.router import Chosen
from regard.mechanisms.sparse.nsa import Compressed
from regard.mechanisms.sparse.routed import Routed
from regard.routers.blocks import SCORES
from regard.routers.diagonal import DiagonalLevels
from regard.routers.shares import ScaledShare, SimilarShare
from regard.routers.stages import Stages
from regard.routers.tree import Halves

OF_MECHANISMS = [
    pytest.param(
        Sample(example.label, example.mechanism.router, {"head_dim": example.head_dim}),
        id=f"{entry.name}:{example.label}",
    )
    for entry in regard.entries(family="sparse")
    if isinstance(entry.thing, type) and issubclass(entry.thing, Routed)
    for example in examples_of(entry.thing)
]
ALONE = [
    pytest.param(sample, id=f"{of.__name__}:{sample.label}")
    for of in (*SCORES.values(), Compressed, ScaledShare, SimilarShare, Halves, Stages)
    for sample in of.examples()
]
TOGETHER = [case for case in [*OF_MECHANISMS, *ALONE] if case.values[0].thing.size > 1]
TOGETHER = [case for case in TOGETHER if not isinstance(case.values[0].thing, DiagonalLevels)]
"""Routers of several queries in a row, wherever in it these stand."""


@pytest.mark.parametrize("law", laws_of("router"))
@pytest.mark.parametrize("sample", [*OF_MECHANISMS, *ALONE])
def test_law(sample, law):
    finding = examine(sample, law, kind="router")
    assert finding.verdict == "holds" or (law, finding.verdict) == ("causal", "not claimed"), finding.detail


@pytest.mark.parametrize("sample", [*OF_MECHANISMS, *ALONE])
def test_a_width_is_of_what_is_summed_up(sample):
    """The numbers that are counted for one block of one head are those that there are."""
    router, (_, k) = sample.thing, Chosen(sample).draw(67, 67)
    assert sum(part.shape[3] for part in router.summary(k.float())) == router.width(k.shape[3])


@pytest.mark.parametrize("sample", TOGETHER)
def test_what_fills_up_the_last_row_has_no_say(sample):
    """A row of one query chooses as one of so many times that query, all of whose scores are below zero, which a query
    of zeros would have."""
    subject = Chosen(sample)
    router, way, more = subject.router, subject.router.directions[0], subject.router.size - 1
    rows = subject.rows(5 * router.size + 1, 8 * router.size + 3, way)
    q, k = (x.abs() for x in subject.draw(rows.n, rows.m))
    full = torch.cat([-q, -q[:, :, -1:].expand(-1, -1, more, -1)], 2)
    here = torch.cat([rows.here, rows.here[:, -1:].expand(-1, more)], 1)
    few, many = router(-q, k, rows), router(full, k, router.rows(here, rows.m, way))
    assert torch.equal(few.mask[:, :, -1], many.mask[:, :, -1])
