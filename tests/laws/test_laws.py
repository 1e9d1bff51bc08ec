"""Every registered thing against every law of its kind."""

import re
from dataclasses import replace

import pytest
import torch

import regard
from regard.core.kinds import KINDS
from regard.laws import devices, examine, examples_of, laws_of
from regard.networks import LM, ViT
from regard.networks.captioning.adaptive import AdaptiveCaptioner
from regard.networks.captioning.bottom_up import BottomUpAnswers
from regard.networks.encoder_decoder import EncoderDecoder
from regard.networks.mega import MegaEncoder
from regard.networks.mosa import MosaLM
from regard.parallel.gather import Gather
from regard.parallel.heads import Heads
from regard.parallel.ring import Ring
from regard.projections.base import Grouped
from regard.projections.values_only import ValuesOnly

WAITING: dict[str, str] = {}
"""Kinds that have no laws yet, and why. A kind without laws that is not here fails, and so does one here with laws."""
TELLING = {"mechanism": ("symmetry", "rows", "causal"), "projection": ("limit",)}
"""Laws of which every entry of a kind must claim one."""
BESIDE = [Grouped, ValuesOnly, LM, ViT, EncoderDecoder, MegaEncoder, MosaLM]
BESIDE += [AdaptiveCaptioner, BottomUpAnswers, Ring, Gather, Heads]
EXACT = {
    "ContextMixing": ("windows of 5 and 7, grouped", "one window of 6, 3 regions"),
    "GlobalNative": ("blocks of 4, grouped", "blocks of 33"),
    "MoBA": ("blocks of 4",),
    "ExpertChoice": ("a third of the tokens", "a fifth and the first"),
    "PyramidSparse": ("three levels",),
    "QuadTree": ("5 and 3 of shares, grouped", "4 of levels", "2, 3 and 2 of shares"),
    "RoutedBlocks": ("middle of mean and bound", "the bound, grouped"),
    "RoutedRegions": ("2 of 7", "1 of 5, grouped", "all of 3"),
    "ContentRouting": ("three clusters", "five of 7 tokens"),
    "Superlinear": ("three spans", "a window, spans of both ways, grouped", "more anchors, shorter spans"),
}
"""Mechanisms whose FLOPs are a bound, since their data decide what is computed, by class; and the examples whose data
leave nothing of it out, so that the bound is the count."""
LAWFUL = [kind.name for kind in KINDS.values() if kind.laws]
CASES = [
    pytest.param(entry.kind, example, law, id=f"{entry.kind}:{entry.name}:{example.label}:{law}")
    for entry in regard.entries()
    if entry.kind in LAWFUL
    for example in examples_of(entry.thing)
    for law in laws_of(entry.kind)
]


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize(("kind", "example", "law"), CASES)
def test_law(kind, example, law, device):
    finding = examine(example, law, device, kind)
    assert finding.verdict in ("holds", "not claimed"), finding.detail
    if law == "cost" and example.label in EXACT.get(type(getattr(example, "mechanism", None)).__name__, ()):
        square = replace(example, value_dim=example.head_dim)  # some ways fill up what is shorter, keys or values
        found = [finding.detail, examine(square, law, device, kind).detail]
        assert min(float(re.findall(r"FLOPs ×[\d.]+…([\d.]+) of the count", each)[0]) for each in found) <= 1.02


def test_bounds_that_are_counts_are_of_examples_that_there_are():
    made = [example for entry in regard.entries(kind="mechanism") for example in examples_of(entry.thing)]
    labels = {(type(example.mechanism).__name__, example.label) for example in made}
    assert {(name, label) for name, each in EXACT.items() for label in each} <= labels


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_has_laws_or_a_reason(name):
    kind = KINDS[name]
    assert bool(kind.laws) + (name in WAITING) + kind.open == 1
    assert kind.base or not kind.laws
    if "no system yet" in WAITING.get(name, ""):
        assert not regard.entries(kind=name), "a system has come: its kind needs a base, laws and mutants"


@pytest.mark.parametrize("entry", [pytest.param(e, id=e.name) for e in regard.entries() if e.kind in LAWFUL])
def test_every_entry_has_examples_and_claims_something(entry):
    examples = examples_of(entry.thing)
    assert len({example.label for example in examples}) == len(examples) > 0
    telling = TELLING.get(entry.kind, laws_of(entry.kind))
    assert any(examine(example, law, kind=entry.kind).verdict == "holds" for law in telling for example in examples)


@pytest.mark.parametrize("entry", [pytest.param(e, id=e.name) for e in regard.entries() if KINDS[e.kind].base])
def test_every_entry_is_of_its_kind(entry):
    if isinstance(entry.thing, type):
        assert KINDS[entry.kind].includes(entry.thing)


@pytest.mark.parametrize("thing", BESIDE)
def test_what_stands_beside_the_atlas_is_lawful_too(thing):
    report = regard.check(thing)
    assert report.holds, report.broken


@pytest.mark.parametrize("thing", ["softmax", torch.nn.Linear(3, 5), torch.nn.Linear, None])
def test_what_is_of_no_kind_is_one_error(thing):
    with pytest.raises(TypeError, match=r"^thing: got .*, want an instance or a class of a kind that has laws: a mech"):
        regard.check(thing)


def test_what_a_class_cannot_be_told_is_named():
    with pytest.raises(TypeError, match=r"^heads: got a setting for a class, want an instance"):
        regard.check(regard.find("softmax").thing, heads=3)
