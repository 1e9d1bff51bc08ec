"""The rhythm is that of loops over the maps, and its tokens alone count more."""

from __future__ import annotations

import pytest
import torch

import regard
from regard.laws.objective import batches, drawn
from regard.probes.rhythm import Beat, Rhythm
from regard.train.fit import Recipe, fit
from regard.train.objective import Batch, run
from regard.train.objectives import PreplanAnchor
from regard.train.objectives.preplan_anchor import (
    largest,
    log_probabilities,
    policy_gradient,
    preplans,
    remembered,
    rhythm,
)
from regard.train.reused import Reused
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


def marked(**marks):
    """Two texts of three answered tokens, with numbers for them."""
    answer = torch.tensor([[False, False, True, True, True]] * 2)
    return Batch(torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]]), answer, None, {"answer": answer, **marks})


def test_ratios_are_clipped_by_hand():
    """A ratio counts up to 1 + ε with a positive credit, from 1 − ε on with a negative one; beyond nothing changes."""
    model, ratios = causal("Llama"), torch.tensor([1.0, 1.5, 0.7, 1.5, 0.7, 1.1])
    advantage = torch.zeros(2, 5)
    advantage[:, 2:] = torch.tensor([[2.0, 2.0, 2.0], [-3.0, -3.0, -3.0]])
    plain = remembered(model, marked(advantage=advantage))
    old = plain.marked("old").clone()
    old[:, 2:] -= ratios.view(2, 3).log()
    batch = marked(advantage=advantage, old=old)
    factors = torch.ones(2, 5)
    factors[0, 2] = 1.5
    got = policy_gradient(model, batch, factors, 0.2)
    terms = [1.0 * 3, 1.2 * 2, 0.7 * 2, 1.5 * -3, 0.8 * -3, 1.1 * -3]
    assert got.item() == pytest.approx(-sum(terms) / 6, abs=1e-4)
    counted, seen = torch.tensor([True, False, True, True, False, True]), {}
    for name, pieces in (("all", [0, 1, 2, 3, 4, 5]), ("counted", counted.nonzero()[:, 0].tolist())):
        logs = log_probabilities(model, batch)[:, 1:].flatten()
        credit = (factors * advantage)[:, 2:].flatten()
        loss = -sum(credit[at] * ratios[at] * logs[at] for at in pieces) / 6  # the gradient of r is r times log p's
        seen[name] = torch.autograd.grad(loss, model.lm_head.weight)[0]
    found = torch.autograd.grad(policy_gradient(model, batch, factors, 0.2), model.lm_head.weight)[0]
    torch.testing.assert_close(found, seen["counted"], atol=1e-5, rtol=1e-3)
    assert (found - seen["all"]).abs().max() > 1e-3


def test_the_policy_that_drew_the_samples_has_the_plain_gradient():
    model, advantage = causal("Llama"), torch.tensor([[1.0], [-2.0]]).expand(2, 5)
    batch, factors = marked(advantage=advantage), torch.full((2, 5), 1.5)
    grads = [
        torch.autograd.grad(policy_gradient(model, one, factors), model.lm_head.weight)[0]
        for one in (batch, remembered(model, batch))
    ]
    torch.testing.assert_close(*grads)


def test_a_batch_serves_several_steps_and_a_stopped_run_goes_on_within_it(tmp_path):
    """Samples are drawn by the model as it is then; the run that was stopped ends with the same weights."""

    class StoppedError(Exception):
        pass

    def trained(folder, stop=99):
        model, seen = causal("Llama"), []

        def draw(generator):
            ids = torch.randint(3, 29, (2, 5), generator=generator)
            with torch.no_grad():
                ids[:, 4] = model(input_ids=ids[:, :4]).logits[:, -1].argmax(-1)
            advantage = torch.randn(2, 1, generator=generator).expand(2, 5)
            answer = torch.arange(5).expand(2, 5) >= 2
            return remembered(model, Batch(ids, answer, None, {"answer": answer, "advantage": advantage}))

        reused = Reused(draw, 3, folder)

        def batches(generator):
            seen.append(reused(generator))
            if len(seen) > stop:
                raise StoppedError
            return seen[-1]

        def loss(ready, generator):
            return PreplanAnchor(2.0, tokens=0.4)(ready, batches(generator), generator)

        fit(model, loss, Recipe(8, 1e-2, seed=4), folder, every=0.0)
        return model, seen

    model, seen = trained(tmp_path / "whole")
    assert [one is seen[0] for one in seen] == [True] * 3 + [False] * 5
    assert len({id(one) for one in seen}) == 3
    with pytest.raises(StoppedError):
        trained(tmp_path / "cut", 4)
    again, rest = trained(tmp_path / "cut")
    assert len(rest) == 4
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with pytest.raises(RuntimeError, match="folder: got a step in the middle of batch 1"):
        Reused(lambda _: marked(), 3)(Recipe(9).generator(4))
    with pytest.raises(ValueError, match="times: got 0"):
        Reused(lambda _: marked(), 0)


def test_what_is_no_share_is_refused():
    with pytest.raises(ValueError, match=r"clip: got 1\.0"):
        PreplanAnchor(clip=1.0)
    with pytest.raises(ValueError, match="credit: got 'all'"):
        PreplanAnchor(credit="all")
    with pytest.raises(ValueError, match="tokens: got 0"):
        PreplanAnchor(tokens=0)
