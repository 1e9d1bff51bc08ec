"""The routers that mechanisms choose by, against the laws of routers."""

import pytest

import regard
from regard.core.kinds import Sample
from regard.laws import examine, examples_of, laws_of
from regard.mechanisms.sparse.nsa import Compressed
from regard.mechanisms.sparse.routed import Routed
from regard.routers.blocks import SCORES
from regard.routers.shares import ScaledShare, SimilarShare

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
    for of in (*SCORES.values(), Compressed, ScaledShare, SimilarShare)
    for sample in of.examples()
]


@pytest.mark.parametrize("law", laws_of("router"))
@pytest.mark.parametrize("sample", [*OF_MECHANISMS, *ALONE])
def test_law(sample, law):
    finding = examine(sample, law, kind="router")
    assert finding.verdict == "holds" or (law, finding.verdict) == ("causal", "not claimed"), finding.detail
