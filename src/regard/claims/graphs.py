"""Graph attention: a dictionary that is looked up along edges, and how nodes rank what they see."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

import regard
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.experiments.cell import Cell
from regard.mechanisms.structured.graph import GraphAttention
from regard.train.fit import Recipe, Step, fit

RATES = (1e-3, 3e-3, 1e-2)
BATCH = 32


class Dictionary(nn.Module):
    """One layer, one head, on graphs whose k queries are each led to by k pairs of a key and a value.

    Keys and values are embedded, added, and go through a ReLU; queries have a key, and a value that says so.

    Args:
        layer: of `regard.graph`. k: keys. width: of the embeddings and of the head.
    """

    def __init__(self, layer: str, k: int, width: int = 128) -> None:
        super().__init__()
        self.k, self.keys, self.values = k, nn.Embedding(k, width), nn.Embedding(k + 1, width)
        self.attention: GraphAttention = regard.graph(layer, channels=width, size=width)
        self.out = nn.Linear(width, k, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        """Logits ``(b, k, k)`` of the values of all keys; ``values (b, k)`` are what the pairs hold."""
        (b, k), names = values.shape, torch.arange(self.k)
        pairs = F.relu(self.keys(names) + self.values(values)).flatten(0, 1)
        queries = F.relu(self.keys(names) + self.values(torch.full_like(values, self.k))).flatten(0, 1)
        start = k * torch.arange(b)[:, None, None]
        sources, targets = (ends.expand(b, k, k) for ends in (start + names[None, None], start + names[:, None]))
        edges = torch.stack([sources.flatten(), targets.flatten()])
        return self.out(self.attention((pairs, queries), edges)).unflatten(0, (b, k))


def orders(k: int, count: int, generator: Generator) -> Tensor:
    """Random orders of the values, ``(count, k)``."""
    return torch.rand(count, k, generator=generator).argsort(1)


@measured(layer=("gatv2", "gat"), k=(10, 20), rate=RATES, steps=[1500])
def dictionary(layer: str, k: int, rate: float, steps: int) -> dict[str, float]:
    """The share of values that one trained layer gives for its keys, of orders that it has not seen."""
    torch.manual_seed(0)
    right: list[float] = []

    def loss(model: nn.Module, generator: Generator) -> Tensor:
        values = orders(k, BATCH, generator)
        logits = model(values)
        right.append((logits.argmax(-1) == values).double().mean().item())
        return F.cross_entropy(logits.flatten(0, 1), values.flatten())

    def known(step: Step) -> bool:
        return min(right[-20:]) == 1 and len(right) > 20

    model = fit(Dictionary(layer, k), loss, Recipe(steps, rate, decay=0.0), until=known)
    values = orders(k, 256, Generator().manual_seed(1))
    with torch.no_grad():
        return {"right": (model(values).argmax(-1) == values).double().mean().item()}


def only_gatv2_learns_it(found: Figures) -> Finding:
    """At its best rate GATv2 gives at least 99.9% of the values, GAT at most half."""
    ours, theirs = ([max(rates) for rates in found.by("k", "right", layer=name).values()] for name in ("gatv2", "gat"))
    figure = f"right at the best rate for 10 and 20 keys: GATv2 {listed(ours, '.1%')}, GAT {listed(theirs, '.1%')}"
    return Finding.of(figure, min(ours) >= 0.999, max(theirs) <= 0.5)


@measured(layer=("gat", "gatv2", "graph_transformer"), seed=range(5))
def ranks(layer: str, seed: int) -> dict[str, float]:
    """Kendall's τ of how pairs of 50 targets rank 50 sources, the mean, with random features and weights."""
    torch.manual_seed(seed)
    made, n = regard.graph(layer, channels=16, size=16), 50
    edges = torch.cartesian_prod(torch.arange(n), torch.arange(n)).mT
    with torch.no_grad():
        weights = made.double().weights(torch.randn(n, 16, dtype=torch.float64), edges)[:, 0].unflatten(0, (n, n)).mT
    signs = (weights[:, :, None] - weights[:, None]).sign().flatten(1)
    agree = signs @ signs.mT / (n * (n - 1))
    return {"tau": ((agree.sum() - agree.trace()) / (n * (n - 1))).item()}


def ranked(layer: str) -> list[Cell]:
    """How one layer ranks, in five draws."""
    return [ranks.cell(layer=layer, seed=seed) for seed in range(5)]


def alike(found: Figures) -> Finding:
    """τ is 1 for every pair of targets."""
    least = min(found("tau"))
    return Finding.of(f"mean τ of two targets {least:.4f}", least > 1 - 1e-9)


def unlike(found: Figures) -> Finding:
    """τ is below 0.99."""
    most = max(found("tau"))
    return Finding.of(f"mean τ of two targets at most {most:.2f}", most < 0.99)
