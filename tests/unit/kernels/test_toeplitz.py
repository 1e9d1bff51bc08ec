"""Fused attention under biases of diagonals, against the dense formula."""

import pytest
import torch

from regard.kernels import toeplitz


def dense(q, k, v, biases, causal):
    n, m = q.shape[2], k.shape[2]
    i, j = torch.arange(n)[:, None], torch.arange(m)
    scores = q @ k.repeat_interleave(2, 1).mT * q.shape[-1] ** -0.5 + biases[:, j - i + n - 1]
    scores = scores.masked_fill(j > i + m - n, -torch.inf) if causal else scores
    return torch.softmax(scores, -1).nan_to_num(0) @ v.repeat_interleave(2, 1)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n", "m"), [(700, 700), (300, 650), (600, 300), (257, 256), (1, 5)])
def test_equals_the_dense_formula_with_gradients(n, m, causal):
    torch.manual_seed(0)
    tensors = [
        torch.randn(2, heads, tokens, size, dtype=torch.float64, requires_grad=True)
        for heads, tokens, size in ((4, n, 8), (2, m, 8), (2, m, 6))
    ]
    biases = torch.randn(4, n + m - 1, dtype=torch.float64)
    biases[1, 1::3] = -torch.inf
    found = [
        [out, *torch.autograd.grad(out.square().sum(), tensors)]
        for out in (f(*tensors, biases, causal) for f in (toeplitz.attend, dense))
    ]
    for mine, want in zip(*found, strict=True):
        torch.testing.assert_close(mine, want.nan_to_num(0), atol=1e-11, rtol=0)


def test_what_is_lost_in_rounding_is_left_out():
    """Steep biases: the cut keeps all that a float32 sum can tell, and biases just above it are kept."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 4 if i == 0 else 2, 500, 8) for i in range(3))
    biases = -torch.tensor([[0.1], [0.5], [2.0], [8.0]]) * (torch.arange(999) - 499).abs()
    cut = toeplitz.lost(q, k.repeat_interleave(2, 1), biases[:, 499])
    assert (biases[1:] < cut[1:]).any(1).all()
    wide = [x.double() for x in (q, k, v, biases)]
    torch.testing.assert_close(toeplitz.attend(q, k, v, biases, True).double(), dense(*wide, True), atol=2e-6, rtol=0)


@pytest.mark.parametrize(("far", "kept"), [(-10.0, True), (-20.0, True), (-30.0, False)])
def test_what_a_sum_can_tell_is_kept(far, kept):
    """With equal scores only the biases decide: what all far keys weigh together is kept above the rounding."""
    q, v = torch.zeros(1, 2, 500, 8), torch.zeros(1, 2, 500, 1)
    v[:, :, 0] = 1.0
    biases = torch.full((2, 999), far)
    biases[:, 499] = 0.0
    last = toeplitz.attend(q, q, v, biases, True)[0, :, -1, 0]
    want = torch.exp(torch.tensor(far)) if kept else torch.zeros(())
    torch.testing.assert_close(last, want.expand(2), atol=0, rtol=0.03)


def test_far_keys_that_score_high_keep_their_weight():
    """A key whose product makes up for its distance, among many that are near."""
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, 4 if i == 0 else 2, 300, 8) for i in range(3))
    q[..., 0], k[:, :, 3, 0] = 20.0, 90.0
    biases = -torch.tensor([[0.1], [0.5], [1.0], [2.0]]) * (torch.arange(599) - 299).abs()
    want = dense(*(x.double() for x in (q, k, v, biases)), True)
    torch.testing.assert_close(want[0, ::2, -1], v[0, :, 3].double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(toeplitz.attend(q, k, v, biases, True).double(), want, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("n", "m"), [(0, 3), (1, 0), (0, 0)])
def test_nothing_to_see_or_to_ask(n, m):
    q, k = torch.randn(1, 2, n, 4), torch.randn(1, 2, m, 4)
    out = toeplitz.attend(q, k, k, torch.zeros(2, max(n + m - 1, 0)), True)
    assert out.shape == (1, 2, n, 4)
    assert not out.any()
