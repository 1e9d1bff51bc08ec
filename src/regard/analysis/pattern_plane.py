"""Patterns of attention in a plane: an autoencoder of two numbers a map, in which like heads lie together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from regard.analysis.base import Result
from regard.core.errors import wrong


@dataclass(frozen=True)
class PatternPlane(Result):
    """Where maps lie.

    Args:
        places: ``(maps, 2)``. error: mean squared error of the maps made of them again. linear: the same by the two
            strongest principal components, as a baseline.
    """

    places: Tensor
    error: float
    linear: float
    name = "pattern_plane"

    def neighbours(self, labels: Tensor) -> float:
        """The share of maps whose nearest other one has their label."""
        far = torch.cdist(self.places, self.places)
        nearest = far.fill_diagonal_(torch.inf).argmin(1)
        return float((labels[nearest] == labels).double().mean())

    def table(self) -> list[dict[str, Any]]:
        return [{"map": i, "x": x, "y": y} for i, (x, y) in enumerate(self.places.tolist())]


class PatternAutoencoder(nn.Module):
    """From a map to two numbers and back: z = E₂ relu(E₁ a), A' = softmax of rows of D₂ relu(D₁ z).

    Shapes: ``(maps, n, n)`` -> places ``(maps, 2)`` and maps ``(maps, n, n)``.

    Args:
        tokens: n. inner: hidden units. seed: of the weights.
    """

    def __init__(self, tokens: int, inner: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.tokens = tokens
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encode = nn.Sequential(nn.Linear(tokens**2, inner), nn.ReLU(), nn.Linear(inner, 2))
            self.decode = nn.Sequential(nn.Linear(2, inner), nn.ReLU(), nn.Linear(inner, tokens**2))

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        places = self.encode(self.tokens * maps.flatten(1))
        return places, self.decode(places).unflatten(1, (self.tokens, self.tokens)).softmax(2)


def pattern_plane(maps: Tensor, steps: int = 400, inner: int = 64, rate: float = 3e-3, seed: int = 0) -> PatternPlane:
    """The plane of some maps, by an autoencoder that is trained on them.

        loss = mean over rows of KL(A ‖ A')

    Args:
        maps: ``(maps, n, n)``, rows that sum to one, all of texts or images of as many tokens. steps, rate: of
            Adam, 32 maps a step. inner: hidden units. seed: of weights and batches.

    Raises:
        ValueError: fewer than three maps, or another shape.

    Paper: Li et al., arXiv 2303.13731, whose abstract has an autoencoder of all attention patterns; its sizes are ours.
    """
    if maps.dim() != 3 or maps.shape[1] != maps.shape[2] or len(maps) < 3:
        raise wrong("maps", f"shape {tuple(maps.shape)}", "(maps, n, n), at least three of them")
    given = maps.detach().float().cpu()
    model = PatternAutoencoder(maps.shape[1], inner, seed)

    draw, adam = Generator().manual_seed(seed), torch.optim.Adam(model.parameters(), lr=rate)
    with torch.enable_grad():
        for _ in range(steps):
            some = given[torch.randint(len(given), (32,), generator=draw)]
            _, again = model(some)
            loss = torch.special.xlogy(some, some / again.clamp(min=1e-12)).sum(2).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
    with torch.no_grad():
        places, again = model(given)
    return PatternPlane(places, float((again - given).square().mean()), linear_error(given))


def linear_error(maps: Tensor) -> float:
    """The mean squared error of maps made again of their two strongest principal components."""
    flat = maps.flatten(1).double()
    sizes = torch.linalg.svdvals(flat - flat.mean(0))
    return float(sizes[2:].square().sum() / flat.numel())
