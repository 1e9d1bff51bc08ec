"""Memories read what a search over all slots finds, and a deeper model begins as the one that it is made of."""

from __future__ import annotations

import pytest
import torch

from regard.networks import LM, Config
from regard.networks.midus import HeadMemory, Midus, duplicated, upscaled


def test_the_best_slots_of_all_are_read():
    torch.manual_seed(0)
    memory, x = HeadMemory(12, 3, keys=5, top=4, latent=7), torch.randn(2, 6, 12)
    got = memory(x).detach()
    memory.requires_grad_(False)
    for b, t, h in ((0, 0, 0), (1, 5, 2), (0, 3, 1)):
        q = x[b, t, 4 * h : 4 * h + 4] @ memory.query[h]
        scores = {
            (i, j): float(q[:2] @ memory.keys[0, h, i] + q[2:] @ memory.keys[1, h, j])
            for i in range(5)
            for j in range(5)
        }
        best = sorted(scores, key=lambda at: -scores[at])[:4]
        shares = torch.tensor([scores[at] for at in best]).softmax(0)
        latent = sum(share * memory.bank[5 * i + j] for share, (i, j) in zip(shares, best, strict=True))
        torch.testing.assert_close(got[b, t, 4 * h : 4 * h + 4], latent @ memory.expand[h], atol=1e-5, rtol=1e-4)


def test_a_deeper_model_says_the_same_at_first_for_fewer_parameters():
    model, ids = LM(Config(11, width=16, layers="softmax, gla, softmax", heads=2), seed=1), torch.arange(11)[None]
    found, copies = upscaled(model, [0, 2], keys=4, top=3, latent=5), duplicated(model, [0, 2])
    assert [type(block.attention.mechanism).__name__ for block in found.layers] == [
        *["Softmax"] * 2,
        type(model.layers[1].attention.mechanism).__name__,
        *["Softmax"] * 2,
    ]
    for one in (found, copies):
        assert (one(ids) - model(ids)).abs().max() < 1e-6
        assert torch.equal(one.layers[1].attention.projection.q.weight, model.layers[0].attention.projection.q.weight)
    added, more = (one.parameter_count - model.parameter_count for one in (found, copies))
    assert added == 2 * (4 * 16**2 + 2 * 16 + 2 * 8 * 8 + 2 * 2 * 4 * 4 + 16 * 5 + 2 * 5 * 8)
    assert added < 0.5 * more
    found.loss(ids).backward()
    assert found.layers[1].network.expand.grad.abs().max() > 0
    assert 0 < found.slots_read(ids) <= 1


def test_what_cannot_be_is_refused():
    config = Config(11, width=16, layers="softmax*2", heads=2)
    with pytest.raises(ValueError, match=r"memories: got \[2\], want some of 0 to 1"):
        Midus(config, [2])
    with pytest.raises(ValueError, match=r"after: got \[\], want some of 0 to 1"):
        upscaled(LM(config, seed=0), [])
    with pytest.raises(ValueError, match="top: got 10, want 1 to the 9 slots"):
        HeadMemory(12, 3, keys=3, top=10)
    with pytest.raises(ValueError, match="width: got 9, want a multiple of 6"):
        HeadMemory(9, 3)
