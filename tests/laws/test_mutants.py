"""Each law must reject its mutants, and the textbook that they are broken from must pass."""

import pytest

from mutants.broken import MUTANTS
from mutants.textbook import Textbook
from regard.laws import LAWS, check, examine

PAIRS = [(law, mutant) for law, mutants in MUTANTS.items() for mutant in mutants]


def test_every_law_has_a_mutant():
    assert set(MUTANTS) == set(LAWS)


@pytest.mark.parametrize("law", LAWS)
def test_the_textbook_obeys(law):
    finding = examine(Textbook.examples()[0], law)
    assert finding.verdict == "holds", finding.detail


@pytest.mark.parametrize(("law", "mutant"), PAIRS, ids=[f"{law}:{mutant.__name__}" for law, mutant in PAIRS])
def test_mutant_is_rejected(law, mutant):
    """And for its own fault, not because it crashes on good input."""
    finding = examine(mutant.examples()[0], law)
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
