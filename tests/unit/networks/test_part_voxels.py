"""Voxels of parts: where they fall in images and what their parts are told, by hand."""

import pytest
import torch

from regard.claims.part_voxels import masked
from regard.networks.part_voxels import CoarseLayout, PartVoxels, projected, told_by_parts


def test_where_voxels_fall_by_hand():
    """Two cameras that look along z and along x at 2 × 3 tokens of side 1, twice as far away at depth 2.

    (1.5, 0.5, 1) is row 0, column 1; (4, 3, 2) is (2, 1.5), row 1, column 2. Along x the first is at (1, 0.5) / 1.5
    and the last, x = −1, is behind.
    """
    along_z = [[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    along_x = [[0.0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]]
    voxels = torch.tensor([[[1.5, 0.5, 1], [4, 3, 2], [3, 0, 1], [0, 2, 1], [-1, 0.5, 1]]])
    found = projected(voxels, torch.tensor([[along_z, along_x]]), (2, 3))
    assert found.tolist() == [[[1, 6], [5, 6], [-1, 6], [-1, -1], [-1, -1]]]


def test_a_part_is_told_what_any_of_its_voxels_falls_on():
    parts, tokens = torch.tensor([[7, 2, 7, 5]]), torch.tensor([[[0, -1], [1, 3], [2, 0], [-1, -1]]])
    want = [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert told_by_parts(parts, tokens, 4)[0].int().tolist() == want


def test_blocks_are_those_under_masks_of_pairs():
    assert masked.measure()["apart"] < 1e-12


def test_one_voxel_of_a_part_and_one_token_by_hand():
    """It reads itself alone and that token alone: values, without weights."""
    torch.manual_seed(0)
    net = PartVoxels(4, 1, 1, 0).double()
    x, images = torch.randn(1, 2, 4, dtype=torch.float64), torch.randn(1, 3, 4, dtype=torch.float64)
    out = net(x, torch.tensor([[1, 0]]), images, torch.tensor([[[2], [-1]]]))
    (block,) = net.blocks
    own = block.attention.projection
    want = x + own.out(own.v(block.norms[0](x)))
    torch.testing.assert_close(out[:, 1], want[:, 1])  # whose part falls on no token
    cross = block.cross.projection
    torch.testing.assert_close(out[:, 0], want[:, 0] + cross.out(cross.v(images[:, 2])))


def test_order_of_voxels_is_no_matter():
    net = PartVoxels(8, 2, 2, 12).double()
    x, parts, images, tokens = (
        t.double() if t.is_floating_point() else t for t in PartVoxels.examples()[0].given["inputs"](2, 0)
    )
    order = torch.randperm(13, generator=torch.Generator().manual_seed(0))
    mixed = net(x[:, order], parts[:, order], images, tokens[:, order])
    torch.testing.assert_close(mixed, net(x, parts, images, tokens)[:, order])


def test_cells_are_read_by_their_middles():
    """Cells in the order x, y, z of a grid of side 2; those above 0 are given by their middles."""
    net = CoarseLayout(2, 8, 2, 1, 12, 2)
    assert net.middles[1].tolist() == [-0.5, -0.5, 0.5]
    assert net.middles[4].tolist() == [0.5, -0.5, -0.5]
    torch.testing.assert_close(net.waves[4, 3:9], torch.tensor([1.0, 0, -1, 0, -1, 0]), atol=1e-6, rtol=0)
    z = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))
    for logits, found in zip(net(z), net.voxels(z), strict=True):
        assert found.tolist() == [net.middles[cell].tolist() for cell in range(8) if logits[cell] > 0]


def test_what_is_refused():
    for make, name in (
        (lambda: PartVoxels(8, 3), "heads"),
        (lambda: CoarseLayout(2, 8, 3), "heads"),
        (lambda: CoarseLayout(0, 8, 2), "side"),
    ):
        with pytest.raises(ValueError, match=name):
            make()
    net, (x, parts, images, tokens) = PartVoxels(8, 2, 1, 12), PartVoxels.examples()[0].given["inputs"](2, 0)
    for name, given in (
        ("parts", (x, parts[:, 1:], images, tokens)),
        ("tokens", (x, parts, images, tokens[:, 1:])),
        ("tokens", (x, parts, images[:, :3], tokens)),
    ):
        with pytest.raises(ValueError, match=name):
            net(*given)
