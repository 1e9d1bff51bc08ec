"""Heads scattered over ranks: each gathers all tokens of some of the heads, and gives the outputs back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regard.core.cost import Shape
from regard.core.kinds import Sample
from regard.kernels.dense import merge_into
from regard.parallel import local
from regard.parallel.base import CHECK, Call, SoftmaxShards
from regard.parallel.plan import Plan, shares


class Heads(SoftmaxShards):
    """From shards of tokens to shards of heads and back, by one exchange each way.

    A rank computes all queries of some kv heads, as many as any other or one more; where there are fewer kv heads than
    ranks, some compute nothing. Its own queries and keys of all tokens stay with it for the backward pass.

    Paper: Jacobs et al., DeepSpeed Ulysses, arXiv 2309.14509.
    """

    how = "heads"

    def exchanged(self, x: Tensor, plan: Plan, bounds: list[tuple[int, int]], call: Call) -> Tensor:
        """Of a tensor by tokens, what is of this rank's heads, all tokens: rank after rank, each in its own order."""
        first, last = bounds[call.rank]
        parts = [x[:, a:b] for a, b in bounds]
        shapes = [(x.shape[0], last - first, size, x.shape[3]) for size in plan.sizes]
        return torch.cat(call.group.exchange(parts, shapes).wait(), 2)

    def returned(self, x: Tensor, plan: Plan, bounds: list[tuple[int, int]], call: Call) -> Tensor:
        """`exchanged` undone."""
        shapes = [(x.shape[0], b - a, plan.size(call.rank), x.shape[3]) for a, b in bounds]
        return torch.cat(call.group.exchange(x.split(plan.sizes, 2), shapes).wait(), 1)

    def forward_pass(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
        bounds, own = head_bounds(q.shape[1], k.shape[1], call.ranks)
        q, kv = (
            self.exchanged(q, call.queries, own, call),
            self.exchanged(torch.cat([k, v], -1), call.keys, bounds, call),
        )
        k, v = kv.split([k.shape[-1], v.shape[-1]], -1)
        out, lse = local.attend(q, k, v, [], call.scaling(q))
        if q.shape[1]:
            for rank, rows in enumerate(stretches(call.queries)):
                found = local.attend(q[:, :, rows], k, v, every(call, rank), call.scaling(q))
                merge_into(out[:, :, rows], lse[:, :, rows], *found)
        return self.returned(out.to(q.dtype), call.queries, own, call), (q, kv, out, lse)

    def backward_pass(self, grad, q, k, v, saved, call):
        bounds, own = head_bounds(q.shape[1], k.shape[1], call.ranks)
        mine, kv, out, lse = saved
        grad = self.exchanged(grad, call.queries, own, call)
        keys, values = kv.split([k.shape[-1], v.shape[-1]], -1)
        dq, dkv = torch.zeros_like(mine, dtype=out.dtype), torch.zeros_like(kv, dtype=out.dtype)
        if mine.shape[1]:
            for rank, rows in enumerate(stretches(call.queries)):
                given = grad[:, :, rows], mine[:, :, rows], keys, values, out[:, :, rows], lse[:, :, rows]
                found = local.gradients(*given, every(call, rank), call.scaling(q))
                dq[:, :, rows] = found[0]
                dkv += torch.cat(found[1:], -1)
        dq = self.returned(dq.to(q.dtype), call.queries, own, call)
        dkv = self.returned(dkv.to(k.dtype), call.keys, bounds, call)
        return dq, *dkv.split([k.shape[-1], v.shape[-1]], -1)

    def traffic(
        self,
        plan: Plan,
        shape: Shape,
        *,
        queries: Plan | None = None,
        backward: bool = False,
        check: bool = True,
        **given,
    ) -> list[int]:
        """Tokens of the others' heads go out, outputs of the others' tokens go back; backward the same of gradients."""
        queries, (bounds, own) = queries or plan, head_bounds(shape.heads, shape.groups, plan.ranks)
        sent = []
        for r in range(plan.ranks):
            (a, b), (c, d) = own[r], bounds[r]
            out = queries.size(r) * (shape.heads - (b - a)) * (shape.values if backward else shape.head_dim)
            back = (queries.length - queries.size(r)) * (b - a) * (shape.head_dim if backward else shape.values)
            pairs = shape.head_dim + shape.values
            if backward:
                keys = (plan.length - plan.size(r)) * (d - c) * pairs
            else:
                keys = plan.size(r) * (shape.groups - (d - c)) * pairs
            told = CHECK * (plan.ranks - 1) * (check and not backward)
            sent.append(shape.batch * (out + back + keys) * shape.itemsize + told)
        return sent

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [Sample("heads", cls())]


def head_bounds(heads: int, groups: int, ranks: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The kv heads, and the query heads of these, that each rank computes: the first, and the one behind the last."""
    bounds = limits(groups, ranks)
    return bounds, [(a * (heads // groups), b * (heads // groups)) for a, b in bounds]


def limits(count: int, parts: int) -> list[tuple[int, int]]:
    """``count`` things in as many stretches."""
    sizes = shares(count, parts)
    return [(sum(sizes[:part]), sum(sizes[: part + 1])) for part in range(parts)]


def stretches(plan: Plan) -> list[slice]:
    """Where each rank's tokens stand in a tensor of all, rank after rank."""
    return [slice(sum(plan.sizes[:r]), sum(plan.sizes[: r + 1])) for r in range(plan.ranks)]


def every(call: Call, rank: int) -> list[local.Piece]:
    """What a rank's queries see of all keys, rank after rank."""
    found = []
    for owner, cols in enumerate(stretches(call.keys)):
        found += [local.moved(piece, cols.start) for piece in call.pieces(rank, owner)]
    return found
