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
from regard.analysis.planted import planted_model
from regard.analysis.projected_patterns import ProjectedPatterns

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


def bert():
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 7}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return BertModel(BertConfig(vocab_size=31, **sizes), add_pooling_layer=False).eval()


def test_projected_layers_start_from_nothing_and_stand_before_the_last_norm():
    model, ids = bert(), torch.tensor([[5, 7, 1, 7, 9, 1, 3]])
    layers = ProjectedPatterns(model, ("matching", None, "next"), narrow=6, stop=1)
    with torch.no_grad():
        before = model(ids).last_hidden_state
        with layers.inside(model):
            torch.testing.assert_close(model(ids).last_hidden_state, before, rtol=0, atol=0)
        torch.nn.init.normal_(layers.decode.weight)
        with layers.inside(model):
            found = model(ids).last_hidden_state
        h = model.embeddings(ids)
        for layer, block in enumerate(model.encoder.layer):
            attended = block.attention(h)[0]
            inner = block.output.dense(block.intermediate(attended))
            masks = pattern_masks(ids, sentences_of(ids, 1))
            more = layers.attention[layer](layers.encode(h), masks)[0] @ layers.decode.weight.T
            h = block.output.LayerNorm(inner + more + attended)
        torch.testing.assert_close(found, h)
        torch.testing.assert_close(model(ids).last_hidden_state, before, rtol=0, atol=0)


def test_projected_layers_learn_and_see_no_padding():
    model = bert().requires_grad_(False)
    layers = ProjectedPatterns(model, (None, "sentence"), narrow=6, stop=1)
    torch.nn.init.normal_(layers.decode.weight)
    ids, mask = torch.tensor([[5, 7, 1, 7, 9], [5, 7, 1, 0, 0]]), torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])
    with layers.inside(model):
        padded = model(input_ids=ids, attention_mask=mask).last_hidden_state
        alone = model(input_ids=ids[1:, :3]).last_hidden_state
    torch.testing.assert_close(padded[1:, :3], alone, atol=1e-5, rtol=1e-5)
    padded.sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in (layers.encode.weight, layers.decode.weight))
    assert all(p.grad is None for p in model.parameters())


def test_models_that_generate_are_refused_projected_layers():
    with pytest.raises(ValueError, match="an encoder"):
        ProjectedPatterns(planted_model(), (None,))
