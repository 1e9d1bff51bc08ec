"""Attention as posterior, as energy descent, and as a sparse distributed memory."""

import pytest
import torch
import torch.nn.functional as F

from regard.claims.theory import distributed_memory
from regard.studies.softmax_interpretations import (
    free_energy,
    overlap,
    responsibilities,
    retrieve,
)

EXACT = {"atol": 1e-12, "rtol": 0}


def draw(n=9, m=13, d=6):
    torch.manual_seed(0)
    return [torch.randn(2, size, d, dtype=torch.float64) for size in (n, m, m)]


def test_responsibilities_are_attention():
    """A uniform prior gives softmax attention, a log prior an additive bias, one of −∞ a mask."""
    q, k, v = draw()
    torch.testing.assert_close(responsibilities(q, k) @ v, F.scaled_dot_product_attention(q, k, v), **EXACT)
    prior = torch.randn(2, 9, 13, dtype=torch.float64).log_softmax(-1)
    prior[..., :3] = -torch.inf
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=prior)
    torch.testing.assert_close(responsibilities(q, k, prior) @ v, want, **EXACT)
    assert responsibilities(q, k, prior)[..., :3].abs().max() == 0


def test_slots_compete():
    """Competition of queries is the attention of a Slot Attention step: softmax over slots, then a weighted mean."""
    q, k, v = draw()
    dots = torch.einsum("bid,bjd->bij", q, k) * 6**-0.5
    shares = dots.softmax(dim=1)
    want = torch.einsum("bij,bjd->bid", shares / shares.sum(-1, keepdim=True), v)
    torch.testing.assert_close(responsibilities(q, k, slots=True) @ v, want, **EXACT)


@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0, 30.0])
def test_reading_again_never_raises_the_free_energy(beta):
    """Repeated reading descends the free energy, and at a large β ends at a stored pattern."""
    torch.manual_seed(0)
    k = torch.randn(16, 20, 8, dtype=torch.float64)
    q = k[:, :4] + 0.3 * torch.randn(16, 4, 8, dtype=torch.float64)
    path = retrieve(q, k, beta, 20)
    energies = torch.stack([free_energy(x, k, beta) for x in path])
    assert (energies.diff(dim=0) <= 1e-12).all()
    if beta == 30.0:
        assert torch.cdist(path[-1], k).amin(-1).max() < 1e-3  # next to a stored pattern


def test_overlaps_by_counting():
    """The overlap of two circles of addresses, counted address by address."""
    bits, radius = 9, 3
    every = torch.tensor([[(x >> b) & 1 for b in range(bits)] for x in range(1 << bits)])
    for v, count in enumerate(overlap(bits, radius)):
        other = torch.tensor([1] * v + [0] * (bits - v))
        inside = (every.sum(1) <= radius) & ((every != other).sum(1) <= radius)
        assert count == inside.sum()
    with pytest.raises(ValueError, match="radius"):
        overlap(8, 9)


def test_memory_is_softmax_attention():
    """64 bits, radii 5 … 22: log overlap is linear in distance, and both readings point the same way."""
    found = distributed_memory.measure()
    assert found["log"] >= 0.96
    assert found["fit"] >= 0.95
    assert found["cosine"] >= 0.95
