"""Sentences whose verb agrees with their subject: the first noun, whatever nouns follow."""

from __future__ import annotations

import torch

from regard.claims.agreement import BEHIND, CLS, NOUNS, UNKNOWN, sentences


def test_the_first_noun_decides():
    words, plural = sentences(97, torch.Generator().manual_seed(0))
    nouns = (words > BEHIND) & (words < 3 + 2 * NOUNS)
    assert (words[:, 0] == CLS).all()
    assert (nouns.sum(1) == 4).all()
    first = words.gather(1, nouns.int().argmax(1, keepdim=True))[:, 0]
    assert torch.equal(first >= 3 + NOUNS, plural == 1)
    behind = words[:, :-1] == BEHIND
    assert (nouns[:, 1:] & behind).sum(1).tolist() == [3] * 97
    last = words[:, 11] >= 3 + NOUNS
    assert 20 < (last != (plural == 1)).sum() < 80


def test_words_that_are_left_out_are_unknown():
    words, _ = sentences(97, torch.Generator().manual_seed(0), 0.5)
    assert 0.4 < (words[:, 1:] == UNKNOWN).double().mean() < 0.6
    assert (words[:, 0] == CLS).all()
