"""Pointers: what is written is what is likeliest at each step, each place once, for any number of inputs."""

from itertools import permutations

import pytest
import torch

from regard.networks.pointer import PointerNetwork, once, tour, triangles


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


def test_a_beam_over_everything_finds_the_likeliest_order():
    """Of all 24 orders of four points; one of width one is greedy."""
    network, points = PointerNetwork(2, 8, seed=0).double(), torch.rand(3, 4, 2, dtype=torch.float64)
    torch.nn.init.normal_(network.score.weight, std=4.0)
    orders = torch.tensor(list(permutations(range(4))))
    found = network.search(points, 4, beam=64)
    for row in range(3):
        logs, used = network(points[row : row + 1].expand(24, -1, -1), orders), torch.zeros(24, 4, dtype=torch.bool)
        total = torch.zeros(24, dtype=torch.float64)
        for step in range(4):
            left = logs[:, step].masked_fill(used, -torch.inf).log_softmax(-1)
            total += left.gather(1, orders[:, step, None])[:, 0]
            used = used.scatter(1, orders[:, step, None], True)
        assert found[row].tolist() == orders[total.argmax()].tolist()
    assert torch.equal(network.search(points, 4, beam=1), network.generate(points, 4))


def test_tours_return_and_triangles_rise():
    network, points = PointerNetwork(2, 8, seed=0), torch.rand(2, 6, 2)
    found = network.search(points, 7, 3, tour)
    assert found[:, 0].tolist() == found[:, -1].tolist() == [0, 0]
    assert torch.equal(found[:, :-1].sort(1).values, torch.arange(6).expand(2, 6))
    threes = network.search(points, 12, 20, triangles).unflatten(1, (4, 3)).tolist()
    for row in threes:
        assert all(a < b < c for a, b, c in row)
        assert row == sorted(map(list, {tuple(three) for three in row}))
    with pytest.raises(ValueError, match="of a network of pointers"):
        PointerNetwork(2, 8, 6).search(points, 3)


def test_what_may_come_next_by_hand():
    assert once(torch.tensor([[1, 3]]), 5).tolist() == [[True, False, True, False, True]]
    assert triangles(torch.tensor([[0, 1, 2, 0, 1]]), 5).tolist() == [[False, False, False, True, True]]
    assert triangles(torch.tensor([[0, 1, 4, 0]]), 5).tolist() == [[False, False, True, True, False]]
    assert triangles(torch.tensor([[0, 2, 4, 0]]), 5).tolist() == [[False, False, False, True, False]]
    assert triangles(torch.tensor([[0, 3, 4]]), 5).tolist() == [[False, True, True, False, False]]
