"""Registers without training: what few neurons write goes to an extra token, image by image."""

import pytest
import torch
from torch import nn

from regard.analysis.register_neurons import Blocks, largest, register_neurons, registers, scores, seen_by


class Block(nn.Module):
    """``x + down(gelu(up(x)))`` and the mean of all tokens, so that an extra one would be seen."""

    def __init__(self, mixes):
        super().__init__()
        self.up, self.down, self.mixes = nn.Linear(5, 11), nn.Linear(11, 5), mixes

    def forward(self, x):
        x = x + self.down(nn.functional.gelu(self.up(x)))
        return x + 0.1 * x.mean(1, keepdim=True) if self.mixes else x


class Small(nn.Module):
    def __init__(self, mixes=True):
        super().__init__()
        self.blocks = nn.ModuleList(Block(mixes) for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def test_by_hand():
    """One block: the neuron's entry of the largest size, with its sign, is the register's; patches have none of it."""
    torch.manual_seed(0)
    model = Small(mixes=False)
    x = torch.randn(2, 7, 5)
    _, neurons = seen_by(model, x)
    with registers(model, [(0, 3)], count=2, scale=0.5) as extra:
        out, inside = seen_by(model, x)
    assert out.shape == x.shape
    assert extra[0].shape == (2, 2, 5)
    held = largest(neurons[0])[:, 0, 3]
    zero = nn.functional.gelu(model.blocks[0].up.bias)[3]  # what the neuron is at a token of zeros
    assert (held.abs() > zero.abs()).all()
    column = model.blocks[0].down.weight[:, 3]
    lost = neurons[0][:, 1:, 3:4] * column
    plain = Small(mixes=False)
    plain.load_state_dict(model.state_dict())
    first = plain.blocks[0](x)
    want = torch.cat([first[:, :1], first[:, 1:] - lost], 1)
    for block in plain.blocks[1:]:
        want = block(want)
    torch.testing.assert_close(out, want)
    assert inside[0].shape[1] == 7 + 2


def test_a_batch_is_its_images_and_the_model_is_itself_again():
    torch.manual_seed(1)
    model, x = Small(), torch.randn(3, 4, 5)
    before = model(x)
    with registers(model, [(0, 1), (2, 10), (0, 7)]):
        together = model(x)
        for row in range(3):
            torch.testing.assert_close(model(x[row : row + 1])[0], together[row])
    assert not torch.allclose(together, before)
    assert torch.equal(model(x), before)


def test_images_without_outliers_count_nowhere():
    norms = torch.tensor([[1.0, 40.0], [2.0, 3.0]])
    neurons = torch.tensor([[[9.0], [-4.0]], [[7.0], [7.0]]])
    assert scores(norms, [neurons]).tolist() == [[4.0]]
    with pytest.raises(ValueError, match="below the largest norm, 40"):
        scores(norms, [neurons], 50)


def test_what_there_is_not_is_named():
    model = Small()
    with pytest.raises(ValueError, match="count"), registers(model, [], 0):
        pass
    with pytest.raises(ValueError, match="neurons"), registers(model, [(3, 0)]):
        pass
    with pytest.raises(ValueError, match="neurons"), registers(model, [(0, 11)]):
        pass
    with pytest.raises(ValueError, match="a list of blocks"):
        Blocks.of(nn.Linear(2, 3))


def test_planted_neurons_are_found():
    torch.manual_seed(2)
    model, x = Small(), 0.1 * torch.randn(4, 6, 5)
    with torch.no_grad():
        model.blocks[2].up.weight[4] = 3
        model.blocks[2].down.weight[:, 4] = 20
    x[:, 2] += 3
    assert register_neurons(model, x, 1) == [(2, 4)]
