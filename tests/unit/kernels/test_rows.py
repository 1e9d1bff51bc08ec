"""Tokens copied row by row are those that are asked for."""

import pytest
import torch

from regard.kernels.rows import ordered, taken


def drawn(batch, heads, strided):
    x = torch.randn(batch, 9, heads, 3, dtype=torch.float64).transpose(1, 2)
    return (x if strided else x.contiguous()).requires_grad_()


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_they_are_those_of_take_along_dim(batch, strided):
    x, some = drawn(batch, 4, strided), torch.tensor([8, 0, 0, 3, 8])
    each = torch.stack([some.roll(turn) for turn in range(4)])
    own = torch.stack([each.roll(row, 1) for row in range(batch)]).flatten(0, 1) if batch else each[:0]
    for index in (some[None], each, own):
        wanted = index.view(batch, 4, 5) if len(index) == 4 * batch else index.expand(batch, 4, 5)
        pair = taken(x, index), x.take_along_dim(wanted[..., None], 2)
        torch.testing.assert_close(*pair, rtol=0, atol=0)
        torch.testing.assert_close(*(torch.autograd.grad(each.square().sum(), x)[0] for each in pair))


def test_one_order_for_all_heads():
    x, order = drawn(2, 4, True), torch.tensor([[3, 1], [0, 8]])
    torch.testing.assert_close(ordered(x, order), x.take_along_dim(order[:, None, :, None], 2))
    assert ordered(x[:0], order[:0]).shape == (0, 4, 2, 3)
