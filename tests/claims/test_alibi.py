"""Attention with linear biases: distances alone count."""

from __future__ import annotations

import torch

import regard
from regard.core.layout import Layout


def test_a_shifted_text_is_attended_to_alike():
    """89 tokens that are padding or another document before a text change nothing about it, to 1e-12."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 4, 120, 7, dtype=torch.float64) for _ in range(3))
    alibi = regard.build("alibi")
    alone = alibi(q[:, :, 89:], k[:, :, 89:], v[:, :, 89:], Layout(causal=True))
    documents = (torch.arange(120) >= 89).long()[None]
    for layout in (Layout(causal=True, key_mask=documents.bool()), Layout(causal=True, segments=documents)):
        torch.testing.assert_close(alibi(q, k, v, layout)[:, :, 89:], alone, atol=1e-12, rtol=1e-12)


def test_equal_keys_are_weighed_by_distance_alone():
    """With equal scores the weight falls by exp(−slope) a token: the slopes of 4 heads are 1/4, 1/16, 1/64, 1/256."""
    k = torch.ones(1, 4, 11, 7, dtype=torch.float64)
    rows = regard.build("alibi").weights(k, k, Layout(causal=True))[0, :, -1]
    falls = (rows[:, 1:] / rows[:, :-1]).log()
    want = torch.tensor([1 / 4, 1 / 16, 1 / 64, 1 / 256], dtype=torch.float64)[:, None].expand(-1, 10)
    torch.testing.assert_close(falls, want, atol=1e-12, rtol=0)
