"""The chunked scan: any length, from a state to a state, with gradients of both."""

import pytest
import torch

from regard.kernels.scan import constant as scan
from regard.kernels.scan import gated


@pytest.mark.parametrize("n", [1, 63, 64, 65, 131])
def test_gradients_of_output_and_states(n, monkeypatch):
    monkeypatch.setattr(gated, "FLIGHT", 64)
    torch.manual_seed(6)
    q, k, v, state = (
        torch.randn(1, 2, *shape, dtype=torch.float64, requires_grad=True) for shape in ((n, 3), (n, 3), (n, 5), (3, 5))
    )
    decay = torch.tensor([-0.3, -7.0], dtype=torch.float64)
    want_out, carried = [], state
    for i in range(n):
        carried = carried * decay.exp()[:, None, None] + k[:, :, i, :, None] * v[:, :, i, None, :]
        want_out.append(torch.einsum("bhd,bhde->bhe", q[:, :, i], carried))
    got, want = scan.decayed(q, k, v, decay, state), (torch.stack(want_out, 2), carried)
    torch.testing.assert_close(got, want)
    losses = (out.square().sum() + end.sin().sum() for out, end in (got, want))
    for mine, theirs in zip(*(torch.autograd.grad(loss, (q, k, v, state)) for loss in losses), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_half_the_sequence_and_then_the_rest_is_the_whole():
    q, k, v = (torch.randn(2, 3, 307, size) for size in (5, 5, 7))
    decay, empty = -torch.tensor([0.0, 0.5, 100.0]), torch.zeros(2, 3, 5, 7)
    whole, end = scan.decayed(q, k, v, decay, empty)
    first, middle = scan.decayed(*(x[:, :, :101] for x in (q, k, v)), decay, empty)
    second, last = scan.decayed(*(x[:, :, 101:] for x in (q, k, v)), decay, middle)
    torch.testing.assert_close((torch.cat([first, second], 2), last), (whole, end), rtol=1e-4, atol=1e-4)
