"""Prototypes of classes and of the background: by loops and by hand, and a detector that is refined by them."""

import pytest
import torch

from regard.networks.vision.bgf_yolo import BGFYolo
from regard.networks.vision.periphery import CenterPeriphery, owners, refine, settled_means
from regard.tasks.scenes import Scenes
from regard.train.fit import Recipe, fit


def supports():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 4, 6, generator=generator).double()
    kinds = torch.tensor([[0, 2, -1], [1, 0, 1]])
    boxes = torch.tensor(
        [[[0.0, 0, 20, 20], [8, 8, 16, 16], [0, 0, 48, 32]], [[32, 0, 48, 16], [0, 16, 8, 32], [9, 9, 9, 9]]]
    )
    return x, kinds, boxes.double()


def test_cells_belong_to_the_smallest_box_about_them():
    """Middles at 4, 12, 20, …: of the first image 0 to 1 in both ways but for the small box's own cell; a box without a
    cell has the one that its middle is in."""
    x, kinds, boxes = supports()
    place = owners(x, kinds, boxes, 8.0).unflatten(1, (4, 6))
    assert place[0].tolist() == [[0, 0, -1, -1, -1, -1], [0, 2, -1, -1, -1, -1], [-1] * 6, [-1] * 6]
    assert place[1].tolist() == [[-1] * 4 + [1, 1], [-1, 1, -1, -1, 1, 1], [0] + [-1] * 5, [0] + [-1] * 5]
    assert (owners(x, kinds[:, :0], boxes[:, :0], 8.0) == -1).all()


def test_prototypes_are_means_and_cells_move_by_them():
    x, kinds, boxes = supports()
    layer = CenterPeriphery(5, 3, 2, 7).double()
    layer.learn(x, kinds, boxes, 8.0)
    one = torch.stack([x[0, :, 0, 0], x[0, :, 0, 1], x[0, :, 1, 0], x[1, :, 2, 0], x[1, :, 3, 0]]).mean(0)
    torch.testing.assert_close(layer.prototypes[0], one)
    torch.testing.assert_close(layer.prototypes[2], x[0, :, 1, 1])
    assert torch.equal(layer(x), x)
    with torch.no_grad():
        layer.center.fill_(0.7)
        layer.periphery.fill_(0.2)
    cell = x[1, :, 2, 3]
    scores = torch.stack([torch.cosine_similarity(cell, each, 0) / 0.1 for each in layer.prototypes]).softmax(0)
    want = cell + sum((0.7 if n < 3 else -0.2) * scores[n] * layer.prototypes[n] for n in range(5))
    torch.testing.assert_close(layer(x)[1, :, 2, 3], want)
    with pytest.raises(ValueError, match="boxes"):
        layer.learn(x, kinds * 0, boxes, 8.0)
    with pytest.raises(ValueError, match="temperature"):
        CenterPeriphery(5, 3, temperature=0)


def test_means_settle_in_clusters():
    centers = torch.tensor([[0.0, 0], [10, 0], [0, 10]])
    cells = (centers[:, None] + 0.1 * torch.randn(3, 20, 2, generator=torch.Generator().manual_seed(0))).flatten(0, 1)
    found = settled_means(cells, 3)
    assert torch.cdist(centers, found).amin(1).max() < 0.2


def test_texts_part_center_and_periphery():
    """Before training the loss is that of a choice among all; it falls as texts near their classes' cells."""
    x, kinds, boxes = supports()
    layer, texts = CenterPeriphery(5, 3, 2, 7).double(), torch.eye(3, 7).double()
    layer.learn(x, kinds, boxes, 8.0)
    x = layer.prototypes[owners(x, kinds, boxes, 8.0)].mT.unflatten(2, (4, 6))  # every cell its class's prototype
    before = layer.contrast(x, kinds, boxes, 8.0, texts).item()
    fit(layer, lambda model, _: model.contrast(x, kinds, boxes, 8.0, texts), Recipe(100, 3e-2, decay=0.0))
    assert layer.contrast(x, kinds, boxes, 8.0, texts).item() < 0.5 * before


def test_a_refined_detector_begins_as_it_was_and_learns_its_shares():
    images, kinds, boxes = Scenes(64, 12).many(12, torch.Generator().manual_seed(3), share=0.9)
    net = BGFYolo("n", 5, width=1 / 32, fourth=False, routed=False).eval()
    before = net(images)
    refined = refine(net, images, kinds, boxes, 5)
    assert torch.equal(net(images), before)
    net.loss(images, kinds, boxes).total.backward()
    for level in refined.levels:
        assert level.center.grad.abs() > 0
        assert level.periphery.grad.abs() > 0
