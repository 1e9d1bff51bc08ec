"""Boundary matching: which spans are which, what is learned of drawn events, and what a gate of semantics does."""

import pytest
import torch

import regard
from regard.claims.events import streams
from regard.networks.proposals import (
    BoundaryMatching,
    Proposals,
    balanced,
    matched,
    peaks,
    proposal_loss,
    proposed,
    sampling,
)
from regard.tasks.boxes import overlaps
from regard.train.fit import Recipe, fit


def test_samples_of_a_span_by_hand():
    """Of a span from 2 to 6: five places from 1 to 7 of a ramp; nothing of one that ends too late."""
    places = sampling(9, 6, 5).unflatten(1, (5, 6, 9))
    read = torch.einsum("t,tndb->ndb", torch.arange(9.0), places)
    assert read[:, 4, 2].tolist() == [1, 2.5, 4, 5.5, 7]
    assert read[:, 0, 3].tolist() == [3] * 5
    assert not places[:, :, 4, 5:].any()
    assert places[:, 0, 4, 0].sum() == 0


def test_what_spans_are_by_hand():
    """An event from 2 to 5: a start within 1.5 of 2; moments 2 to 4 are it, 2 to 5 share three quarters."""
    starts, ends, overlap = matched(torch.tensor([[0, -1]]), torch.tensor([[[2.0, 5.0], [6, 7]]]), 8, 4)
    assert starts[0].tolist() == [0.5, 1, 1, 0.5, 0, 0, 0, 0]
    assert ends[0].tolist() == [0, 0, 0, 0.5, 1, 1, 0.5, 0]
    assert overlap[0, 2, 2] == 1
    assert overlap[0, 3, 2].item() == pytest.approx(3 / 4)
    assert not matched(torch.zeros(1, 0), torch.zeros(1, 0, 2), 8, 4)[2].any()


def test_answers_count_alike_by_hand():
    """One of four is wanted: half of the loss is its own, half that of the other three."""
    said, there = torch.tensor([[0.8, 0.3, 0.3, 0.3, 0.9]]), torch.tensor([[True] * 4 + [False]])
    found = balanced(said, torch.tensor([[1.0, 0, 0, 0.4, 1]]), there)
    log = [torch.tensor(n).log().item() for n in (0.8 + 1e-5, 0.7 + 1e-5)]
    assert found.item() == pytest.approx(-(2 * log[0] + 2 / 3 * 3 * log[1]) / 4)


def test_proposals_begin_and_end_at_peaks():
    starts, ends = torch.tensor([[0.1, 0.9, 0.1, 0.3, 0.2, 0.1]]), torch.tensor([[0.1, 0.1, 0.2, 0.1, 0.8, 0.1]])
    assert peaks(starts[0]).nonzero()[:, 0].tolist() == [1, 3]
    sure = torch.full((1, 6, 6), 0.5)
    boxes, scores, kinds = proposed(Proposals(starts, ends, sure, sure))[0]
    assert boxes[:, 0].tolist() == [1, 3, 1]
    assert boxes[:, 2].tolist() == [5, 5, 3]
    assert scores[0].item() == pytest.approx(0.9 * 0.8 / 4)
    assert (scores.diff() <= 0).all()
    assert not kinds.any()


@pytest.mark.parametrize("gate", ["csa", "none"])
def test_events_are_proposed_after_a_few_steps(gate):
    """The best proposals overlap events of streams more than before, with a gate that semantics feed and without."""
    made = regard.gate("csa(classes=3)") if gate == "csa" else None
    net = BoundaryMatching(12, 64, made, 3 if made else 0, 8, 16, 16, 6)
    x, kinds, spans = streams(4, torch.Generator().manual_seed(0))
    semantics = x.unflatten(1, (3, 4)).mean(2) if made else None

    def best():
        with torch.no_grad():
            found = proposed(net(x, semantics))
        told = []
        for (boxes, *_), own, there in zip(found, spans, kinds, strict=True):
            own = own[there >= 0]
            true = torch.stack((own[:, 0], 0 * own[:, 0], own[:, 1], 0 * own[:, 0] + 1), 1)
            told.append(overlaps(true[:, None], boxes[None, :8]).amax(1))
        return torch.cat(told).mean().item()

    before = best()
    fit(net, lambda model, g: proposal_loss(model(x, semantics), kinds, spans, g), Recipe(40, 1e-2))
    assert best() > before + 0.15
    with pytest.raises(ValueError, match="x, semantics"):
        net(x[:, :, 1:], semantics)
    with pytest.raises(ValueError, match="samples"):
        BoundaryMatching(12, 64, samples=0)
