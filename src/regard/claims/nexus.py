"""Attention of higher order: one layer of order 2 looks up two hops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

import regard
from regard.blocks.attention import Attention
from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding, listed
from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.projections.base import Grouped
from regard.projections.nexus import Nexus
from regard.train.fit import Recipe, fit

NAMES, FACTS = 12, 6


def questions(generator: Generator, count: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """A chain of facts ``name -> name`` in random order, a name, and what the fact about its fact's name says."""
    names = torch.rand(count, NAMES, generator=generator).argsort(1)[:, : FACTS + 1]
    at, row = torch.randint(FACTS - 1, (count,), generator=generator), torch.arange(count)
    order = torch.rand(count, FACTS, generator=generator).argsort(1)
    facts = [part.gather(1, order) for part in (names[:, :-1], names[:, 1:])]
    return facts, names[row, at], names[row, at + 2]


class Lookup(nn.Module):
    """One layer over facts, each one token, and the question; the answer is read from the question's token."""

    def __init__(self, order: int, width: int = 48, heads: int = 4) -> None:
        super().__init__()
        self.about, self.says, self.asked = (nn.Embedding(NAMES, width) for _ in range(3))
        size = width // heads
        self.attention = Attention(regard.build("softmax"), Nexus(Sizes(width, heads, heads, size, size), order))
        self.norm, self.out = nn.RMSNorm(width), nn.Linear(width, NAMES)

    def forward(self, facts: list[Tensor], asked: Tensor) -> Tensor:
        x = torch.cat([self.about(facts[0]) + self.says(facts[1]), self.asked(asked)[:, None]], 1)
        return self.out((x + self.attention(self.norm(x), Layout(causal=True)))[:, -1])


@measured(order=(1, 2), seed=range(2), steps=[1500])
def two_hops(order: int, seed: int, steps: int) -> dict[str, float]:
    """The share of two-hop questions that one trained layer answers."""

    def loss(model: nn.Module, generator: Generator) -> Tensor:
        facts, asked, answer = questions(generator, 256)
        return F.cross_entropy(model(facts, asked), answer)

    torch.manual_seed(seed)
    model = fit(Lookup(order), loss, Recipe(steps, seed=seed, decay=0.0))
    facts, asked, answer = questions(torch.Generator().manual_seed(7), 2048)
    with torch.no_grad():
        return {"right": (model(facts, asked).argmax(-1) == answer).float().mean().item()}


def looks_up(found: Figures) -> Finding:
    """Order 2 answers at least 95% of the questions, order 1 at most 60%."""
    one, two = (found("right", order=order) for order in (1, 2))
    figure = f"two hops over six facts: {listed(two, '.1%')} with order 2, {listed(one, '.1%')} with order 1"
    return Finding.of(figure, min(two) >= 0.95, max(one) <= 0.60)


@measured()
def first_order() -> dict[str, float | bool]:
    """How far a layer of order 1 is from multi-head attention, and whether orders 1 to 4 have its parameters."""

    def layer(order: int) -> Attention:
        torch.manual_seed(0)
        return Attention(regard.build("softmax"), Nexus(Sizes(24, 4, 4, 6, 7), order))

    plain, x = Attention(regard.build("softmax"), Grouped(Sizes(24, 4, 4, 6, 7))), torch.randn(2, 17, 24)
    counts = {sum(p.numel() for p in layer(order).parameters()) for order in (1, 2, 3, 4)}
    plain.load_state_dict(layer(1).state_dict())
    apart = layer(1)(x, Layout(causal=True)) - plain(x, Layout(causal=True))
    return {"apart": apart.abs().max().item(), "same_count": counts == {plain.projection.parameter_count}}


def is_multi_head(found: Figures) -> Finding:
    """Order 1 is multi-head attention bit for bit, and no order has more parameters."""
    apart, same = found.one("apart"), found.one("same_count")
    return Finding.of(f"order 1 and multi-head attention differ by {apart:.0g}, equal counts", apart == 0, same)
