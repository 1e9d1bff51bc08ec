"""Positional attention: one matrix for every input, which keeps working on numbers larger than those of training."""

import torch

import regard
from regard.core.layout import Layout
from regard.studies.number_network import NumberNetwork

N, STEPS = 8, 600


def test_weights_are_the_same_for_every_input():
    """A is bit for bit equal for all inputs, and is the softmax of the encodings' products."""
    torch.manual_seed(0)
    for sine in (None, 10):
        mechanism = regard.build("positional", heads=3, places=19, size=7, sine=sine)
        first, second = (mechanism.weights(torch.randn(2, 3, 11, 5), torch.randn(2, 3, 11, 5)) for _ in range(2))
        assert torch.equal(first, second)
        placed = mechanism.encodings[:11]
        scores = (placed @ mechanism.query) @ (placed @ mechanism.key).mT / 7**0.5
        torch.testing.assert_close(first, torch.softmax(scores, -1).expand(2, -1, -1, -1))
        padded = Layout(key_mask=torch.tensor([[False] * 4 + [True] * 11]))
        shifted = mechanism.weights(torch.randn(1, 3, 15, 5), torch.randn(1, 3, 15, 5), padded)
        torch.testing.assert_close(shifted[0, :, 4:, 4:], first[0])
    network = NumberNetwork(N)
    maps = []
    for attention in network.attentions:
        attention.register_forward_hook(
            lambda layer, args, _: maps.append(layer.mechanism.weights(*layer.inputs(args[0])[:2]))
        )
    network(torch.randn(1, N)), network(100 * torch.randn(1, N))
    assert all(torch.equal(a, b) for a, b in zip(maps[:4], maps[4:], strict=True))
