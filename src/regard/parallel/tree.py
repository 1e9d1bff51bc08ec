"""Tree attention: every rank asks the same queries of its own keys, and the answers are reduced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.cost import Shape
from regard.core.kinds import Sample
from regard.kernels.base import KernelTraits
from regard.parallel import local
from regard.parallel.base import CHECK, Call, Shards, SoftmaxShards
from regard.parallel.group import Group, reduction_bytes
from regard.parallel.plan import Plan


@published(
    "tree_attention",
    family="kernels",
    kind="kernel",
    row=193,
    title="Tree Attention: Topology-aware Decoding for Long-Context Attention on GPU clusters",
    arxiv="2408.04093",
    year=2024,
    aliases=("tree_decoding",),
    fidelity="hand values",
    claim=(
        Claim(
            "what a decoding step sends does not depend on how many keys there are; a ring's grows with them",
            cells="parallel.decoding_bytes",
            holds="parallel.is_free_of_length",
        ),
        Claim(
            "attention is the gradient of an energy, the log-sum-exp of scores and sources, which any tree may reduce",
            cells="parallel.energy",
            holds="common.within(most=1e-6)",
        ),
    ),
)
class Tree(SoftmaxShards):
    """Queries that all ranks hold meet each rank's keys where these are; numerators and denominators are reduced.

        m = max_r lse_r,   A v = Σ_r exp(lse_r − m) out_r / Σ_r exp(lse_r − m)

    out_r and lse_r are attention over the keys of rank r alone, and lse_r is −∞ where it holds none. Two reductions,
    one of the maxima, one of numerators and denominators joined; neither knows how many keys there are. Backward: one,
    of the gradient of the queries; every rank is given the same gradient of the output, and keys keep theirs.

    Shapes on rank r: ``q (b, h, n, d)``, the same on all, ``k (b, g, m_r, d)``, ``v (b, g, m_r, e)`` ->
    ``(b, h, n, e)``.

    Paper: Shyam et al., arXiv 2408.04093. Its code adds 1e-8 to denominators; here a row that sees nothing is zero.
    """

    how = "tree"
    traits = KernelTraits(sharded=True, everywhere=True, growing=True)

    def forward_pass(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
        out, lse = local.attend(q, k, v, call.pieces(call.rank, call.rank), call.scaling(q))
        most = call.group.reduce(lse, "max")
        blind = most == -torch.inf
        share = torch.exp(lse - most.masked_fill(blind, 0))[..., None]
        total = call.group.reduce(torch.cat([out * share, share], -1), "sum")
        weight = total[..., -1:].masked_fill(blind[..., None], 1)
        out, lse = total[..., :-1] / weight, most + weight[..., 0].log()
        return out, (out, lse)

    def backward_pass(self, grad, q, k, v, saved, call):
        pieces = call.pieces(call.rank, call.rank)
        out, lse = saved
        dq, dk, dv = local.gradients(grad, q, k, v, out, lse, pieces, call.scaling(q))
        return call.group.reduce(dq, "sum"), dk, dv

    def decode(self, q: Tensor, k: Tensor, v: Tensor, state: Shards, group: Group, scale: float | None = None) -> Any:
        after = state.append(k, v, group.rank)
        queries = Plan.replicated(q.shape[2], group.size)
        call = Call(after.plan, queries, group, causal=True, scale=scale)
        return self.attend(q, after.k, after.v, call), after

    def traffic(self, plan: Plan, shape: Shape, *, backward: bool = False, check: bool = True, **given) -> list[int]:
        """A maximum, an output and a denominator for each query and head; backward, its gradient."""
        rows, wide = shape.batch * shape.heads * shape.n, max(shape.itemsize, 4)
        numbers = (shape.head_dim,) if backward else (1, shape.values + 1)
        sent = sum(reduction_bytes(rows * each * wide, plan.ranks) for each in numbers)
        return [sent + CHECK * (plan.ranks - 1) * (check and not backward)] * plan.ranks

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [Sample("tree", cls())]
