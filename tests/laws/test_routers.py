"""The routers that mechanisms choose by, against the laws of routers."""

import pytest

import regard
from regard.core.kinds import Sample
from regard.laws import examine, examples_of, laws_of
from regard.laws.router import Chosen
from regard.mechanisms.sparse.nsa import Compressed
from regard.mechanisms.sparse.routed import Routed
from regard.routers.blocks import SCORES
from regard.routers.shares import ScaledShare, SimilarShare
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
    for of in (*SCORES.values(), Compressed, ScaledShare, SimilarShare, Halves)
    for sample in of.examples()
]


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
