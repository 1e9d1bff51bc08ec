"""Positional attention: one matrix for every input, which keeps working on numbers larger than those of training."""

import pytest
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


@pytest.mark.parametrize("attention", ["positional", "standard"])
def test_a_network_of_numbers_is_its_equations(attention):
    """h ← FF([h, MultiHead h]); A reads places alone, or all of h, which begins as the number and its place."""
    torch.manual_seed(0)
    network = NumberNetwork(5, attention, width=6, heads=3, depth=2, inner=7).double()
    numbers = torch.randn(2, 5, dtype=torch.float64)
    z = torch.cat([numbers, numbers.new_zeros(2, 1)], 1)[..., None]
    if attention == "standard":
        z = torch.cat([z, torch.eye(6, dtype=z.dtype).expand(2, -1, -1)], -1)
    h = z @ network.read_in.weight.T + network.read_in.bias
    for layer, (into, _, out) in zip(network.attentions, network.networks, strict=True):
        made, places = layer.projection, layer.mechanism
        v = (h @ made.v.weight.T).unflatten(2, (3, 2)).transpose(1, 2)
        if attention == "standard":
            q, k = ((h @ each.weight.T).unflatten(2, (3, 6)).transpose(1, 2) for each in (made.q, made.k))
        else:
            q, k = places.encodings.double() @ places.query, places.encodings.double() @ places.key
        seen = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        seen = seen.transpose(1, 2).flatten(2) @ made.out.weight.T
        h = torch.relu(torch.cat([h, seen], -1) @ into.weight.T + into.bias) @ out.weight.T + out.bias
    torch.testing.assert_close(network(numbers), (h @ network.read_out.weight.T + network.read_out.bias)[:, :5, 0])
