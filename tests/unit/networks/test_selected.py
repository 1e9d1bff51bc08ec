"""Networks that leave patches out: packed tokens, hidden patches, and the losses of parts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.networks.vision.ifam import FaithfulViT
from regard.networks.vision.select_pack import SelectAndPack, SelectPackViT, in_bins, labels_of
from regard.tasks.scenes import Scenes
from regard.train.fit import Recipe, fit

SIZES = {"width": 12, "heads": 2, "inner": 17, "depth": 2, "patch": 4}


@settings(max_examples=6, deadline=None)
@given(y=st.integers(1, 19), x=st.integers(1, 19), share=st.sampled_from([0.3, 1.0, None]))
def test_packed_images_of_any_size_are_those_alone(y, x, share):
    net, images = SelectPackViT(5, share=share, **SIZES).double().eval(), torch.randn(3, 3, y, x, dtype=torch.float64)
    torch.testing.assert_close(net(images)[1:2], net(images[1:2]), atol=1e-9, rtol=0)


def test_what_is_not_kept_stays_and_what_is_sees_the_kept_alone():
    layer, x = SelectAndPack(6, 2, 9, 0.5).double(), torch.randn(2, 8, 6, dtype=torch.float64)
    kept = layer.kept(layer.scores(x))
    assert kept.sum(1).tolist() == [4, 4]
    out = layer(x)
    assert torch.equal(out[~kept], x[~kept])
    one = x[0, kept[0]][None]
    added = layer.block(one) - one
    want = one + torch.sigmoid(layer.scores(x)[0, kept[0]])[None, :, None] * added
    torch.testing.assert_close(out[0, kept[0]][None], want)


def test_no_token_at_all_is_never_kept():
    layer = SelectAndPack(6, 2, 9, None)
    with torch.no_grad():
        layer.gate.bias.fill_(-100.0)
    assert layer.kept(layer.scores(torch.randn(3, 5, 6))).sum(1).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="share"):
        SelectAndPack(6, 2, 9, 0.0)


def faithful():
    return FaithfulViT(5, 3, 12, 2, 17, 2, 4, 3)


def test_hidden_pixels_reach_nothing():
    """Nor does an image whose patches are all hidden break: the class token sees itself."""
    net, images = faithful().eval(), torch.randn(2, 3, 12, 9)
    kept = torch.tensor([[True, False, True, False, False, True, True, True, False], [False] * 9])
    other = images.clone()
    other[0, :, :4, 4:8], other[1] = 7.0, 7.0
    out = net.second(images, kept)
    assert torch.equal(net.second(other, kept), out)
    assert out.isfinite().all()
    assert not torch.equal(net.second(other, torch.ones_like(kept)), net.second(images, torch.ones_like(kept)))


def test_kept_are_the_patches_of_parts():
    net = faithful().eval()
    maps = torch.tensor([[[0.5, 0.1, 0.0, 0.4], [0.3, 0.3, 0.0, 0.4]]])
    assert net.kept(maps).tolist() == [[True, False]]


def test_losses_of_sure_parts_are_small():
    """Maps that are sure and lie where a flip leaves them: no entropy, presence of the part that is there."""
    net = faithful().eval()
    x = torch.randn(2, 3, 12, 12)
    net.maps = lambda tokens: torch.eye(4)[torch.full((tokens.shape[1],), 1)].expand(len(tokens), -1, -1)
    found = net.losses(x)
    assert found["entropy"] == 0
    torch.testing.assert_close(found["presence"], torch.tensor(1 - 1 / 4))
    assert found["background"] > 20
    torch.testing.assert_close(found["equivariance"], torch.tensor(1 - 1 / 3))


@pytest.mark.parametrize("length", [1, 5, 8, 99])
def test_bins_of_one_length_give_what_one_row_gives(length):
    """Images of other counts of kept tokens; the bins are those of a loop that fills the first with room."""
    torch.manual_seed(0)
    row, x = SelectAndPack(6, 2, 9, None).double(), torch.randn(4, 8, 6, dtype=torch.float64)
    bins = SelectAndPack(6, 2, 9, None, length).double()
    bins.load_state_dict(row.state_dict())
    torch.testing.assert_close(bins(x), row(x), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="length"):
        SelectAndPack(6, 2, 9, 0.5, 0)


def test_bins_by_hand():
    """Of 7: 4 and 3 fill the first, 5 and 2 the second, 6 the third; a longer image makes all bins as long."""
    assert in_bins([4, 5, 3, 2, 6], 7) == ([0, 1, 0, 1, 2], [0, 0, 4, 5, 0], 7)
    assert in_bins([4, 9], 7) == ([0, 1], [0, 0], 9)


def test_labels_are_the_cells_that_boxes_touch():
    """Rows of two and columns of three cells of 4 pixels; the second box is none."""
    boxes = torch.tensor([[[3.0, 1, 5, 4], [0, 0, 12, 8]], [[8.5, 3.5, 9, 4.5], [0, 0, 4, 4]]])
    found = labels_of(torch.tensor([[0, -1], [1, 0]]), boxes, (2, 3), 4)
    assert found.tolist() == [[1, 1, 0, 0, 0, 0], [1, 0, 1, 0, 0, 1]]


def test_stages_fall_in_resolution_and_their_gates_learn_from_boxes():
    net = SelectPackViT(3, (6, 12), (1, 2), (7, 9), (1, 1), None, 2, length=9)
    images, kinds, boxes = Scenes(16, 4).many(8, torch.Generator().manual_seed(1))
    assert [tuple(each.shape[1:]) for each in net.features(images)] == [(6, 8, 8), (12, 4, 4)]
    assert [tuple(each.shape) for each in net.selection(images)] == [(8, 64), (8, 16)]
    own = [
        torch.nn.functional.binary_cross_entropy_with_logits(scores, labels_of(kinds, boxes, (side, side), 16 / side))
        for scores, side in zip(net.selection(images), (8, 4), strict=True)
    ]
    assert net.selection_loss(images, kinds, boxes).item() == pytest.approx(sum(own).item() / 2)
    before = net.selection_loss(images, kinds, boxes).item()
    fit(net, lambda model, _: model.selection_loss(images, kinds, boxes), Recipe(20, 1e-2))
    assert net.selection_loss(images, kinds, boxes).item() < 0.9 * before
    with pytest.raises(ValueError, match="width, heads, inner, depth"):
        SelectPackViT(3, (6, 12), 1, (7, 9), (1, 1))
