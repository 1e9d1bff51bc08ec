"""A single attention layer whose queries and keys are random and frozen, fitted in closed form."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from regard.core.atlas import Claim, published
from regard.core.errors import wrong


@published(
    "random_features",
    family="theory",
    kind="study",
    row=337,
    title="What can a Single Attention Layer Learn? A Study Through the Random Features Lens",
    arxiv="2307.11353",
    year=2023,
    aliases=("random_feature_attention",),
    fidelity="hand values",
    claim=(
        Claim(
            "for targets that do not know the order of tokens its risk at 2,000 examples is half of an MLP's at most",
            cells="features.risks(target='mean')",
            holds="features.is_half",
        ),
        Claim(
            "weights with the identity as their mean learn correlations better than weights of mean zero",
            cells="features.risks(target='correlation')",
            holds="features.prefers_the_identity",
        ),
    ),
)
def attention_features(query: Tensor, keys: Tensor, maps: Tensor) -> Tensor:
    """What is fitted linearly, ``(b, M d)``: ``mean_i relu(x_0ᵀ W_m x_i) x_i`` for each of the maps W.

    Args:
        query: x_0 ``(b, d)``, and keys: x_i ``(b, N, d)``, whose last number is 1 where functions of one alone are to
            be learned, as in the paper. maps: W ``(M, d, d)``.

    Paper: Fu et al., arXiv 2307.11353.
    """
    scores = torch.relu(torch.einsum("bd,mde,bie->bmi", query, maps, keys))
    return (scores @ keys / keys.shape[1]).flatten(1)


def network_features(query: Tensor, keys: Tensor, maps: Tensor) -> Tensor:
    """Those of an MLP of one hidden layer on all tokens in a row: ``relu(W [x_0; x_1; …])``, W ``(M, (N + 1) d)``."""
    return torch.relu(torch.cat([query[:, None], keys], 1).flatten(1) @ maps.mT)


def gaussian(count: int, d: int, mean: float, generator: Generator) -> Tensor:
    """Maps ``mean · I + G / √2`` over d, G of independent normal numbers, ``(count, d, d)``."""
    noise = torch.randn(count, d, d, generator=generator, dtype=torch.float64)
    return (mean * torch.eye(d, dtype=torch.float64) + noise * 0.5**0.5) * d**-0.5


def bounded_fit(features: Tensor, y: Tensor, radius: float) -> Tensor:
    """The weights v of norm ``radius`` at most with the least squared error, ``(M,)``: the paper's constrained fit.

    A ridge of λ is the constrained fit for the norm that it ends with, and its norm falls with λ: λ is found by halving
    its logarithm's range, and is zero where the least squares solution is short enough.

    Args:
        features: ``(examples, M)``. y: ``(examples,)``. radius: of v, above zero.

    Raises:
        ValueError: a radius of zero or less.
    """
    if radius <= 0:
        raise wrong("radius", f"{radius:g}", "above 0")
    left, values, right = torch.linalg.svd(features, full_matrices=False)
    kept = values > values.max() * max(features.shape) * torch.finfo(values.dtype).eps
    cross, values, right = (left.mT @ y)[kept], values[kept], right[kept]
    plain = cross / values
    if plain.norm() <= radius:
        return plain @ right
    low, high = -60.0, 60.0 + float(values.square().max().log())
    for _ in range(80):
        middle = (low + high) / 2
        longer = (cross * values / (values.square() + torch.tensor(middle).double().exp())).norm() > radius
        low, high = (middle, high) if longer else (low, middle)
    return cross * values / (values.square() + torch.tensor(high).double().exp()) @ right


def risk_of_ridge(features: Tensor, y: Tensor, sizes: tuple[int, int]) -> float:
    """The mean squared error on the last examples over their variance, by the ridge that is best on those in between.

    Each ridge is the fit under a bound on the norm (`bounded_fit`), so that the best of them is the best bound.

    Args:
        features: ``(examples, M)``. y: ``(examples,)``. sizes: examples to fit, and to choose the ridge by.

    Raises:
        ValueError: no examples are left to test.
    """
    fitted, held = sizes
    if fitted + held >= y.shape[0]:
        raise wrong("sizes", f"{sizes} of {y.shape[0]}", "some examples left to test")
    scale = features[:fitted].square().mean().sqrt()
    x, center = features / scale, y[:fitted].mean()
    values, vectors = torch.linalg.eigh(x[:fitted] @ x[:fitted].mT)
    cross, target = x @ x[:fitted].mT @ vectors, vectors.mT @ (y[:fitted] - center)
    found = {}
    for power in range(-6, 7):
        told = cross @ (target / (values.clamp(min=0) + 10.0**power)) + center
        errors = (told - y).square()
        found[errors[fitted : fitted + held].mean().item()] = errors[fitted + held :].mean().item()
    return found[min(found)] / y[fitted + held :].var().item()
