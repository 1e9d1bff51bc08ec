"""DependencyViT: messages, the tree of parents, and tokens that are left out."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from regard.claims.testbeds.maps import drawn, stirred
from regard.networks.vision.dependency_vit import DependencyViT, SendingBlock

SIZES = {"width": 12, "heads": 3, "depth": 3, "ratio": 2, "patch": 4, "grid": 3}


def test_a_block_by_hand():
    """A_hij = p_hj m_j exp(s_ij) / Σ_i' exp(s_i'j), written out."""
    block = stirred(SendingBlock(6, 2, 2, 0.5))
    x, message = drawn(1, 5, 6), torch.full((1, 5), 0.7, dtype=torch.float64)
    read = block.norms[0](x)
    m = message * torch.sigmoid(block.controller(read))[..., 0]
    p = torch.softmax(2 * block.selector(read), -1)
    q, k, v = (matrix(read)[0].view(5, 2, 3) for matrix in (block.projection.q, block.projection.k, block.projection.v))
    heard = torch.zeros(5, 2, 3, dtype=torch.float64)
    for head in range(2):
        for j in range(5):
            scores = torch.stack([q[i, head] @ k[j, head] / 3**0.5 for i in range(5)])
            for i, share in enumerate(scores.softmax(0)):
                heard[i, head] += share * p[0, j, head] * m[0, j] * v[j, head]
    after = x + block.projection.out(heard.view(1, 5, 6))
    after = after + block.mlp(block.norms[1](after))
    out, left = block(x, message)
    torch.testing.assert_close(out, after)
    torch.testing.assert_close(left, m)


def test_pruned_tokens_are_those_with_the_smallest_messages():
    net, images = stirred(DependencyViT(7, prune=0.4, after=(1, 2), **SIZES)), drawn(2, 3, 18, 21)
    sent = net.sent(images)
    assert [each.weights.shape[-1] for each in sent] == [30, 18, 11]
    for before, after in pairwise(sent):
        for row in range(2):
            kept = set(after.tokens[row].tolist())
            left = [m for m, t in zip(before.message[row], before.tokens[row].tolist(), strict=True) if t not in kept]
            stayed = [m for m, t in zip(before.message[row], before.tokens[row].tolist(), strict=True) if t in kept]
            assert max(left) <= min(stayed)


def test_parents_are_those_that_a_token_sends_most_to():
    sent = stirred(DependencyViT(7, **SIZES)).sent(drawn(1, 3, 12, 8))[1]
    assert sent.parents.shape == (1, 6)
    for j, parent in enumerate(sent.parents[0].tolist()):
        column = sent.weights[0, :, :, j].sum(0)
        assert column[parent] == column.max()


def test_the_answer_is_read_by_messages():
    net, images = stirred(DependencyViT(7, **SIZES)), drawn(2, 3, 12, 12)
    x, message, _ = net.through(images)
    mean = sum(message[:, j, None] * x[:, j] for j in range(9)) / message.sum(1, keepdim=True)
    torch.testing.assert_close(net(images), net.classes(net.norm(mean)))


def test_layers_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="layers from 1 to 3"):
        DependencyViT(7, prune=0.5, after=(4,), **SIZES)
