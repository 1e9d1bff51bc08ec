"""Every rank gathers all keys and values, and computes its own queries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regard.core.cost import Shape
from regard.core.kinds import Sample
from regard.kernels.dense import merge_into
from regard.parallel import local
from regard.parallel.base import CHECK, Call, SoftmaxShards
from regard.parallel.plan import Plan
from regard.parallel.ring import shape_of, token_numbers


class Gather(SoftmaxShards):
    """All keys and values on every rank, in one collective; backward once more, and one that returns their gradients.

    Fewer steps than `Ring`, and all keys in memory while it computes.
    """

    how = "gather"

    def gathered(self, k: Tensor, v: Tensor, call: Call) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of every rank."""
        kv, d = torch.cat([k, v], -1), k.shape[-1]
        every = call.group.gather(kv, [shape_of(kv, call, rank) for rank in range(call.ranks)])
        return [(part[..., :d], part[..., d:]) for part in every]

    def forward_pass(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
        out, lse = local.attend(q, k, v, [], call.scaling(q))
        for owner, (keys, values) in enumerate(self.gathered(k, v, call)):
            found = local.attend(q, keys, values, call.pieces(call.rank, owner), call.scaling(q))
            merge_into(out, lse, *found)
        return out, (out, lse)

    def backward_pass(self, grad, q, k, v, saved, call):
        (out, lse), d = saved, k.shape[-1]
        dq, parts = torch.zeros_like(q, dtype=out.dtype), []
        for owner, (keys, values) in enumerate(self.gathered(k, v, call)):
            pieces = call.pieces(call.rank, owner)
            found = local.gradients(grad, q, keys, values, out, lse, pieces, call.scaling(q))
            dq += found[0]
            parts.append(torch.cat(found[1:], -1))
        own = tuple(parts[call.rank].shape)
        dkv = torch.stack(call.group.exchange(parts, [own] * call.ranks).wait()).sum(0)
        return dq, dkv[..., :d], dkv[..., d:]

    def traffic(self, plan: Plan, shape: Shape, *, backward: bool = False, check: bool = True, **given) -> list[int]:
        """A rank gives its keys and values to all others; backward, also the gradients of theirs."""
        wide, others = max(shape.itemsize, 4), plan.ranks - 1
        return [
            token_numbers(shape) * (others * size * shape.itemsize + backward * (plan.length - size) * wide)
            + CHECK * others * (check and not backward)
            for size in plan.sizes
        ]

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [Sample("gather", cls())]
