"""Models trained side by side are those that are trained alone."""

import pytest
import torch
from torch import nn

from regard.experiments.many import train_many

RATES = [1e-2, 3e-3, 1e-3]


def made(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def batch(step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(3, 7, 3, generator=generator, dtype=torch.float64)
    return x, x.prod(-1, keepdim=True)


def loss(call, x, y):
    return (call(x) - y).square().mean()


def single(step):
    return tuple(part[:1] for part in batch(step))


def test_each_is_what_it_is_alone():
    models = [made(seed) for seed in range(3)]
    before = [model[0].weight.clone() for model in models]
    together = train_many(models, loss, batch, 20, RATES)
    for place, (model, rate) in enumerate(zip(models, RATES, strict=True)):
        assert torch.equal(model[0].weight, before[place])
        optimiser = torch.optim.Adam(model.parameters(), rate)
        for step in range(20):
            x, y = (part[place] for part in batch(step))
            optimiser.zero_grad()
            loss(model, x, y).backward()
            optimiser.step()
        for ours, theirs in zip(together[place].parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_what_cannot_be_trained_is_named():
    with pytest.raises(ValueError, match=r"^rates: got 1 for 3 models"):
        train_many([made(seed) for seed in range(3)], loss, batch, 1, [1e-3])
    with pytest.raises(RuntimeError, match=r"^rates: got a loss of step 1 that is not finite"):
        train_many([made(0)], lambda call, x, y: loss(call, x, y) * torch.nan, single, 1, [1e-3])
    with pytest.raises(RuntimeError, match=r"^rates: got a gradient of the last step that is not finite"):
        train_many([made(0)], lambda call, x, y: (call(x) * 0).clamp(min=0).sqrt().sum(), single, 1, [1e-3])
