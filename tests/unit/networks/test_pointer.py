"""Pointers: what is written is what is likeliest at each step, each place once, for any number of inputs."""

import pytest
import torch

from regard.networks.pointer import PointerNetwork


def test_writing_is_what_is_likeliest_at_each_step():
    network, points = PointerNetwork(2, 8, seed=0).double(), torch.rand(3, 9, 2, dtype=torch.float64)
    written = network.generate(points, 5, once=False)
    assert torch.equal(network(points, written).argmax(-1), written)


@pytest.mark.parametrize("count", [3, 17])
def test_each_place_once_however_many(count):
    found = PointerNetwork(1, 8, seed=0).generate(torch.rand(5, count, 1), count)
    assert torch.equal(found.sort(1).values, torch.arange(count).expand(5, count))


def test_the_output_is_the_attention():
    network, points = PointerNetwork(1, 8, seed=0), torch.rand(2, 5, 1)
    order = torch.rand(2, 5).argsort(1)
    shown = network.intermediates(points, order)["pointer"][:, 0]
    torch.testing.assert_close(shown, network(points, order).exp())


def test_points_of_other_channels_are_named():
    with pytest.raises(ValueError, match=r"^points: got shape \(2, 5, 3\)"):
        PointerNetwork(2, 8)(torch.rand(2, 5, 3), torch.zeros(2, 5, dtype=torch.int64))
