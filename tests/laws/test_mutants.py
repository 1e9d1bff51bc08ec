"""Each law of each kind must reject its mutants, and what they are broken from must obey it."""

import sys
from importlib import import_module

import pytest
import torch

from mutants.mechanism import MUTANTS
from mutants.textbook import Textbook
from regard.core.kinds import KINDS, Sample, kind_of
from regard.laws import check, examine, examples_of, laws_of
from regard.laws.finding import same

BROKEN = {kind.name: import_module(f"mutants.{kind.name}") for kind in KINDS.values() if kind.laws}
FORGIVEN = {torch.float64: 0.01, torch.float32: 0.01, torch.float16: 0.04, torch.bfloat16: 0.04}
"""The widest tolerance of any law; of float64, what small steps along a dial or a derivative bring about."""
LAWS = [pytest.param(kind, law, id=f"{kind}:{law}") for kind in BROKEN for law in laws_of(kind)]
PAIRS = [
    pytest.param(kind, law, mutant, id=f"{kind}:{law}:{mutant.__name__}")
    for kind, module in BROKEN.items()
    for law, mutants in module.MUTANTS.items()
    for mutant in mutants
]


@pytest.mark.parametrize("kind", BROKEN)
def test_every_law_has_a_mutant(kind):
    assert set(BROKEN[kind].MUTANTS) == set(laws_of(kind))


@pytest.mark.parametrize("kind", BROKEN)
def test_an_instance_is_examined_like_an_example(kind):
    """It is known by its base, and told what its examples are given."""
    (example, *_), module = examples_of(BROKEN[kind].ORIGINAL), KINDS[kind].module
    if not isinstance(example, Sample):
        pytest.skip("examples of their own: see below")
    assert kind_of(example.thing) is KINDS[kind]
    same = module.example(example.thing, **example.given)
    assert same.thing is example.thing
    assert all(same.given[name] is value for name, value in example.given.items())


@pytest.mark.parametrize(("kind", "law"), LAWS)
def test_the_original_obeys(kind, law, monkeypatch, capsys):
    """And its law forgives no more than rounding does, or asks alone whether numbers are finite."""
    asked = []

    def told(got, want, tolerance, where, rows=None, least=1e-6):
        asked.append(0 if tolerance == torch.inf else tolerance / FORGIVEN[got.dtype])
        return same(got, want, tolerance, where, rows, least)

    for name in [name for name in sys.modules if name.startswith("regard.laws.")]:
        if hasattr(sys.modules[name], "same"):
            monkeypatch.setattr(sys.modules[name], "same", told)
    finding = examine(examples_of(BROKEN[kind].ORIGINAL)[0], law, kind=kind)
    assert finding.verdict == "holds", finding.detail
    assert max(asked, default=0) <= 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("kind", "law", "mutant"), PAIRS)
def test_mutant_is_rejected(kind, law, mutant):
    """And for its own fault, not because it crashes on good input."""
    finding = examine(examples_of(mutant)[0], law, kind=kind)
    assert finding.verdict == "broken", f"{mutant.__doc__} passed the law of {law}: {finding.detail}"
    assert not finding.detail.startswith(("AttributeError", "NameError", "TypeError", "NotImplementedError"))


def test_check_reports_on_an_instance_from_outside():
    report = check(Textbook(), heads=6, kv_heads=3)
    assert report.holds
    assert "not claimed" not in str(report)


def test_check_names_what_broke():
    report = check(next(m for m in MUTANTS["causal"] if m.__name__ == "MaskOffByOne"))
    assert not report.holds
    assert any(f.law == "causal" and "change earlier rows" in f.detail for f in report.broken)
