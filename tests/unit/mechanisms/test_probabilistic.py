"""Probabilistic attention: softmax as its special case, the posterior that EM raises, and segmentation from clicks."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import regard
from regard.claims.probabilistic import clicked, propagated
from regard.mechanisms.scored.probabilistic import Known, Mixture


def draw(n=37, m=37, d=8, e=5, seed=0):
    torch.manual_seed(seed)
    return [torch.randn(2, 3, count, size, dtype=torch.float64) for count, size in ((n, d), (m, d), (m, e))]


def test_without_adaptation_it_is_softmax_attention():
    """With π_j ∝ exp(α |ζ_j|² / 2) and no value term it is softmax attention, to 1e-5 and better."""
    q, k, v = draw(n=300, m=290)
    want = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(regard.build("probabilistic", steps=0)(q, k, v), want, atol=1e-12, rtol=0)
    torch.testing.assert_close(Mixture.of(k, v, 8**-0.5, "norm").read(q), want, atol=1e-12, rtol=0)
    assert (regard.build("probabilistic", steps=0, prior="uniform")(q, k, v) - want).abs().max() > 0.1


@pytest.mark.parametrize("prior", ["norm", "uniform"])
def test_each_step_raises_the_posterior(prior):
    """Every step of EM on keys and on values raises the log posterior, in 32 draws with some values known."""
    for seed in range(32):
        q, k, v = draw(n=23, m=11, seed=seed)
        values, given = torch.randn(2, 3, 23, 5, dtype=torch.float64), torch.rand(2, 3, 23) < 0.3
        known = Known(values, given, precision=0.5 + seed % 3)
        mixture = Mixture.of(k, v, 0.1 + seed % 4, prior, key_precision=0.3, mean_precision=0.7)
        before = mixture.objective(q, known)
        for step in range(12):
            mixture = mixture.adapt_keys(q, known) if step % 2 == 0 else mixture.adapt_values(q, known)
            after = mixture.objective(q, known)
            assert (after - before).min() > -1e-9
            assert step > 1 or (after - before).min() > 1e-3
            before = after
        wrong = replace(mixture, keys=mixture.keys + 0.1)
        assert (wrong.objective(q, known) < before).all()


def test_adapted_keys_segment_better_from_few_clicks():
    """At 1 to 3 clicks adapting keys by EM segments better by at least 5 points of mean IoU than keys as they are."""
    gains = [clicked.measure(clicks) for clicks in (1, 2, 3)]
    assert all(gain["adapted"] - gain["plain"] > 0.05 for gain in gains)


def test_known_values_propagate():
    """Where one class is predicted as another, the known values of a tenth of the pixels correct the others too."""
    found = propagated.measure()
    assert found["after"] > found["before"] + 0.2


@pytest.mark.parametrize(
    ("argument", "given"),
    [("steps", -1), ("precision", 0.0), ("alpha", -1.0), ("prior", "flat")],
)
def test_bad_arguments_are_named(argument, given):
    with pytest.raises(ValueError, match=argument):
        regard.build("probabilistic", **{argument: given})
