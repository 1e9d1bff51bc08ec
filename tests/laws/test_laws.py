"""Every registered mechanism against every law."""

import pytest
import torch

import regard
from regard.core.atlas import entries
from regard.laws import LAWS, devices, examine

EXAMPLES = [
    (entry.name, example) for entry in entries() if entry.kind == "mechanism" for example in entry.thing.examples()
]


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("name", "example"), EXAMPLES, ids=[f"{name}:{e.label}" for name, e in EXAMPLES])
def test_law(name, example, law, device):
    finding = examine(example, law, device)
    assert finding.verdict in ("holds", "not claimed"), finding.detail


@pytest.mark.parametrize("name", [entry.name for entry in entries() if entry.kind == "mechanism"])
def test_every_mechanism_has_examples_and_claims_something(name):
    examples = [example for owner, example in EXAMPLES if owner == name]
    assert examples
    claimed = [law for law in ("causal", "rows", "symmetry") if examine(examples[0], law).verdict == "holds"]
    assert claimed


@pytest.mark.parametrize("thing", ["softmax", torch.nn.Linear(3, 5), torch.nn.Linear, None])
def test_what_is_no_mechanism_is_one_error(thing):
    with pytest.raises(TypeError, match=r"^mechanism: got .*, want a regard.Mechanism or a subclass of it"):
        regard.check(thing)
