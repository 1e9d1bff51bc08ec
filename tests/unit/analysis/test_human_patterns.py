"""Patterns are those of their authors' code, and heads that are given one look where it says."""

import json
from pathlib import Path

import pytest
import torch

from regard.analysis.base import DenseMaps, Prompt
from regard.analysis.human_patterns import (
    PATTERNS,
    HumanPatterns,
    InjectedAttention,
    PatternEncoder,
    pattern_masks,
    sentences_of,
)

VALUES = json.loads((Path(__file__).parents[2] / "reference" / "observe.json").read_text())["patterns"]
STOP = 2


def test_masks_are_those_of_the_authors():
    ids = torch.tensor(VALUES["ids"])
    found = pattern_masks(ids, sentences_of(ids, STOP))
    assert {name: found[name].int().tolist() for name in PATTERNS} == {name: VALUES[name] for name in PATTERNS}


def test_tokens_of_no_sentence_see_none():
    ids = torch.tensor([[3, 4, 5]])
    assert pattern_masks(ids, torch.tensor([[0, -1, 0]]))["sentence"][0].tolist() == [
        [True, False, True],
        [False, False, False],
        [True, False, True],
    ]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_relevance_of_even_maps_is_chance(pattern):
    texts = [Prompt(torch.randint(3, 9, (n,), generator=torch.Generator().manual_seed(n))) for n in (11, 13)]
    texts = [Prompt(torch.cat([t.ids[:5], torch.tensor([STOP]), t.ids[5:]])) for t in texts]
    analysis = HumanPatterns(pattern, STOP)
    for causal in (False, True):

        def even(ids, causal=causal):
            n = ids.shape[1]
            seen = torch.ones(n, n).tril() if causal else torch.ones(n, n)
            return [(seen / seen.sum(1, keepdim=True)).expand(1, 3, n, n)]

        found = analysis.run(DenseMaps(even), texts)
        assert found.of((0, 1)) == pytest.approx(analysis.chance(texts, causal), abs=1e-6)


def test_heads_look_where_they_are_told_to():
    torch.manual_seed(0)
    ids = torch.tensor([[5, 6, STOP, 6, 7, 8, STOP]])
    masks = pattern_masks(ids, sentences_of(ids, STOP))
    attention = InjectedAttention(15, ("matching", "sentence", "next", "previous", None))
    _, a = attention(torch.randn(1, 7, 15), masks)
    assert attention.score.out_features == 2 * 3 * 3
    torch.testing.assert_close(a.sum(3), torch.ones(1, 5, 7))
    for head, pattern in enumerate(PATTERNS):
        shown = masks[pattern][0]
        rows = shown.any(1)
        assert a[0, head][rows][~shown[rows]].abs().max() < 1e-6
    torch.testing.assert_close(a[0, 2, :-1], torch.eye(7)[1:])
    torch.testing.assert_close(a[0, 2, -1], torch.full((7,), 1 / 7))
    assert a[0, 4].min() > 0


def test_learned_heads_are_plain_attention():
    torch.manual_seed(1)
    attention, x = InjectedAttention(12, (None, None, None)), torch.randn(2, 5, 12)
    parts = attention.score(x).view(2, 5, 2, 3, 4).permute(2, 0, 3, 1, 4)
    v = attention.value(x).view(2, 5, 3, 4).transpose(1, 2)
    want = torch.nn.functional.scaled_dot_product_attention(parts[0], parts[1], v)
    torch.testing.assert_close(attention(x, {})[0], attention.out(want.transpose(1, 2).flatten(2)))


def test_an_encoder_shows_its_maps_and_learns():
    model = PatternEncoder(11, PATTERNS, 7, width=16, inner=8, seed=3)
    ids = torch.tensor([[5, 6, 0, 6, 7, 8, 0], [5, 9, 0, 1, 1, 2, 0]])
    told, maps = model.maps(ids)
    assert told.shape == (2, 7)
    assert [a.shape for a in maps] == [(2, 4, 7, 7)] * 2
    told.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_other_patterns_and_widths_are_named():
    with pytest.raises(LookupError, match=r"^pattern: got 'mathing', want one of .* \(did you mean 'matching'\?\)"):
        HumanPatterns("mathing")
    with pytest.raises(ValueError, match=r"^width: got 10, want a multiple of the 4 heads"):
        InjectedAttention(10, PATTERNS)
