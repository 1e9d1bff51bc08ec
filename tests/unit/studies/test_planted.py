"""One planted key decides the label: softmax attention finds it, linear attention drowns in the others."""

from __future__ import annotations

import itertools

import pytest
import torch

from regard.studies.softmax_vs_linear import PlantedClassifier, linear_limit, planted_keys

SETTINGS = [(160, 8), (176, 6), (192, 5)]
STRENGTH = 1.25


def turned(dim: int, seed: int) -> tuple[torch.Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0], generator


def accuracy(model: PlantedClassifier, x: torch.Tensor, label: torch.Tensor) -> float:
    with torch.no_grad():
        return ((model(x) > 0) == (label > 0)).double().mean().item()


@pytest.mark.parametrize(("n", "dim"), SETTINGS)
def test_constructed_softmax_finds_the_planted_key(n, dim):
    """Exact constructions, five seeds: softmax at least 95%, the best linear scores at most 60% and as predicted."""
    found = {"softmax": [], "linear": []}
    for seed in range(5):
        turn, generator = turned(dim, seed)
        x, label = planted_keys(2000, n, dim, STRENGTH, turn, generator)
        for weighting, list_ in found.items():
            list_.append(accuracy(PlantedClassifier(dim, weighting).construct(turn, STRENGTH), x, label))
    assert min(found["softmax"]) >= 0.95
    assert sum(found["linear"]) / 5 <= 0.6
    assert abs(sum(found["linear"]) / 5 - linear_limit(n, STRENGTH)) < 0.02


def test_a_stronger_key_closes_the_gap():
    """From a mark of 1.25 to one of 16 the gap between the constructions falls at every step, to under 1%."""
    turn, gaps = turned(5, 0)[0], []
    for strength in (1.25, 2.0, 4.0, 8.0, 16.0):
        x, label = planted_keys(4000, 192, 5, strength, turn, torch.Generator().manual_seed(1))
        right = {
            w: accuracy(PlantedClassifier(5, w).construct(turn, strength), x, label) for w in ("softmax", "linear")
        }
        gaps.append(right["softmax"] - right["linear"])
    assert all(later < earlier for earlier, later in itertools.pairwise(gaps))
    assert gaps[-1] < 0.01


def test_planted_keys_need_room_and_a_mark():
    """Too few channels, a mark among the others' and another weighting are refused by name."""
    turn, generator = turned(5, 0)
    for arguments, message in (((3, 1.25), "dim: got 3"), ((5, 1.0), "strength: got 1.0")):
        with pytest.raises(ValueError, match=message):
            planted_keys(1, 7, *arguments, turn, generator)
    with pytest.raises(ValueError, match="weighting: got 'cosine'"):
        PlantedClassifier(5, "cosine")
