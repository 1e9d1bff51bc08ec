"""Drags: their maps, points between cells and tokens by hand, and frames that read the first."""

import pytest
import torch
import torch.nn.functional as F

from regard.networks.drags import Dragged, at_points, drawn_drags, waves


def test_maps_by_hand():
    """Of 2 × 5 cells: a drag from (0.68, 0.6), in row 1 and column 3, to (0.99, 0.1) in the second frame and the last.

    0.68 · 5 = 3.4 lies two fifths into column 3, 0.6 · 2 = 1.2 a fifth into row 1. The other drag is none.
    """
    drags = torch.zeros(1, 2, 2, 4)
    drags[0, :, 0] = torch.tensor([0.68, 0.6, 0.68, 0.6])
    drags[0, 1, 0, 2:] = torch.tensor([0.99, 0.1])
    maps, want = drawn_drags(drags, (2, 5)), -torch.ones(2, 12, 2, 5)
    first, last = (1, 3, 0.4, 0.2), (0, 4, 0.95, 0.2)
    for frame, points in enumerate([(first, first, last), (first, last, last)]):
        for place, (row, column, x, y) in enumerate(points):
            want[frame, 2 * place, row, column], want[frame, 2 * place + 1, row, column] = x, y
    torch.testing.assert_close(maps[0], want)


def test_points_between_cells_by_hand():
    """Cells of 3 columns have their middles at 1/6, 1/2 and 5/6; a point beyond the last is the last."""
    x = torch.tensor([[10.0, 20, 40]])[None, None]
    points = torch.tensor([[[1 / 2, 0.5], [2 / 3, 0.5], [1.0, 0.5]]])
    torch.testing.assert_close(at_points(x, points)[0, :, 0], torch.tensor([20.0, 30, 40]))


def test_waves_by_hand():
    found = waves(8, (2, 3))
    for row in range(2):
        for column in range(3):
            own = [torch.tensor([n, n / 100.0], dtype=torch.float64) for n in (column, row)]
            want = torch.cat([part for n in own for part in (n.sin(), n.cos())])
            torch.testing.assert_close(found[:, row, column], want)


def test_layer_by_hand():
    """Every frame for itself, the first frame's keys and values, the text and the frame's tokens."""
    torch.manual_seed(0)
    net = Dragged((3, 2, 4), 8, 2, 2, (5, 6), 4).double()
    torch.nn.init.normal_(net.last.weight, std=0.2)
    x, text = torch.randn(1, 3, 2, 4, 8).double(), torch.randn(1, 2, 8).double()
    drags = torch.rand(1, 3, 2, 4).double()
    drags[:, :, 1] = 0
    out = net(x, drags, text)[0]

    def attend(p, q, c):
        q, k, v = (part.unflatten(1, (2, 4)).transpose(0, 1) for part in (p.q(q), p.k(c), p.v(c)))
        return p.out(((q @ k.mT / 2).softmax(-1) @ v).transpose(0, 1).flatten(1))

    moved, places = [], waves(4, (2, 4))
    for frame in range(3):
        y = drawn_drags(drags, (2, 4))[0, frame][None]
        for convolution in net.maps:
            y = F.silu(convolution(y))
        scale, shift = net.last(y)[0].permute(1, 2, 0).chunk(2, -1)
        moved.append(x[0, frame] * (1 + scale) + shift)
    first = net.norms[0](moved[0].flatten(0, 1))
    for frame in range(3):
        ends = [drags[0, frame, 0, :2], drags[0, frame, 0, 2:]]
        maps = [moved[frame].permute(2, 0, 1), places]
        parts = [at_points(m[None], end[None, None])[0, 0] for m in maps for end in ends]
        token = net.tokens(torch.cat(parts))
        context = torch.cat([text[0], token[None], torch.zeros(1, 8).double()])
        h = moved[frame].flatten(0, 1)
        h = h + attend(net.attention.projection, net.norms[0](h), first)
        h = h + attend(net.cross.projection, net.norms[1](h), context)
        torch.testing.assert_close(out[frame].flatten(0, 1), h)


def test_begins_as_if_nothing_were_dragged():
    """The last convolution is zero at first: no map is scaled or shifted."""
    net = Dragged((2, 3, 3), 8, 1, 2, (4,), 4)
    x = torch.randn(1, 2, 3, 3, 8)
    assert torch.equal(net.moved(x, torch.rand(1, 2, 1, 4)), x)


def test_other_shapes_are_named():
    net = Dragged((2, 3, 3), 8, 1, 2, (4,), 4)
    with pytest.raises(ValueError, match="drags: got shape"):
        net(torch.zeros(1, 2, 3, 3, 8), torch.zeros(1, 2, 2, 4), torch.zeros(1, 1, 8))
    with pytest.raises(ValueError, match="x: got shape"):
        net(torch.zeros(1, 3, 3, 3, 8), torch.zeros(1, 2, 1, 4), torch.zeros(1, 1, 8))
