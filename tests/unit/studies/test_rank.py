"""The size of a head: which matrices it can be, what a model loses by small ones, and finding the nearest point."""

import pytest
import torch

from regard.studies.head_rank import fit_head, head_for, nearest, sphere

N, D = 24, 16


def stochastic(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(2 * torch.randn(n, n, generator=generator, dtype=torch.float64), -1)


@pytest.mark.parametrize("seed", range(3))
def test_a_head_of_size_n_can_be_any_matrix(seed):
    """Closed form and search: errors under 1e-4 where d_p ≥ n, far above where d_p is n / 4 or less."""
    target, x = stochastic(N, seed), torch.randn(N, 40, dtype=torch.float64)
    found = {}
    for size in (2, N // 4, N, 2 * N):
        q, k = fit_head(target, size, seed=seed)
        searched = (torch.softmax(q @ k.mT * size**-0.5, -1) - target).abs().max().item()
        w_q, w_k = head_for(target, x, size)
        exact = (torch.softmax((x @ w_q) @ (x @ w_k).mT * size**-0.5, -1) - target).abs().max().item()
        found[size] = searched, exact
    for size, (searched, exact) in found.items():
        assert (searched < 1e-4 and exact < 1e-12) if size >= N else (searched > 1e-2 and exact > 1e-2)


def test_one_less_than_n_is_enough():
    """Rows of scores may be shifted, so that d_p = n − 1 is exact too; d_p = n − 2 is not."""
    target, x = stochastic(N, 0), torch.eye(N, dtype=torch.float64)
    for size, exact in ((N - 1, True), (N - 2, False)):
        w_q, w_k = head_for(target, x, size)
        error = (torch.softmax(w_q @ w_k.mT * size**-0.5, -1) - target).abs().max()
        assert (error < 1e-12) == exact


def test_bad_targets_are_named():
    with pytest.raises(ValueError, match="target: got shape"):
        head_for(torch.eye(3), torch.eye(3), 3)
    with pytest.raises(ValueError, match="x: got 4 rows of rank 2"):
        head_for(stochastic(4, 0), torch.randn(4, 2, dtype=torch.float64), 4)


@pytest.mark.parametrize("count", [4, 64])
def test_a_full_rank_head_finds_the_nearest_point(count):
    """β I: the largest weight is the nearest point's on every one of 5,000 draws; the error falls with β."""
    points, y, answer = sphere(5000, count, D, torch.Generator().manual_seed(1))
    errors = []
    for beta in (100, 1000):
        out, weights = nearest(points, y, beta)
        chosen = points[torch.arange(5000), weights.argmax(1)]
        assert torch.equal(chosen, answer)
        errors.append((out - answer).square().sum(-1).mean().item())
    assert errors[0] < 0.05
    assert errors[1] < 0.15 * errors[0]
