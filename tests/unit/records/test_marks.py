"""What a cache policy keeps of a record's text: the places that the cache holds, and the attention that they get."""

from __future__ import annotations

import pytest
import torch

import regard
from regard.records.kept import mark_kept
from regard.records.record import record
from unit.hosts.models import causal, eager, t5, tokens
from unit.hosts.test_own import model as own
from unit.hosts.test_own import tokens as own_tokens

N = 37


@pytest.mark.parametrize(
    ("policy", "budget"), [("snapkv(window=3)", 11), ("streaming", 0.2), ("pyramidkv(window=3)", 13)]
)
def test_the_marks_are_what_the_cache_holds(policy, budget):
    model, ids = causal("Llama"), tokens(1, N)
    seen = mark_kept(record(model, None, ids), model, policy, budget)
    with regard.compress(model, policy, budget=budget) as compression, torch.no_grad():
        model(input_ids=ids, use_cache=True)
    dense = eager(model, input_ids=ids).attentions
    for layer in (0, 1):
        marks, held = seen.arrays[f"{layer}/kept"], compression.store.kept(layer)
        assert [row.nonzero()[:, 0].tolist() for row in marks] == [positions.tolist() for positions in held]
        a = dense[layer][0].double()
        mass = (a * marks.repeat_interleave(2, 0)[:, None]).sum((1, 2)) / N
        torch.testing.assert_close(seen.arrays[f"{layer}/kept_mass"].double(), mass, atol=1e-5, rtol=1e-4)
    assert seen.header["analyses"]["kept"]["policy"] == policy


def test_a_cache_with_room_for_all_keeps_all_the_attention():
    model = causal("GPT2")
    seen = mark_kept(record(model, None, tokens(1, N)), model, "random", N)
    assert seen.arrays["1/kept"].all()
    torch.testing.assert_close(seen.arrays["1/kept_mass"], torch.ones(3))


def test_what_is_generated_is_not_judged_and_windows_are_left_alone():
    """The policy acts when the prompt has been read; a layer with a window keeps no long cache."""
    model = causal("Gemma2")
    seen = mark_kept(record(model, None, tokens(1, 23), generate=4), model, "streaming", 9)
    assert "0/kept" not in seen.arrays
    assert seen.arrays["1/kept"][:, 23:].all()
    assert seen.arrays["1/kept"][:, :23].sum(1).tolist() == [9, 9, 9]


def test_what_has_no_cache_is_refused():
    with pytest.raises(ValueError, match="policy: got streaming on LM of"):
        mark_kept(record(own(), None, own_tokens(N)[0]), own(), "streaming", 9)
    with pytest.raises(ValueError, match="policy: got streaming on T5For"):
        mark_kept(record(t5(), None, [3, 4, 5], [6]), t5(), "streaming", 9)
