"""Dual attention: relational heads are their definition, and tell from fewer samples whether things are the same."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

import regard
from regard.blocks.attention import Attention
from regard.blocks.block import Block
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.projections.base import Grouped, Projection
from regard.projections.relational import Dual
from regard.train.fit import Recipe, Step, fit

CAUSAL, WIDTH, MOST, SIZE = Layout(causal=True), 24, 128_000, 64


def layer(kv_heads: int, **config: Any) -> Any:
    torch.manual_seed(0)
    return Attention(regard.build("softmax"), Dual(Sizes(WIDTH, 4, kv_heads, 6, 7), **config)).double()


def hidden() -> Tensor:
    return torch.randn(2, 17, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@measured()
def without() -> dict[str, float]:
    """How far a layer without relational heads is from grouped attention."""
    own = layer(2, relational=0)
    plain = Attention(regard.build("softmax"), Grouped(Sizes(WIDTH, 4, 2, 6, 7))).double()
    plain.load_state_dict(own.state_dict())
    return {"apart": (own(hidden(), CAUSAL) - plain(hidden(), CAUSAL)).abs().max().item()}


@measured(symmetric=(False, True))
def equation(symmetric: bool) -> dict[str, float]:
    """How far a layer is from its equation with every relation and symbol formed, beside plain heads."""
    own, x = layer(4, relational=2, relations=3, symbols="position", symmetric=symmetric), hidden()
    p = own.projection
    q, k = (matrix(x).unflatten(2, (4, 6)).transpose(1, 2) for matrix in (p.q, p.k))
    weights = (q @ k.mT / 6**0.5).masked_fill(torch.ones(17, 17, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
    sensory = weights[:, :2] @ p.v(x).unflatten(2, (2, 7)).transpose(1, 2)
    left, right = (matrix(x).unflatten(2, (3, 4)) for matrix in (p.relation_q, p.relation_k or p.relation_q))
    relations = torch.einsum("bilp,bjlp->bijl", left, right) / 4**0.5
    told = p.symbol_v(p.rows[torch.arange(17)].expand(2, -1, -1)).unflatten(2, (2, 7)).transpose(1, 2)[:, :, None]
    messages = torch.einsum("bijl,hle->bhije", relations, p.relation_out) + told
    relational = torch.einsum("bhij,bhije->bhie", weights[:, 2:], messages)
    want = p.out(torch.cat([sensory, relational], 1).transpose(1, 2).flatten(2))
    return {"apart": (own(x, CAUSAL) - want).abs().max().item()}


class Relation(nn.Module):
    """Whether a relation holds among objects, by one two-sided block and the mean of its tokens."""

    def __init__(self, projection: Projection, inner: int, width: int = 32) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(8, width), nn.Linear(width, 2)
        self.block = Block(Attention(regard.build("softmax"), projection), width, inner)

    def forward(self, objects: Tensor) -> Tensor:
        return self.out(self.block(self.into(objects)).mean(1))


def related(relation: str, generator: Generator, count: int) -> tuple[Tensor, Tensor]:
    """Objects of 8 random numbers, and whether the first is the other one, or one of three; in half of the cases."""
    others = 1 if relation == "same" else 3
    objects, holds = (
        torch.randn(count, 1 + others, 8, generator=generator),
        torch.randint(2, (count,), generator=generator),
    )
    at = 1 + torch.randint(others, (count,), generator=generator)
    like = objects[torch.arange(count), at]
    first = torch.where(holds[:, None] == 1, like, objects[:, 0])
    return torch.cat([first[:, None], objects[:, 1:]], 1), holds


@measured(kind=("plain", "dual"), relation=("same", "occurs"), seed=range(5))
def samples(kind: str, relation: str, seed: int) -> dict[str, int]:
    """Fresh samples seen until 95% of 2,048 others are told, 128,000 if never; and parameters."""
    torch.manual_seed(seed)
    if kind == "plain":
        model = Relation(Grouped(Sizes(32, 4, 4, 8, 8)), 80)
    else:
        model = Relation(Dual(Sizes(32, 4, 4, 8, 8), relational=2, symmetric=True, library=8), 64)
    held_out, answers = related(relation, torch.Generator().manual_seed(99), 2048)
    seen = [MOST]

    def loss(ready: nn.Module, generator: Generator) -> Tensor:
        objects, holds = related(relation, generator, SIZE)
        return F.cross_entropy(ready(objects), holds)

    def told(step: Step) -> bool:
        if step.number % 10:
            return False
        with torch.no_grad():
            enough = (model(held_out).argmax(-1) == answers).float().mean().item() >= 0.95
        seen[0] = step.number * SIZE if enough else MOST
        return enough

    fit(model, loss, Recipe(MOST // SIZE, 3e-3, decay=0.0, warm_up=0.0, seed=seed), until=told)
    return {"samples": seen[0], "parameters": sum(p.numel() for p in model.parameters())}


def takes_half(found: Figures) -> Finding:
    """Of whether an object occurs at most half the samples, at equal parameters within 5%; of same or not all told."""
    counts = [found("parameters", kind=kind)[0] for kind in ("plain", "dual")]
    told, shares = [], {}
    for relation in ("occurs", "same"):
        plain, dual = (found("samples", kind=kind, relation=relation) for kind in ("plain", "dual"))
        shares[relation] = sum(dual) / sum(plain)
        shown = " against ".join(listed(row, ",") for row in (dual, plain))
        told.append(f"{relation}: 95% after {shown} samples, {shares[relation]:.0%}")
    return Finding.of("; ".join(told), abs(counts[1] / counts[0] - 1) <= 0.05, shares["occurs"] <= 0.5)
