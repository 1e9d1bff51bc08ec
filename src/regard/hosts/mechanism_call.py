"""One call of a mechanism: any rows of the A that it implies, from what it was given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from regard.core.layout import Layout
from regard.core.mechanism import Mechanism
from regard.core.tile import Tile, Tokens
from regard.hosts.softmax_call import BLOCK, LEAST_ROWS
from regard.mechanisms.sparse.window import SlidingWindow


@dataclass(frozen=True)
class ImplicitAttention:
    """A of one call of a mechanism, row by row; memory is that of the rows asked for.

    Args:
        mechanism: what defines A. q: ``(batch, heads, n, d)``. k: ``(batch, kv_heads, m, d)``. layout: who sees whom.
        signals: the mechanism's own inputs. v: ``(batch, kv_heads, m, e)``, where the mechanism is not linear in it.
    """

    mechanism: Mechanism
    q: Tensor
    k: Tensor
    layout: Layout = Layout(causal=True)
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    v: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.q.device

    @property
    def n(self) -> int:
        return self.q.shape[2]

    @property
    def m(self) -> int:
        return self.k.shape[2]

    @property
    def aligned(self) -> bool:
        """Whether a query stands in the slot of its own token, the last ones of both side by side."""
        return self.layout.causal or self.n <= self.m

    @property
    def shift(self) -> int:
        """The slot of the first query."""
        return self.m - self.n if self.aligned else 0

    @property
    def bytes(self) -> int:
        """What q, k and signals take in float32."""
        own = (*self.signals.values(), *(() if self.v is None else (self.v,)))
        return 4 * (self.q.numel() + self.k.numel() + sum(x.numel() for x in own))

    @property
    def window(self) -> int | None:
        """How many keys back a row may see, where that is all that restricts it."""
        mechanism = self.mechanism
        if isinstance(mechanism, SlidingWindow) and self.layout.causal and not mechanism.sinks.count:
            return mechanism.window.size
        return None

    @property
    def sums_to_one(self) -> bool:
        """Whether rows are shares by themselves: no entry is negative, and they add up to one at most."""
        return self.mechanism.traits.rows is not None and self.mechanism.traits.sign == "nonnegative"

    def blocks(self, rows: Tensor | None = None) -> list[Tensor]:
        """The ascending ``rows``, or all that have a slot, in blocks of about `BLOCK` entries of A."""
        rows = torch.arange(max(-self.shift, 0), self.n, device=self.q.device) if rows is None else rows
        size = max(LEAST_ROWS, BLOCK // max(self.q.shape[0] * self.q.shape[1] * self.m, 1))
        return list(rows.split(size)) if len(rows) else []

    @torch.no_grad()
    def weights(self, rows: Tensor) -> Tensor:
        """The ``rows`` of A, or of `Mechanism.influence`, ``(batch, heads, rows, m)``, in float32 or float64.

        Raises:
            TypeError: a mechanism that is not linear in v, without v.
        """
        found = torch.cat([self.shown(span) for span in spans(rows)], dim=2)
        return found.to(torch.promote_types(found.dtype, torch.float32))

    def shown(self, span: slice) -> Tensor:
        """Some neighbouring rows."""
        if self.v is None or self.mechanism.traits.linear:
            return self.mechanism.rows(self.q, self.k, self.layout, span, **self.signals)
        return self.mechanism.influence(self.q, self.k, self.v, self.layout, span, **self.signals)

    def visible(self, rows: Tensor) -> Tensor | None:
        """As in `core.tile.Tile`."""
        if self.layout.plain and self.window is None:
            return None
        n, m, device = self.n, self.m, self.q.device
        parts = [
            self.layout.allowed(n, m, device, span)
            if self.window is None
            else self.mechanism.support(n, m, self.layout, device, span)
            for span in spans(rows)
        ]
        return torch.cat(parts, dim=2)

    def tile(
        self,
        layer: int,
        rows: Tensor,
        weights: Tensor,
        tokens: Tokens | None = None,
        sequence: int = 0,
        share: float = 1.0,
    ) -> Tile:
        """``weights`` of the ``rows`` as they are handed to probes."""
        batch, device = self.q.shape[0], self.q.device
        real = self.layout.key_mask
        keys = torch.ones(batch, self.m, dtype=torch.bool, device=device) if real is None else real
        slots = rows + self.shift
        every = torch.ones(batch, len(rows), dtype=torch.bool, device=device)
        return Tile(
            layer=layer,
            weights=weights,
            rows=slots,
            start=0,
            m=self.m,
            queries=keys[:, slots] if self.aligned else every,
            key_mask=keys,
            causal=self.layout.causal,
            visible=self.visible(rows),
            tokens=tokens,
            sequence=sequence,
            share=share,
            cross=not self.aligned,
        )


def spans(rows: Tensor) -> list[slice]:
    """Ascending ``rows`` as runs of neighbours."""
    gaps = (rows.diff() != 1).nonzero()[:, 0].tolist()
    starts, stops = [0, *(gap + 1 for gap in gaps)], [*(gap + 1 for gap in gaps), len(rows)]
    return [slice(int(rows[a]), int(rows[b - 1]) + 1) for a, b in zip(starts, stops, strict=True)]


def normalised_magnitude(weights: Tensor) -> Tensor:
    """``|A_ij| / Σ_j |A_ij|``: what each key has of its row, whatever the sign; rows of zeros stay."""
    sizes = weights.abs()
    return sizes / sizes.sum(-1, keepdim=True).clamp(min=torch.finfo(sizes.dtype).tiny)
