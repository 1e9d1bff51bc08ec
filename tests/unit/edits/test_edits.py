"""Edits do what their papers' equations say, on maps that are formed whole."""

from __future__ import annotations

import math

import pytest
import torch
from transformers.cache_utils import DynamicCache

import regard
from regard.core.edit import Edit
from regard.edits import (
    ACT,
    FoundInTheMiddle,
    HeadAblation,
    HeadScale,
    Highlight,
    KnockOut,
    SpanMasses,
    Temperature,
    ZeroTuning,
)
from regard.edits.saved import dumped, load, loaded, save
from unit.hosts.models import causal, eager, tokens
from unit.hosts.test_attach import logits
from unit.hosts.test_watch import CLOSE, Dense


def maps(*edits, name="Llama", n=13, ids=None, **inputs):
    """``(A of the first layer without edits, with them)``."""
    model, ids = causal(name), tokens(2, n) if ids is None else ids
    with regard.attach(model, edits=edits, probes=[Dense(ids.shape[1])]) as attached:
        logits(model, ids, **inputs)
    return eager(model, input_ids=ids, **inputs).attentions[0], attached["dense"][0]


@pytest.mark.parametrize("edit", [HeadAblation, HeadScale, KnockOut, Temperature])
def test_edits_beside_the_atlas_are_lawful_too(edit):
    report = regard.check(edit)
    assert report.holds, report.broken


class Beside(Edit):
    """An edit of a user's."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word = word


def test_edits_are_kept_in_small_files(tmp_path):
    edits = [Highlight([(2, 5)], 1.5, heads={1: [0]}, rows=slice(3, None)), HeadAblation([1], {0: torch.ones(6, 4)})]
    save(edits, tmp_path / "edits.json")
    assert [repr(edit) for edit in load(tmp_path / "edits.json")] == [repr(edit) for edit in edits]
    assert len((tmp_path / "edits.json").read_text()) < 3000
    assert '"größer"' in dumped([Beside("größer")]), "what stands there can be read"
    assert loaded(dumped([Beside("größer")]), {"Beside": Beside})[0].word == "größer"
    with pytest.raises(LookupError, match=r"edit: got 'past', want one of .* \(did you mean 'pasta'\?\)"):
        loaded(dumped(edits).replace('"pasta"', '"past"'))
    with pytest.raises(ValueError, match="want JSON with the format 'regard edits 1'"):
        loaded("{}")
    with pytest.raises(OSError, match=r"path: got .*no such file"):
        load(tmp_path / "none.json")


def test_zero_tuning_is_its_equation():
    before, after = maps(ZeroTuning(0.6))
    a0 = before[..., :1]
    expected = torch.cat([0.6 * a0, before[..., 1:]], -1) / (1 + (0.6 - 1) * a0)
    torch.testing.assert_close(after, expected, **CLOSE)


def test_highlighting_weighs_the_others_less():
    before, after = maps(Highlight([(2, 5)], math.log(100)))
    expected = before.clone()
    expected[..., [0, 1, *range(5, 13)]] *= 0.01
    torch.testing.assert_close(after, expected / expected.sum(-1, keepdim=True), **CLOSE)


def test_each_row_of_a_batch_has_spans_of_its_own():
    model, ids = causal("Llama"), tokens(2, 13)
    with regard.steer(model, Highlight({0: [(2, 5)], 1: [(6, 8), (1, 2)]}, 2.0)):
        both = logits(model, ids)
    for row, spans in enumerate(([(2, 5)], [(6, 8), (1, 2)])):
        with regard.steer(model, Highlight(spans, 2.0)):
            torch.testing.assert_close(both[row], logits(model, ids[row : row + 1])[0], **CLOSE)
    with (
        regard.steer(model, Highlight({2: [(2, 5)]})),
        pytest.raises(ValueError, match=r"rows of the batch in keys: got"),
    ):
        logits(model, ids)


def test_what_is_knocked_out_has_no_weight_and_no_effect():
    before, after = maps(KnockOut([(1, 4)], rows=slice(4, None)))
    expected = before.clone()
    expected[:, :, 4:, 1:4] = 0
    torch.testing.assert_close(after, expected / expected.sum(-1, keepdim=True), **CLOSE)
    assert after[:, :, 4:, 1:4].abs().max() == 0
    model, one, other = causal("Llama"), tokens(1, 9), tokens(1, 9)
    other[:, 2:4] = torch.tensor([[3, 4]])
    with regard.steer(model, KnockOut([(2, 4)], rows=slice(4, None))):
        torch.testing.assert_close(logits(model, one)[:, 4:], logits(model, other)[:, 4:], **CLOSE)
    _, blind = maps(KnockOut([(0, 1)]))
    assert blind[:, :, 0].abs().max() == 0
    with pytest.raises(ValueError, match=r"strength: got 1.5, want 0 \(nothing\) to 1"):
        KnockOut([(0, 1)], 1.5)


def test_a_part_of_the_attention_is_taken_away():
    before, after = maps(KnockOut([(1, 4)], 0.4, rows=slice(4, None)))
    torch.testing.assert_close(after[:, :, 4:, 1:4], 0.6 * before[:, :, 4:, 1:4], **CLOSE)
    torch.testing.assert_close(after.sum(-1), before.sum(-1), **CLOSE)


def test_temperature_is_that_of_the_scores():
    before, after = maps(Temperature(2.0, heads=[1, 2]))
    root = before.sqrt() / before.sqrt().sum(-1, keepdim=True)
    torch.testing.assert_close(after[:, [1, 2]], root[:, [1, 2]], **CLOSE)
    torch.testing.assert_close(after[:, [0, 3, 4, 5]], before[:, [0, 3, 4, 5]], **CLOSE)


def test_scaled_heads_are_those_of_a_scaled_projection():
    model, ids = causal("Llama"), tokens(1, 9)
    with regard.steer(model, HeadScale({0: [2]}, -0.5)):
        got = logits(model, ids)
    model.model.layers[0].self_attn.o_proj.weight.data[:, 8:12] *= -0.5
    torch.testing.assert_close(got, logits(model, ids), **CLOSE)


def act_by_definition(a, beta, alpha):
    """ACT on dense causal maps, head by head, as a loop."""
    edited, n = a.clone(), a.shape[-1]
    counts = torch.arange(n, 0, -1)
    for b in range(a.shape[0]):
        for h in range(a.shape[1]):
            sinks = (a[b, h].sum(0) / counts > alpha).nonzero()[1:, 0].tolist()
            others = [j for j in range(n) if j not in sinks]
            for i in range(n):
                taken, left = a[b, h, i, sinks].sum(), a[b, h, i, others].sum()
                if left > 0:
                    edited[b, h, i, sinks] *= beta
                    edited[b, h, i, others] *= 1 + (1 - beta) * taken / left
    return edited


def test_act_is_its_definition():
    before, after = maps(ACT(0.4, 0.12))
    expected = act_by_definition(before, 0.4, 0.12)
    assert (expected - before).abs().max() > 0.05
    torch.testing.assert_close(after, expected, **CLOSE)


def test_act_goes_on_with_the_columns_of_earlier_queries():
    model, ids = causal("Llama"), tokens(1, 12)
    before = eager(model, input_ids=ids).attentions[0]
    edit, cache = ACT(0.4, 0.12, layers=[0]), DynamicCache(config=model.config)
    with regard.attach(model, edits=[edit], probes=[Dense(12)]) as attached, torch.no_grad():
        for part in (slice(9), slice(9, 11), slice(11, 12)):
            model(input_ids=ids[:, part], past_key_values=cache)
    torch.testing.assert_close(
        attached["dense"][0][:, :, 11:], act_by_definition(before, 0.4, 0.12)[:, :, 11:], **CLOSE
    )
    with regard.steer(model, ACT(0.4, 0.12)), pytest.raises(RuntimeError, match="whose columns were not all seen"):
        model(input_ids=ids[:, :1], past_key_values=cache)


def test_passages_share_what_their_places_do_not_explain():
    bias = {0: torch.rand(6, 3, generator=torch.Generator().manual_seed(2)) * 0.2}
    spans = [(1, 4), (4, 6), (7, 9)]
    before, after = maps(FoundInTheMiddle(spans, bias, 0.3))
    expected = before.clone()
    for i in range(9, 13):
        own = torch.stack([before[:, :, i, start:stop].sum(-1) for start, stop in spans], -1)
        wanted = own.sum(-1, keepdim=True) * torch.softmax((own - bias[0]) / 0.3, -1)
        for k, (start, stop) in enumerate(spans):
            expected[:, :, i, start:stop] *= (wanted / own)[..., k, None]
    torch.testing.assert_close(after, expected, **CLOSE)
    with pytest.raises(ValueError, match="spans that do not overlap"):
        FoundInTheMiddle([(1, 4), (3, 6)], bias)


def test_masses_of_spans_are_read_and_nothing_is_changed():
    reading = SpanMasses([(1, 4), (6, 7)], rows=slice(7, None))
    model, ids = causal("Llama"), tokens(2, 13)
    with regard.steer(model):
        plain = logits(model, ids)
    with regard.steer(model, reading):
        assert torch.equal(logits(model, ids), plain)
    dense = eager(model, input_ids=ids).attentions[1][:, :, 7:].double()
    expected = torch.stack([dense[..., 1:4].sum(-1), dense[..., 6]], -1).mean((0, 2))
    torch.testing.assert_close(reading.means()[1], expected, **CLOSE)
