"""Detectors in training and use: cells matched by hand, choices by a loop, what is learned from drawn scenes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.networks.events import EventCriterion, Moments, assigned, chosen
from regard.networks.tridet import TriDet
from regard.networks.vision.bgf_yolo import PLAIN, BGFYolo
from regard.networks.vision.box_losses import between_bins, likeness, varifocal
from regard.networks.vision.detection_loss import Teacher
from regard.networks.vision.detector import candidate
from regard.networks.vision.gold_yolo import GoldYoloNetwork
from regard.networks.vision.masked_images import MaskedImages, sparse
from regard.networks.vision.matching import aligned, nearest
from regard.tasks.boxes import suppressed
from regard.tasks.scenes import Scenes
from regard.train.fit import Recipe, fit


def grid(side, step):
    steps = step * (torch.arange(side // step) + 0.5).double()
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack((x.flatten(), y.flatten()), 1)


def test_overlaps_by_hand():
    """Two squares of 2 that share a strip of 1 × 2: I = 2/6, hull 3 × 2, middles 1 apart, alike in shape."""
    one, other = torch.tensor([0.0, 0, 2, 2]).double(), torch.tensor([1.0, 0, 3, 2]).double()
    wanted = {"iou": 1 / 3, "giou": 1 / 3, "diou": 1 / 3 - 1 / 13, "ciou": 1 / 3 - 1 / 13}
    wanted["siou"] = 1 / 3 - (1 - torch.tensor(-2.0).double().mul(1 / 9).exp().item()) / 2
    for kind, value in wanted.items():
        assert likeness(one, other, kind).item() == pytest.approx(value, abs=1e-6), kind
    apart = torch.tensor([5.0, 0, 7, 2]).double()
    assert likeness(one, apart, "giou").item() == pytest.approx(-6 / 14)
    with pytest.raises(ValueError, match="kind"):
        likeness(one, other, "niou")


def test_scores_and_bins_by_hand():
    """Where nothing is, 0.75 p² counts; a distance of 1.25 is three parts bin 1 and one part bin 2."""
    scores = torch.zeros(2).double()
    assert varifocal(scores, torch.tensor([0.0, 0.6]).double()).tolist() == pytest.approx(
        [0.75 * 0.25 * 0.6931471806, 0.6 * 0.6931471806]
    )
    bins = torch.tensor([[[0.0, 1.0, 2.0, 0.0]]]).double()
    told = -torch.log_softmax(bins[0, 0], 0)
    assert between_bins(bins, torch.tensor([[1.25]])).item() == pytest.approx((0.75 * told[1] + 0.25 * told[2]).item())


def test_a_box_takes_the_cells_inside_that_fit_best():
    """Of 16 cells four lie in the box; the two that find it best are taken, and say their share of the best."""
    places, boxes = grid(32, 8), torch.tensor([[[0.0, 0, 17, 17], [0, 0, 9, 9]]]).double()
    found = torch.cat((places - 4, places + 4), 1)[None].double()
    found[0, 5] = torch.tensor([0.0, 0, 17, 16])
    found[0, 1] = torch.tensor([0.0, 0, 16, 17 / 2])
    scores = torch.full((1, 16, 3), 0.5).double()
    match = aligned(scores, found, places, torch.tensor([[2, -1]]), boxes, count=2)
    assert match.there.nonzero()[:, 1].tolist() == [1, 5]
    best, second = 16 / 17, 8 / 17
    best, second = 17 * 16 / 17**2, 16 * 8.5 / 17**2
    assert match.scores[0, 5].tolist() == pytest.approx([0, 0, best])
    assert match.scores[0, 1].tolist() == pytest.approx([0, 0, best * (second / best) ** 6])
    assert match.boxes[0, 5].tolist() == [0, 0, 17, 17]


def test_no_box_and_padded_boxes_match_nothing():
    places, found = grid(32, 8), torch.zeros(1, 16, 4).double()
    steps, kinds = torch.full((16,), 8.0).double(), torch.full((1, 2), -1)
    boxes = torch.tensor([[[0.0, 0, 32, 32]] * 2]).double()
    for count in (0, 2):
        given = (places, kinds[:, :count], boxes[:, :count])
        for match in (
            aligned(torch.rand(1, 16, 3).double(), found, *given),
            nearest(found, places, steps, (16,), *given[1:], 3),
        ):
            assert not match.there.any()
            assert not match.scores.any()


@settings(max_examples=8, deadline=None)
@given(cells=st.integers(0, 23), classes=st.integers(1, 3), several=st.booleans(), seed=st.integers(0, 99))
def test_the_choice_among_boxes_is_that_of_a_loop(cells, classes, several, seed):
    generator = torch.Generator().manual_seed(seed)
    low = 20 * torch.rand(cells, 2, generator=generator).double()
    boxes = torch.cat((low, low + 1 + 15 * torch.rand(cells, 2, generator=generator)), 1)
    scores = torch.rand(cells, classes, generator=generator).double()
    got = suppressed(candidate(boxes, scores, 0.3, several, 1000), 0.4)
    rows = [
        (scores[i, c].item(), c, boxes[i])
        for i in range(cells)
        for c in range(classes)
        if scores[i, c] > 0.3 and (several or c == scores[i].argmax())
    ]
    kept = []
    for row in sorted(rows, key=lambda row: -row[0]):
        if all(row[1] != one[1] or likeness(row[2], one[2]) <= 0.4 for one in kept):
            kept.append(row)
    assert got[1].tolist() == [row[0] for row in kept]
    assert got[2].tolist() == [row[1] for row in kept]
    assert got[0].tolist() == [row[2].tolist() for row in kept]


def test_plain_networks_have_the_printed_sizes():
    for size, count in PLAIN.items():
        with torch.device("meta"):
            net = BGFYolo(size, 80, routed=False, generalized=False, fourth=False)
        assert net.parameter_count == count


def known(net, images, kinds, boxes):
    """The best overlap of a cell's box with those that are there, and the best scores of classes that an image shows
    and of those that it does not show."""
    with torch.no_grad():
        read = net.train().read(images)
    near = likeness(boxes[:, :, None], read.boxes[:, None]).amax(2)[kinds >= 0].mean().item()
    sure = torch.sigmoid(read.scores).amax(1)
    shown = (torch.nn.functional.one_hot(kinds + 1, 6).amax(1) > 0)[:, 1:]
    return near, sure[shown].mean().item(), sure[~shown].mean().item()


@pytest.mark.parametrize("name", ["gold", "bgf"])
def test_detectors_learn_drawn_scenes(name):
    scenes = Scenes(32, 8).many(8, torch.Generator().manual_seed(1))
    net = BGFYolo("n", 5, width=1 / 32) if name == "bgf" else GoldYoloNetwork("N", 5, width=0.05)
    before = known(net, *scenes)[0]
    steps = Recipe(60, 1e-2, warm_up=0.1)  # after 40 rounding alone moves the shares from 2.4 to 4.9 times the others
    fit(net, lambda model, _: model.loss(*scenes).total / 8, steps)
    after, shown, other = known(net, *scenes)
    assert after > before + 0.2
    assert shown > 2 * other
    found = net.eval().found(scenes[0], least=0.0, most=7)
    assert all(len(own[0]) <= 7 and (own[1].diff() <= 0).all() for own in found)
    with pytest.raises(ValueError, match="least, overlap"):
        net.found(scenes[0], overlap=2.0)
    with pytest.raises(ValueError, match="kinds, boxes"):
        net.loss(*scenes[:2], scenes[2][:, :3])


def test_a_pupil_nears_its_teacher():
    images, kinds, boxes = Scenes(32, 8).many(4, torch.Generator().manual_seed(1))
    one, other = (GoldYoloNetwork("N", 5, seed, 0.05, bins=17, direct=bool(seed)) for seed in (0, 1))
    with torch.no_grad():
        teacher = Teacher(one.train().read(images), 0.0, maps=10.0)
    values = []

    def loss(model, _):
        found = model.loss(images, kinds, boxes, teacher=teacher)
        values.append(found.maps.item())
        return found.maps

    fit(other, loss, Recipe(10, 1e-2, warm_up=0.1))
    assert values[-1] < 0.5 * values[0]
    assert not other.loss(images, kinds, boxes).maps


def test_a_teacher_of_another_kind_is_named():
    images, kinds, boxes = Scenes(32, 8).many(2, torch.Generator().manual_seed(1))
    net = GoldYoloNetwork("N", 5, width=0.05)
    with pytest.raises(ValueError, match="teacher"):
        net.loss(images, kinds, boxes, teacher=Teacher(net.read(images), 0.5))
    with pytest.raises(ValueError, match="over, temperature"):
        Teacher(net.read(images), 1.5)


def test_hidden_patches_are_never_read_and_the_backbone_is_left_as_it_was():
    torch.manual_seed(0)
    net = GoldYoloNetwork("N", 5, width=0.05).double().eval()
    pretrained = MaskedImages(
        net, [each.shape[1] for each in net.features(torch.zeros(1, 3, 64, 64).double())], width=32
    )
    pretrained = pretrained.double()
    images, before = torch.rand(2, 3, 64, 96).double(), net.features(torch.ones(1, 3, 64, 64).double())
    kept = pretrained.seen(images, torch.Generator().manual_seed(0))
    assert kept.flatten(1).sum(1).tolist() == [2, 2]
    other = torch.where(kept.repeat_interleave(32, 2).repeat_interleave(32, 3), images, torch.rand_like(images))
    torch.testing.assert_close(pretrained.eval()(images, kept), pretrained(other, kept), rtol=0, atol=1e-12)
    with sparse(net, kept):
        maps = net.features(images)
    assert all(
        not (each * ~kept.repeat_interleave(n, 2).repeat_interleave(n, 3)).any()
        for each, n in zip(maps, (8, 4, 2, 1), strict=True)
    )
    again = net.features(torch.ones(1, 3, 64, 64).double())
    assert all(torch.equal(one, two) for one, two in zip(before, again, strict=True))
    with pytest.raises(ValueError, match="images"):
        pretrained(images[..., 1:], kept)


def test_masked_images_are_learned():
    images, _, _ = Scenes(64, 8).many(8, torch.Generator().manual_seed(1))
    net = GoldYoloNetwork("N", 5, width=0.05)
    widths = [each.shape[1] for each in net.features(images)]
    pretrained, values = MaskedImages(net, widths, width=64), []
    fit(
        pretrained,
        lambda model, generator: model.loss(images, generator),
        Recipe(15, 5e-3),
        report=lambda step, value: values.append(value),
    )
    assert sum(values[-3:]) < 0.95 * sum(values[:3])


@settings(max_examples=6, deadline=None)
@given(
    count=st.integers(0, 17),
    classes=st.integers(1, 3),
    apart=st.booleans(),
    soft=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_choice_among_events_is_that_of_a_loop(count, classes, apart, soft, seed):
    """Two levels, one event of each moment and class; events are chosen one by one, the others sink."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(1, count, classes, generator=generator).double()
    away = 4 * torch.rand(1, count, classes, 2, generator=generator).double()
    times, steps = torch.arange(count).double(), torch.ones(count).double()
    kept = torch.rand(1, count, generator=generator) > 0.2
    read, last = Moments(scores, away, times, steps, kept, (count // 2, count - count // 2)), 0.01 if soft else 0.35
    options = {
        "least": 0.3,
        "candidates": 5,
        "shortest": 1.0,
        "overlap": 0.4,
        "last": last,
        "apart": apart,
        "votes": 0.6,
    }
    boxes, likely, kinds = chosen(read, soft=0.5 if soft else None, most=7, **options)[0]
    rows = []
    for part in (range(count // 2), range(count // 2, count)):
        own = [
            [torch.sigmoid(scores[0, t, c]).item(), c, t - away[0, t, c, 0].item(), t + away[0, t, c, 1].item()]
            for t in part
            for c in range(classes)
            if kept[0, t] and torch.sigmoid(scores[0, t, c]) > 0.3
        ]
        rows += [row for row in sorted(own, key=lambda row: -row[0])[:5] if row[3] - row[2] > 1.0]

    def shared(one, other):
        both = max(0.0, min(one[3], other[3]) - max(one[2], other[2]))
        return both / (one[3] - one[2] + other[3] - other[2] - both)

    left, wanted = [list(row) for row in rows if soft or row[0] > last], []
    while left:
        best = max(left, key=lambda row: row[0])
        wanted.append(best)
        left.remove(best)
        for row in left:
            if row[1] == best[1] or not apart:
                row[0] *= math.exp(-(shared(row, best) ** 2) / 0.5) if soft else float(shared(row, best) < 0.4)
        left = [row for row in left if row[0] > 0 and (not soft or row[0] >= last or (apart and row[1] != best[1]))]
    wanted = sorted(wanted, key=lambda row: -row[0])[:7]
    assert likely.tolist() == pytest.approx([row[0] for row in wanted])
    assert kinds.tolist() == [row[1] for row in wanted]
    for box, row in zip(boxes.tolist(), wanted, strict=True):
        near = [other for other in rows if shared(row, other) >= 0.6]
        weight = sum(other[0] for other in near)
        ends = [sum(other[0] * other[n] for other in near) / weight for n in (2, 3)]
        assert [box[0], box[2]] == pytest.approx(row[2:] if apart else ends)


def test_moments_stand_for_events_by_hand():
    """Eight moments and four of every second one: events of up to 2 and of more; the middle's neighbours stand."""
    times = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 0, 2, 4, 6]).double()
    steps = torch.tensor([1.0] * 8 + [2.0] * 4).double()
    scores = torch.zeros(1, 12, 3).double()
    read = Moments(scores, torch.ones(1, 12, 3, 2).double(), times, steps, torch.ones(1, 12).bool(), (8, 4))
    kinds, spans = torch.tensor([[0, 2, 1, -1]]), torch.tensor([[[1.5, 4.5], [0, 7], [1.5, 4.5], [5, 7]]]).double()
    wanted, away = assigned(read, kinds, spans, ((0, 2.5), (2.6, 99)), 1.5)
    assert wanted.nonzero().tolist() == [
        [0, t, c] for t, c in ((2, 0), (2, 1), (3, 0), (3, 1), (4, 0), (4, 1), (9, 2), (10, 2), (11, 2))
    ]
    assert away[0, 2].tolist() == [0.5, 2.5]
    assert away[0, 9].tolist() == [1.0, 2.5]
    empty, _ = assigned(read, kinds[:, :0], spans[:, :0], ((0, 2.5), (2.6, 99)), 1.5)
    assert not empty.any()
    with pytest.raises(ValueError, match="ranges"):
        EventCriterion(((0, 4),))(read, kinds, spans)
    with pytest.raises(ValueError, match="kinds, spans"):
        EventCriterion(((0, 4), (4, 8)))(read, kinds, spans[:, :2])


@pytest.mark.parametrize("bins", [0, 5])
def test_padding_and_events_that_are_not_there_train_nothing(bins):
    """What stands behind a sequence, or in rows of no kind, changes neither loss."""
    net, generator = TriDet(5, 3, 16, 7, 2, bins, 3, 1.5), torch.Generator().manual_seed(0)
    x, lengths = torch.randn(2, 5, 24, generator=generator), torch.tensor([24, 13])
    kinds, spans = torch.tensor([[0, -1], [2, 1]]), torch.tensor([[[1.0, 6.5], [9, 12]], [[2, 4], [5, 12.5]]])
    one = TriDet(5, 3, 16, 7, 2, bins, 3, 1.5).eval().loss(x, kinds, spans, lengths)
    x[1, :, 13:], spans[0, 1] = 7.0, torch.tensor([3.0, 4.0])
    other = net.eval().loss(x, kinds, spans, lengths)
    torch.testing.assert_close(torch.stack(one), torch.stack(other))
    assert net.criterion.norm < 100
    found = net.found(x, lengths, candidates=9)
    assert all(len(each) == 3 for each in found)
