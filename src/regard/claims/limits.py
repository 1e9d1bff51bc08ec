"""How much softmax can change, and how far the tokens that a model's heads select stand apart from the rest."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from regard.claims.cells import measured, null, quick
from regard.claims.figures import Figures, Finding, listed
from regard.edits.trace import Trace
from regard.hosts import small
from regard.hosts.attach import attach
from regard.studies.softmax_limits import jacobian_norm, separable_share

COUNTS = (1, 4, 16, 64)
TOKENS = 160
TEXT = (
    "The lamp above the harbour was lit every evening by the same keeper, who climbed two hundred and six steps with a "
    "can of oil and a book that he never finished. When the fog came in from the east he rang the bell once a minute, "
    "and the boats answered with their horns, each in a voice of its own, so that he knew who was out and who had "
    "stayed at home. In winter the steps froze and he tied straw around his boots. Nobody had asked him to write down "
    "the names of the ships, but he did, in a column beside the hour, the wind and the height of the water, and when "
    "the tower was sold to a family from the city they found forty of these books in a chest below the stairs."
)


@quick(seed=[0])
@null(ties=[False])
@measured(temperature=(0.25, 1.0, 4.0), n=(2, 7, 31), ties=[True], seed=range(3))
def jacobians(temperature: float, n: int, ties: bool, seed: int) -> dict[str, float]:
    """Spectral norms of softmax's Jacobian times 2T: the largest of 300 draws, and where two logits tie on top."""
    generator = torch.Generator().manual_seed(seed)
    logits = temperature * 5 * torch.randn(300, n, generator=generator, dtype=torch.float64)
    top = torch.full((1, n), -40 * temperature, dtype=torch.float64)
    top[:, : 2 if ties else 1] = 0
    drawn, tied = ((2 * temperature * jacobian_norm(x, temperature)).max().item() for x in (logits, top))
    return {"largest": max(drawn, tied), "tied": tied}


def are_bounded(found: Figures) -> Finding:
    """Never above 1 to rounding, at ties above 0.999."""
    largest, tied = max(found("largest")), min(found("tied"))
    figure = f"norm times 2T at most {largest:.6f}, at two-way ties {tied:.6f}"
    return Finding.of(figure, largest <= 1 + 1e-12, tied >= 0.999)


@cache
def looked_at(model: str) -> tuple[list[Tensor], list[Tensor]]:
    """By layer: A ``(heads, n, n)`` and the values ``(heads, n, e)`` of a model over one text."""
    network, tokenizer = small.load(model)
    ids = tokenizer(TEXT, return_tensors="pt").input_ids[:, :TOKENS]
    trace = Trace("q", "k", "v")
    with torch.no_grad(), attach(network, edits=[trace]):
        network(ids)
    found = [], []
    for layer in sorted({layer for _, layer in trace.kept}):
        q, k, v = (trace.get(site, layer)[0] for site in ("q", "k", "v"))
        k, v = (x.repeat_interleave(q.shape[0] // x.shape[0], 0) for x in (k, v))
        scores = q @ k.mT * q.shape[-1] ** -0.5
        hidden = torch.ones_like(scores, dtype=torch.bool).triu(1)
        found[0].append(scores.masked_fill(hidden, -torch.inf).softmax(-1))
        found[1].append(v)
    return found


@quick(model=["tiny"], count=[1, 64])
@null(values=["orthogonal"])
@measured(model=("tiny", "smollm2"), count=COUNTS, values=["own"])
def selected(model: str, count: int, values: str) -> dict[str, float]:
    """The share of the selected tokens that stand apart, over all heads and the rows behind the 100th of a text.

    Orthogonal values, one direction each, are all as far from each other: nothing of their geometry is left.
    """
    shares = []
    for weights, v in zip(*looked_at(model), strict=True):
        for a, x in zip(weights, v, strict=True):
            x = torch.eye(x.shape[0]) if values == "orthogonal" else x
            for row in range(100, x.shape[0], 11):
                shares.append(separable_share(a[row : row + 1, : row + 1], x[: row + 1], count))
    return {"share": torch.cat(shares).mean().item()}


def falls(found: Figures) -> Finding:
    """From the fewest selected to the most, by a tenth at least."""
    shares = found.by("model", "share")
    figure = "; ".join(f"{model} {listed(values, '.0%')}" for model, values in shares.items())
    counts = ", ".join(map(str, dict.fromkeys(found("count"))))
    falls = all(values[0] - values[-1] >= 0.1 for values in shares.values())
    return Finding.of(f"share that stands apart, of {counts} selected: {figure}", falls)
