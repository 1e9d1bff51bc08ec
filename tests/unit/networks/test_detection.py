"""Training and choice of detectors: what their authors' code gives, by tests/reference/detection.py, and by hand."""

import json
from pathlib import Path

import pytest
import torch

from reference.detection import (
    BINS,
    BOXES,
    CLASSES,
    EVENTS,
    KINDS,
    MOMENTS,
    SAMPLES,
    TIMES,
    Backbone,
    kept,
    moments,
    said,
    tokens,
)
from reference.waves import wave, waved_in_use
from regard.networks.events import EventCriterion, Moments
from regard.networks.proposals import BoundaryMatching
from regard.networks.tridet import TriDet
from regard.networks.vision.bgf_yolo import BGFYolo
from regard.networks.vision.cells import Read, expected, middles
from regard.networks.vision.detection_loss import Criterion, Teacher
from regard.networks.vision.masked_images import MaskedImages

VALUES = json.loads((Path(__file__).parents[2] / "reference" / "detection.json").read_text())
THERE = (torch.tensor(KINDS), torch.tensor(BOXES, dtype=torch.float64))
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


def read(steps, bins, phase=0.0, direct=False):
    """The waves of the reference as what a detector says."""
    scores, told, sides, maps = said(steps, bins, phase)
    places = torch.cat([step * middles(each) for step, each in zip(steps, maps, strict=True)])
    counts = tuple(each.shape[2] * each.shape[3] for each in maps)
    wide = torch.cat([torch.full((count,), float(step)) for step, count in zip(steps, counts, strict=True)]).double()
    if told is not None and not direct:
        sides = expected(told.permute(0, 2, 3, 1)).mT
    return Read(scores, sides, told, direct, places, wide, counts, maps)


def check(name, losses, extra=()):
    found = torch.stack([losses.boxes, losses.bins, losses.scores, *extra])
    torch.testing.assert_close(found, torch.tensor(VALUES[name], dtype=torch.float64), **CLOSE)


@pytest.mark.parametrize("kind", ["giou", "siou", "ciou", "diou"])
def test_losses_of_boxes_are_those_of_the_authors(kind):
    check(f"gold_{kind}", Criterion(kind=kind)(read((8, 16, 32), 17), *THERE))


def test_losses_without_bins_and_of_the_first_epochs_are_those_of_the_authors():
    check("gold_sides", Criterion(kind="siou")(read((8, 16, 32), 1), *THERE))
    check("gold_first", Criterion()(read((8, 16, 32), 17), *THERE, first=True))


@pytest.mark.parametrize(("name", "direct"), [("loss_distill", False), ("loss_distill_ns", True)])
def test_losses_with_a_teacher_are_those_of_the_authors(name, direct):
    teacher = Teacher(read((8, 16, 32), 17, 0.4), 0.3, scores=0.8, bins=1.3, maps=10.0)
    found = Criterion()(read((8, 16, 32), 17, direct=direct), *THERE, teacher=teacher)
    check(f"gold_{name}", found, [found.maps])


def test_losses_of_four_levels_are_those_of_the_authors():
    found = BGFYolo("n", CLASSES, width=1 / 16).criterion(read((4, 8, 16, 32), 16), *THERE)
    wanted = torch.tensor(VALUES["bgf"], dtype=torch.float64)
    own = torch.stack([found.boxes / 2, found.scores / 2, found.bins / 2, found.total])
    torch.testing.assert_close(own, wanted, **CLOSE)


def test_the_loss_of_masked_images_is_that_of_the_authors():
    net, images = MaskedImages(Backbone(), Backbone.WIDTHS, 32, 32), wave((2, 3, 96, 96))
    del net.tokens
    net.tokens = tokens()
    net = waved_in_use(net, images, kept())
    with torch.no_grad():
        assert net.loss(images, kept=kept()).item() == pytest.approx(VALUES["masked"], rel=1e-6)


@pytest.mark.parametrize("bins", [BINS, 0])
def test_losses_of_events_are_those_of_the_authors(bins):
    told, lengths = moments()
    net, away, kept = TriDet(5, CLASSES, 16, 7, 2, BINS), [], []
    for level, (_, starts, ends, own) in enumerate(told):
        left, right = net.by_bins(starts, ends, own.mT)
        steps = torch.arange(BINS + 1).double()
        away.append(torch.stack(((left @ steps).mT, (right @ steps).mT), -1) if bins else own[:, :, None, :2])
        kept.append(torch.stack([torch.arange(TIMES[level]) < -(-length // 2**level) for length in lengths]))
    steps = torch.cat([torch.full((count,), 2.0**level) for level, count in enumerate(TIMES)]).double()
    times = steps * torch.cat([torch.arange(count) for count in TIMES])
    scores = torch.cat([each[0] for each in told], 1)
    read = Moments(scores, torch.cat(away, 1), times, steps, torch.cat(kept, 1), TIMES)
    criterion = EventCriterion(((0, 4), (4, 8), (8, 10000)))
    kinds = torch.tensor([[each[0] for each in events] for events in EVENTS])
    spans = torch.tensor([[each[1:] for each in events] for events in EVENTS]).double()
    found = [*(each.item() for each in criterion(read, kinds, spans)), criterion.norm]
    assert found == pytest.approx(VALUES[f"events_{bins}"], rel=1e-5)


def test_moments_behind_a_videos_end_are_none_of_its():
    """23 moments and 9 of them, on the three levels of 23, 12 and 6."""
    read = TriDet(5, CLASSES, 16, 7, 2, BINS).read(wave((2, 5, 23)).float(), torch.tensor([23, 9]))
    assert read.levels == (23, 12, 6)
    for level, real in zip(read.kept.split(read.levels, 1), (9, 5, 3), strict=True):
        assert level[0].all()
        assert level[1].tolist() == [moment < real for moment in range(level.shape[1])]


def test_proposals_are_those_of_published_code():
    x = wave((2, 5, MOMENTS))
    net = waved_in_use(BoundaryMatching(5, MOMENTS, width=6, inner=7, samples=SAMPLES), x)
    with torch.no_grad():
        found = net(x)
    ends, spans = torch.stack((found.starts, found.ends), 1), torch.stack((found.sure, found.near), 1)
    got = torch.cat((ends.flatten(), spans.flatten()))[::7]
    torch.testing.assert_close(got, torch.tensor(VALUES["proposals"], dtype=torch.float64), rtol=0, atol=1e-6)
