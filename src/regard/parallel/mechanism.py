"""Attention over shards as a mechanism, so that models take it in the place of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Mechanism, Traits
from regard.parallel.attend import kernel_of
from regard.parallel.base import Call, Sharded, Shards
from regard.parallel.group import Distributed, Group
from regard.parallel.plan import Plan
from regard.parallel.state import States
from regard.parallel.tree import Tree


class Parallel(Mechanism):
    """A mechanism of which each rank computes the rows of its own tokens: a model's layers with it run on shards.

        with regard.attach(model, Parallel(plan)):  # on every rank, with the rank's own tokens
            model(ids, position_ids=plan.positions(rank)[None])

    `extend` is decoding: every rank is given the same new tokens, keeps a part of their keys and values, and gets all
    outputs, of `Tree`; states of linear attention are the same on all ranks.

    Shapes: as `attend` on this rank. Whole calls are self-attention, without padding; packed documents are the plan's.

    Args:
        plan: who holds which tokens; of whole calls. how: as for `attend`. group: the ranks, None for all.

    Raises:
        ValueError: in a call, padding, a mask, or other tokens than the plan says.
    """

    traits = Traits(masked=False, biased=False, packed=False, rows="one", sign="nonnegative")

    def __init__(self, plan: Plan, how: str | Sharded = "ring", group: Group | None = None) -> None:
        super().__init__()
        self.plan, self.kernel, self.group = plan, kernel_of(how), group
        if self.kernel.traits.everywhere:
            raise wrong("how", repr(self.kernel.how), "how whole texts run; decoding is tree attention by itself")
        self.signals = self.kernel.signals
        if isinstance(self.kernel, States):
            self.inner = self.kernel.mechanism  # whose parameters are this one's
            self.traits = replace(self.kernel.mechanism.traits, packed=False)

    @property
    def ranks(self) -> Group:
        """The group, looked for when it is used."""
        return Distributed() if self.group is None else self.group

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)
        call = Call(self.plan, self.plan, self.ranks, layout.causal)
        return self.kernel.attend(q, k, v, call, **signals)

    def check(self, q, k, v, layout, signals) -> None:
        if layout.key_mask is not None and not bool(layout.key_mask.all()):
            raise wrong("layout.key_mask", "padding", "none: shards hold tokens alone")
        super().check(q, k, v, replace(layout, key_mask=None), signals)

    def start(self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
        """No tokens yet."""
        if isinstance(self.kernel, States):
            return self.kernel.mechanism.start(batch, device=device, dtype=dtype)
        nothing = torch.empty(batch, 0, 0, 0, device=device, dtype=dtype)
        seen = torch.zeros(batch, dtype=torch.int64, device=device)
        return Shards(seen, nothing, nothing, Plan(((),) * self.plan.ranks))

    def held(self, k: Tensor, v: Tensor) -> Shards:
        """The state after a whole call, of this rank's keys and values."""
        seen = torch.full((k.shape[0],), self.plan.length, dtype=torch.int64, device=k.device)
        return Shards(seen, k, v, self.plan)

    def extend(
        self, q: Tensor, k: Tensor, v: Tensor, state: Any, key_mask: Tensor | None = None, **signals: Tensor
    ) -> tuple[Tensor, Any]:
        if isinstance(self.kernel, States):
            return self.kernel.mechanism.extend(q, k, v, state, key_mask, **signals)
        self.check(q, k, v, Layout(causal=True, key_mask=key_mask), signals)
        return Tree().decode(q, k, v, state, self.ranks)
