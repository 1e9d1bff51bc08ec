"""All-or-here attention: a router decides, query by query and head by head, between all of the past and a window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.build import build_text
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, Mechanism, Signal, Traits
from regard.core.state import State, count_new
from regard.mechanisms.cached import KeyValues
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.sparse.delta import dense_rows


@dataclass(frozen=True)
class Routed(State):
    """The local mechanism's state, and all keys and values for the queries that are sent to all of them.

    Args:
        local: the state of the local mechanism. cache: every key and value so far.
    """

    local: State
    cache: KeyValues


@published(
    "aha",
    family="sparse",
    row=322,
    title="Learning When Not to Attend Globally",
    year=2025,
    aliases=("all_or_here",),
    fidelity="hand values",
    claim=(
        Claim(
            "all queries routed to all keys is softmax attention, none is the window",
            cells="sparse.both_ends",
            holds="common.within(most=1e-12)",
        ),
        Claim(
            "without gradients only routed queries are computed over all keys",
            cells="sparse.routed",
            holds="sparse.costs_its_share",
        ),
        Claim(
            "of the queries of SmolLM2, frozen, with trained routers, at most a fifth needs more than 32 keys and the "
            "first four for a loss within 1%, and the fewer the further the others see",
            cells="token_routes.routed",
            holds="token_routes.most_need_little",
        ),
    ),
)
class AllOrHere(Mechanism):
    """Each query of each head attends to all earlier keys or, where its router says so, to the nearest only.

        A_i = b_i D_i + (1 − b_i) S_i,   b_i = [r_i > 1/2],   ∂b_i/∂r_i := 1  (straight-through)

    A is ``weights``; r is the signal ``route``, D softmax attention, S the local mechanism ``of``. With gradients both
    are computed for all queries; without, D for those with b_i = 1 only.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)``, ``route (b, h, n)`` -> ``(b, h, n, e)``; causal.
    Cost: that of S, and at most that of softmax attention. State: that of S, and all keys and values.

    Args:
        of: the local mechanism, or its text; one without signals.

    Raises:
        ValueError: a mechanism that is not causal, or has signals of its own.

    Paper: Luo et al., December 2025, where a penalty on the mean of r makes the router sparing: in a network of
    aha layers add it to the loss, in a Transformers model that stays as it is `regard.train.token_routers` does.
    """

    signals = MappingProxyType(
        {
            "route": Signal(
                "above 1/2 sends the query to all keys", "query", "heads", low=0, high=1, start=0.9, hard=True
            )
        }
    )
    traits = Traits(bidirectional=False, cross=False, flops="at most")

    def __init__(self, of: str | Mechanism = "window(size=256)"):
        super().__init__()
        of = build_text(of) if isinstance(of, str) else of
        if not of.traits.causal or of.signals:
            raise wrong("of", type(of).__name__, "a causal mechanism without signals")
        self.local, self.full = of, Softmax()
        same = {
            "rows": of.traits.rows,
            "sign": of.traits.sign,
            "grouped": of.traits.grouped,
            "packed": of.traits.packed,
            "masked": of.traits.masked,
        }
        self.traits = replace(self.traits, **same)

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(causal=True), **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        chosen = straight_through(signals["route"])[..., None]
        return chosen * self.full.weights(q, k, layout) + (1 - chosen) * self.local.weights(q, k, layout)

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        chosen = straight_through(signals["route"][:, :, rows])[..., None]
        full, local = (mechanism.rows(q, k, layout, rows) for mechanism in (self.full, self.local))
        return chosen * full + (1 - chosen) * local

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(causal=True), **signals: Tensor
    ) -> Tensor:
        self.check(q, k, v, layout, signals)
        return self.mix(self.local(q, k, v, layout), q, k, v, layout, signals["route"])

    def mix(self, local: Tensor, q: Tensor, k: Tensor, v: Tensor, layout: Layout, route: Tensor) -> Tensor:
        """The local output, replaced by that of all keys where the router says so."""
        if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, route)):
            return local + straight_through(route)[..., None] * (self.full(q, k, v, layout) - local)
        out, group = local.clone(), q.shape[1] // k.shape[1]
        for b, h in (route > 0.5).any(2).nonzero().tolist():
            slots = (route[b, h] > 0.5).nonzero()[:, 0]
            one, own = slice(b, b + 1), slice(h // group, h // group + 1)
            part = dense_rows(q[one, h : h + 1], k[one, own], v[one, own], layout.of(b, h), slots)
            out[b, h, slots] = part[0, 0]
        return out

    def start(self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Routed:
        """Nothing seen."""
        local = self.local.start(batch, device=device, dtype=dtype)
        seen = torch.zeros(batch, dtype=torch.int64, device=device)
        return Routed(seen, local, KeyValues.empty(batch, device, dtype))

    def extend(
        self, q: Tensor, k: Tensor, v: Tensor, state: Any, key_mask: Tensor | None = None, **signals: Tensor
    ) -> tuple[Tensor, Routed]:
        """The local mechanism's new rows, replaced by those over the cache where the router says so."""
        self.check(q, k, v, Layout(causal=True), signals)
        _, seen = count_new(state, key_mask, k.shape[2], k.shape[0])
        local, inner = self.local.extend(q, k, v, state.local, key_mask)
        cache = state.cache.append(k, v, key_mask)
        out = self.mix(local, q, cache.k, cache.v, Layout(causal=True, key_mask=cache.key_mask), signals["route"])
        return out, Routed(seen, inner, cache)

    def cost(self, shape: Shape, layout: Layout = Layout(causal=True)) -> Cost:
        local, full = self.local.cost(shape, layout), self.full.cost(shape, layout)
        return Cost(local.flops + full.flops, local.bytes + full.bytes, local.state_bytes + full.state_bytes)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("window of 7", cls("window(size=7)"), heads=3, kv_heads=3),
            Example("window of 3 with sinks, grouped", cls("window(size=3, sinks=2)"), heads=4, kv_heads=2),
        ]


def straight_through(route: Tensor) -> Tensor:
    """``[r > 1/2]``, with the gradient of r."""
    return (route > 0.5).to(route.dtype) + (route - route.detach())
