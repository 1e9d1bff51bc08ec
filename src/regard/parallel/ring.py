"""Keys and values travel around the ring of ranks, and each rank merges what its queries see of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regard.core.cost import Shape
from regard.core.kinds import Sample
from regard.core.mechanism import accumulate_dtype
from regard.kernels.dense import merge_into
from regard.parallel import local
from regard.parallel.base import CHECK, Call, SoftmaxShards
from regard.parallel.plan import Plan


class Ring(SoftmaxShards):
    """Ring attention: P − 1 times every rank hands on keys and values, and merges what it saw, online.

        (out, lse) ← (out, lse) ⊕ attention over the keys of rank r, r − 1, r − 2 …

    Merging is that of `core.reduction.Partial`. Backward, the gradients of keys and values travel with them, and once
    more home. A rank computes while the next keys are under way, and holds two ranks' keys at a time.

    Paper: Liu et al., Ring Attention, arXiv 2310.01889.
    """

    how = "ring"

    def forward_pass(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
        out, lse = local.attend(q, k, v, [], call.scaling(q))
        for owner, keys, values in tour(torch.cat([k, v], -1), k.shape[-1], call):
            found, sums = local.attend(q, keys, values, call.pieces(call.rank, owner), call.scaling(q))
            merge_into(out, lse, found, sums)
        return out, (out, lse)

    def backward_pass(self, grad, q, k, v, saved, call):
        (out, lse), d = saved, k.shape[-1]
        kv, wide = torch.cat([k, v], -1), accumulate_dtype(k.dtype)
        dq, dkv = torch.zeros_like(q, dtype=wide), None
        for owner, keys, values in tour(kv, d, call):
            pieces = call.pieces(call.rank, owner)
            found = local.gradients(grad, q, keys, values, out, lse, pieces, call.scaling(q))
            dq += found[0]
            own = torch.cat(found[1:], -1)
            dkv = own if dkv is None else dkv + own  # what came from the rank before is of this owner's keys
            dkv = call.group.shift(dkv, shape_of(kv, call, owner - 1)).wait()[0]
        assert dkv is not None
        return dq, dkv[..., :d], dkv[..., d:]

    def traffic(self, plan: Plan, shape: Shape, *, backward: bool = False, check: bool = True, **given) -> list[int]:
        """Every rank hands on all keys and values but those of the rank after it; backward, all gradients too."""
        wide = max(shape.itemsize, 4)
        return [
            token_numbers(shape)
            * ((plan.length - plan.size((r + 1) % plan.ranks)) * shape.itemsize + backward * plan.length * wide)
            * (plan.ranks > 1)
            + CHECK * (plan.ranks - 1) * (check and not backward)
            for r in range(plan.ranks)
        ]

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [Sample("ring", cls())]


def tour(kv: Tensor, d: int, call: Call):
    """``(owner, keys, values)`` of every rank, this one's first; the next are under way while these are used."""
    held = kv
    for step in range(call.ranks):
        owner = (call.rank - step) % call.ranks
        last = step == call.ranks - 1
        pending = None if last else call.group.shift(held, shape_of(kv, call, owner - 1))
        yield owner, held[..., :d], held[..., d:]
        held = held if pending is None else pending.wait()[0]


def shape_of(kv: Tensor, call: Call, owner: int) -> tuple[int, ...]:
    """The shape of what a rank holds, counted around the ring."""
    return (*kv.shape[:2], call.keys.size(owner % call.ranks), kv.shape[3])


def token_numbers(shape: Shape) -> int:
    """How many numbers the key and the value of a token have."""
    return shape.batch * shape.groups * (shape.head_dim + shape.values)
