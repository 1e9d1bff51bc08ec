"""The size of a head: which matrices it can be, what a model loses by small ones, and finding the nearest point."""

import sysconfig
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from regard.blocks.attention import Attention
from regard.mechanisms.scored.softmax import Softmax
from regard.networks import LM, Config
from regard.projections.base import Grouped
from regard.studies.head_rank import RankNetwork, fit_head, head_for, nearest, sphere
from regard.train.fit import Recipe, fit

N, D = 24, 16
HEADS = (1, 4, 16)


def stochastic(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(2 * torch.randn(n, n, generator=generator, dtype=torch.float64), -1)


@pytest.mark.parametrize("seed", range(3))
def test_a_head_of_size_n_can_be_any_matrix(seed, record_property):
    """Closed form and search: errors under 1e-4 where d_p ≥ n, far above where d_p is n / 4 or less."""
    target, x = stochastic(N, seed), torch.randn(N, 40, dtype=torch.float64)
    found = {}
    for size in (2, N // 4, N, 2 * N):
        q, k = fit_head(target, size, seed=seed)
        searched = (torch.softmax(q @ k.mT * size**-0.5, -1) - target).abs().max().item()
        w_q, w_k = head_for(target, x, size)
        exact = (torch.softmax((x @ w_q) @ (x @ w_k).mT * size**-0.5, -1) - target).abs().max().item()
        found[size] = searched, exact
    record_property(
        "error of search, closed form", ", ".join(f"d_p={s}: {a:.0e}, {b:.0e}" for s, (a, b) in found.items())
    )
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


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_heads_of_fixed_size_never_hurt(seed, record_property):
    """A small LM: from 1 to 16 heads, loss never rises by 0.5% with heads of size n, and does with heads of d / h."""
    text = (Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_bytes()
    ids, n, width = torch.tensor(list(text)).clamp(max=127), 32, 32
    held = ids[-8192:].view(-1, n)

    def loss(model, generator):
        starts = torch.randint(len(ids) - 8192 - n, (32,), generator=generator)
        return model.loss(ids[starts[:, None] + torch.arange(n)])

    losses = {}
    for heads, size in {(h, dim) for h in HEADS for dim in (n, width // h)}:
        model = LM(Config(128, width=width, layers="softmax", heads=heads, head_dim=size, inner=64), seed=seed)
        fit(model, loss, Recipe(300, rate=5e-3, seed=seed))
        with torch.no_grad():
            losses[heads, size] = model.loss(held).item()
    rises = {}
    for name in ("fixed", "divided"):
        row = [losses[heads, n if name == "fixed" else width // heads] for heads in HEADS]
        rises[name] = max(after / before - 1 for before, after in pairwise(row))
        record_property(name, ", ".join(f"{value:.3f}" for value in row))
    assert rises["fixed"] < 0.005 < rises["divided"]


@pytest.mark.parametrize("count", [4, 64])
def test_a_full_rank_head_finds_the_nearest_point(count, record_property):
    """β I: the largest weight is the nearest point's on every one of 5,000 draws; the error falls with β."""
    points, y, answer = sphere(5000, count, D, torch.Generator().manual_seed(1))
    errors = []
    for beta in (100, 1000):
        out, weights = nearest(points, y, beta)
        chosen = points[torch.arange(5000), weights.argmax(1)]
        assert torch.equal(chosen, answer)
        errors.append((out - answer).square().sum(-1).mean().item())
    record_property("squared error at β = 100, 1000", ", ".join(f"{error:.3f}" for error in errors))
    assert errors[0] < 0.05
    assert errors[1] < 0.15 * errors[0]


def trained(model, call, count, d, steps, rate):
    """The squared error of a model after training."""

    def loss(model, generator):
        points, y, answer = sphere(128, count, d, generator)
        return (call(model, points, y) - answer).square().sum(-1).mean()

    fit(model, loss, Recipe(steps, rate=rate, decay=0.0))
    with torch.no_grad():
        return sum(loss(model, torch.Generator().manual_seed(999 + i)).item() for i in range(16)) / 16


@pytest.mark.slow
def test_heads_of_low_rank_miss_it(record_property):
    """One layer, d = 16, 8 points: 16 trained heads of rank 4 keep over 3 times the squared error of one of rank 16."""
    errors = {}
    for rank, heads in ((D, 1), (D // 4, 4), (D // 4, 16)):
        torch.manual_seed(0)
        layer = Attention(Softmax(), Grouped(D, heads, heads, rank, D))
        errors[rank, heads] = trained(layer, lambda m, points, y: m(y[:, None], context=points)[:, 0], 8, D, 1000, 0.03)
    record_property("squared error", ", ".join(f"{h} of rank {r}: {e:.3f}" for (r, h), e in errors.items()))
    assert errors[4, 16] >= 3 * errors[16, 1]
    assert errors[4, 16] < errors[4, 4]


@pytest.mark.slow
def test_depth_narrows_the_gap(record_property):
    """Whole transformers, d = 8, 4 points, rank 2: a second layer brings the error nearer to that of full rank."""
    errors = {}
    for rank, heads, depth in ((8, 1, 1), (2, 16, 1), (2, 16, 2)):
        torch.manual_seed(0)
        network = RankNetwork(8, rank, heads, depth, width=32, inner=64)
        errors[rank, depth] = trained(network, lambda m, points, y: m(points, y), 4, 8, 1000, 3e-3)
    record_property("squared error", ", ".join(f"rank {r}, depth {d}: {e:.3f}" for (r, d), e in errors.items()))
    assert errors[8, 1] < errors[2, 2] < errors[2, 1]
