"""Positional attention: one matrix for every input, which keeps working on numbers larger than those of training."""

import pytest
import torch
import torch.nn.functional as F

import regard
from regard.core.layout import Layout
from regard.studies.number_network import NumberNetwork
from regard.train.fit import Recipe, fit

N, STEPS = 8, 600
TASKS = {
    "sum": lambda x: x.cumsum(1),
    "min": lambda x: x.cummin(1).values,
    "median": lambda x: torch.stack(
        [x[:, : i + 1].quantile(0.5, dim=1, interpolation="midpoint") for i in range(N)], 1
    ),
    "sort": lambda x: x.sort(1).values,
}


def numbers(count, reach, generator, beyond=0.0):
    """Lists from a random interval in [−reach, reach] each, one that leaves [−beyond, beyond]."""
    ends = reach * (2 * torch.rand(4 * count, 2, generator=generator) - 1)
    ends = ends[ends.abs().amax(1) > beyond][:count].sort(1).values
    return ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * torch.rand(count, N, generator=generator)


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


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_numbers_beyond_those_of_training(task, record_property):
    """Trained on [−2, 2], squared errors on lists from [−10, 10] and [−20, 20] are a third of a standard network's."""
    errors = {}
    for kind in ("positional", "standard"):
        torch.manual_seed(0)
        network = NumberNetwork(N, kind)

        def loss(model, generator):
            x = numbers(128, 2, generator)
            return F.mse_loss(model(x), TASKS[task](x))

        fit(network, loss, Recipe(STEPS, rate=3e-3, decay=0.0))
        for reach in (2, 10, 20):
            x = numbers(2000, reach, torch.Generator().manual_seed(5), 2.0 if reach > 2 else 0.0)
            with torch.no_grad():
                errors[kind, reach] = F.mse_loss(network(x), TASKS[task](x)).item()
    for reach in (2, 10, 20):
        ratio = errors["positional", reach] / errors["standard", reach]
        record_property(f"±{reach}", f"{errors['positional', reach]:.2g}, {ratio:.2g} of standard's")
    for reach in (10, 20):
        assert errors["positional", reach] <= errors["standard", reach] / 3
