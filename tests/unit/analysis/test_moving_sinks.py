"""Sinks that move: by hand, planted from step to step, none in noise, and what hiding them does."""

import math

import pytest
import torch
from torch import tensor

from regard.analysis.base import DenseMaps, Prompt
from regard.analysis.moving_sinks import MovingSinks, SinkDrift, SinkMask, sinks
from regard.analysis.planted import planted_model
from regard.claims.denoising import LENGTH, MASK, STEPS, drawn, steps_of
from regard.core.edit import Place
from regard.hosts.attach import attach
from regard.laws import examine, examples_of


def test_the_known_values():
    (sample,) = examples_of(SinkDrift)
    assert examine(sample, "known", kind="analysis").verdict == "holds"


def planted(ids):
    """Head (0, 1) has its sink where the text says, (1, 0) always at slot 2, the others none."""
    n, at = ids.shape[1], int(ids[0, 0])
    maps = torch.rand(2, 1, 3, n, n, generator=torch.Generator().manual_seed(at)).softmax(-1)
    for layer, head, slot in ((0, 1, at), (1, 0, 2)):
        maps[layer, 0, head] *= 0.1
        maps[layer, 0, head, :, slot] += 0.9
    return list(maps)


def test_planted_sinks_are_found_and_their_drift():
    texts = [Prompt(torch.full((7,), at)) for at in (3, 3, 5)]
    found = SinkDrift().run(DenseMaps(planted), texts)
    rows = {(r["step"], r["layer"], r["head"]): r["sinks"] for r in found.table() if r["sinks"]}
    assert rows == {(0, 0, 1): [3], (0, 1, 0): [2], (1, 0, 1): [3], (1, 1, 0): [2], (2, 0, 1): [5], (2, 1, 0): [2]}
    assert found.drift == 0.25  # of two heads in two steps one has moved once
    assert found.share == pytest.approx(1 / 3)
    assert found.ranked() == [2, 5]


def test_steps_merge_in_their_order():
    texts = [Prompt(torch.full((7,), at)) for at in (3, 5, 6)]
    analysis, subject = SinkDrift(), DenseMaps(planted)
    merged = analysis.run(subject, texts[:1]).merge(analysis.run(subject, texts[1:]))
    assert merged.drift == analysis.run(subject, texts).drift
    longer = merged.merge(analysis.run(subject, [Prompt(torch.full((9,), 6))]))
    assert [of.shape[2] for of in longer.steps] == [9] * 4
    assert longer.drift == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="other"):
        merged.merge(analysis.run(DenseMaps(lambda ids: planted(ids)[:1]), texts))


def test_where_there_are_no_sinks_nothing_drifts():
    found = SinkDrift().run(DenseMaps(lambda ids: [torch.full((1, 2, 5, 5), 0.2)]), [Prompt(torch.arange(5))] * 3)
    assert found.share == 0
    assert math.isnan(found.drift)
    assert found.ranked() == []


def test_causal_maps_are_averaged_over_the_rows_that_see_a_key():
    n = 6
    even = torch.ones(n, n).tril() / torch.arange(1, n + 1)[:, None]
    mass = even.sum(0) / torch.arange(n, 0, -1)
    others = (mass.sum() - mass) / (n - 1)
    gap = float((mass - others)[0])
    assert sinks(even, gap - 1e-6).tolist() == [True] + [False] * 5
    assert not sinks(even, gap + 1e-6).any()


def test_a_mask_hides_slots_from_all_but_themselves():
    real = torch.ones(1, 3, dtype=torch.bool)
    found = SinkMask([0, 2]).scores(Place(0, 2, 2, torch.arange(3), 0, real, real))
    assert found is not None
    want = tensor([[0, 0, -math.inf], [-math.inf, 0, -math.inf], [-math.inf, 0, 0]])
    torch.testing.assert_close(found, want)
    model, ids = planted_model(), torch.arange(4)[None]
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        with attach(model, edits=[SinkMask([])]):
            same = model(input_ids=ids).logits
        with attach(model, edits=[SinkMask([1])]):
            other = model(input_ids=ids).logits
    assert torch.equal(whole, same)
    torch.testing.assert_close(other[:, :2], whole[:, :2])
    assert float((other - whole)[:, 2:].abs().amin(2).max()) >= 0
    assert float((other - whole)[:, 2:].abs().max()) > 1e-4


def test_texts_are_denoised_an_eighth_a_step():
    left = [int((one.ids == MASK).sum()) for one in steps_of(None, torch.arange(LENGTH), "denoising")]
    assert left == [LENGTH - LENGTH * step // STEPS for step in range(STEPS)]
    assert bool(drawn(torch.zeros(50, 9), torch.Generator().manual_seed(0)).any(1).all())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SinkDrift(0), "epsilon"),
        (lambda: SinkDrift().run(planted_model(), []), "data"),
    ],
)
def test_what_cannot_be_measured_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_results_are_frozen():
    with pytest.raises(AttributeError):
        MovingSinks(()).steps = ()  # type: ignore[misc]
