"""The rhythm is that of loops over the maps, and its tokens alone count more."""

from __future__ import annotations

import pytest
import torch

import regard
from regard.laws.objective import batches, drawn
from regard.probes.rhythm import Beat, Rhythm
from regard.train.objective import run
from regard.train.objectives import PreplanAnchor
from regard.train.objectives.preplan_anchor import largest, policy_gradient, preplans, rhythm
from unit.hosts.models import causal, eager


def test_distance_and_influence_are_those_of_loops():
    model, batch = causal("Llama"), batches(drawn(1)).rows(torch.tensor([0, 2]))
    with regard.watch(model, [probe := Rhythm(3)]), torch.no_grad():
        run(model, batch)
    maps = eager(model, input_ids=batch.ids, attention_mask=batch.real.long()).attentions
    for layer, beat in probe.result().items():
        for row, length in ((0, 13), (1, 10)):
            a = maps[layer][row]
            for head in (0, 4):
                spans = []
                for t in range(length):
                    waad = sum(float(a[head, t, s]) * min(t - s, 3) for s in range(t + 1))
                    assert beat.distance[row, head, t].item() == pytest.approx(waad, abs=1e-5)
                    spans.append(sum(float(a[head, t, s]) * (t - s) for s in range(t + 1)))
                    later = [float(a[head, i, t]) for i in range(t + 1, length)]
                    fai = sum(later) / len(later) if later else 0.0
                    assert beat.influence[row, head, t].item() == pytest.approx(fai, abs=1e-5)
                assert beat.span[row, head].item() == pytest.approx(sum(spans) / length, abs=1e-5)
    with pytest.raises(ValueError, match="window: got 0"):
        Rhythm(0)


def test_short_heads_tell_distance_and_long_ones_influence():
    def beat(*spans):
        numbers = torch.tensor(spans)[None]
        return Beat(numbers, numbers[..., None].expand(1, -1, 2) * 10, numbers[..., None].expand(1, -1, 2) * 100)

    distance, influence = rhythm({0: beat(1.0, 5.0), 1: beat(4.0, 2.0)}, 0.5)
    assert distance.tolist() == [[15.0, 15.0]]
    assert influence.tolist() == [[450.0, 450.0]]


def test_peaks_and_their_preplans_by_hand():
    values = torch.tensor([[9.0, 1, 5, 4, 7, 0], [0, 0, 1, 2, 3, 9]])
    among = torch.tensor([[False, True, True, True, True, True], [False, False, True, True, True, False]])
    anchors = largest(values, among, 0.4)
    assert anchors.tolist() == [[False, False, True, False, True, False], [False, False, False, False, True, False]]
    distance = torch.tensor([[9.0, 8, 1, 0, 2, 0], [9, 9, 3, 4, 1, 9]])
    assert preplans(distance, anchors, among).nonzero().tolist() == [[0, 1], [1, 3]]


@torch.no_grad()
def test_the_chosen_tokens_alone_count_more():
    model, batch = causal("Llama"), batches(drawn(3))
    logs = run(model, batch).logits.log_softmax(-1)
    for credit in ("preplan", "anchor", "coupled"):
        objective = PreplanAnchor(2.5, credit, tokens=0.34)
        chosen = objective.chosen(model, batch)
        assert (chosen <= batch.marked("answer") & batch.real).all()
        assert (chosen.sum(1) >= 1).all()
        terms = [
            (2.5 if chosen[b, t] else 1.0) * batch.marked("advantage")[b, t] * logs[b, t - 1, batch.ids[b, t]]
            for b, t in (batch.marked("answer") & batch.targets).nonzero().tolist()
        ]
        torch.testing.assert_close(objective(model, batch, drawn()), -torch.stack(terms).mean())
    plain = policy_gradient(model, batch, torch.ones(batch.ids.shape))
    torch.testing.assert_close(PreplanAnchor(1.0)(model, batch, drawn()), plain)


def test_what_is_no_share_is_refused():
    with pytest.raises(ValueError, match="credit: got 'all'"):
        PreplanAnchor(credit="all")
    with pytest.raises(ValueError, match="tokens: got 0"):
        PreplanAnchor(tokens=0)
