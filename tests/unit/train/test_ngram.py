"""The 5-gram baseline, on counts that can be checked by hand."""

import numpy as np
import pytest

from regard.train.tiny import ngram

STREAM = np.array([2, 3, 2, 3, 2, 4])  # over ids 0 to 4


def test_a_unigram_by_hand():
    p = ngram.fit(STREAM, 5, order=1).probabilities(np.array([2, 0]))
    assert p == pytest.approx([(3 + 3 / 5) / 9, (0 + 3 / 5) / 9])  # c = 3 of 6, t = 3, uniform below


def test_a_bigram_by_hand():
    p = ngram.fit(STREAM, 5, order=2).probabilities(np.array([2, 3]))
    unigram = (2 + 3 / 5) / 9
    assert p[1] == pytest.approx((2 + 2 * unigram) / (3 + 2))  # 2 → 3 twice of 3, followed by 2 different tokens


def test_an_unseen_context_leaves_the_shorter_one():
    model = ngram.fit(STREAM, 5, order=2)
    assert model.probabilities(np.array([0, 2]))[1] == pytest.approx((3 + 3 / 5) / 9)


def test_probabilities_sum_to_one_after_every_context():
    rng = np.random.default_rng(0)
    model = ngram.fit(rng.integers(0, 7, 503), 7, order=3)
    for context in rng.integers(0, 7, (13, 2)):
        total = sum(model.probabilities(np.array([*context, token]))[2] for token in range(7))
        assert total == pytest.approx(1)


def test_too_many_digits_are_refused():
    with pytest.raises(
        ValueError, match=r"order: got 5 with vocabulary 100000, want vocabulary \*\* order < 2 \*\* 63"
    ):
        ngram.fit(STREAM, 100_000)
