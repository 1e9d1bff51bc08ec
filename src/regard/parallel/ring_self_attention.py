"""Ring self-attention: whole rows of scores, made and used while keys, then values, travel around the ring."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample
from regard.core.mechanism import accumulate_dtype, repeat_heads
from regard.kernels.dense import Piece
from regard.parallel.base import Call
from regard.parallel.plan import Plan
from regard.parallel.ring import Ring, shape_of, tour


@published(
    "ring_self_attention",
    family="kernels",
    kind="kernel",
    row=244,
    title="Sequence Parallelism: Long Sequence Training from System Perspective",
    arxiv="2105.13120",
    year=2021,
    aliases=("rsa", "sequence_parallelism"),
    fidelity="hand values",
    claim=(
        Claim(
            "a rank hands on keys and values P − 1 times each and holds n²/P scores a head",
            cells="parallel.ring_scores",
            holds="parallel.are_passes",
        ),
    ),
)
class RingSelfAttention(Ring):
    """Keys pass by until a rank has all scores of its queries, which it normalises whole; then values pass by.

        S_r = scale Q_r [K_1 … K_P]ᵀ,   A_r = softmax(S_r),   O_r = Σ_p A_rp V_p

    Not online: a rank keeps its rows of A, ``n_r × m`` numbers a head, which the backward pass reads. There keys and
    values pass by once more, their gradients with them.

    Shapes on rank r: ``q (b, h, n_r, d)``, ``k (b, g, m_r, d)``, ``v (b, g, m_r, e)`` -> ``(b, h, n_r, e)``.
    Cost: memory n m / P a head; `Ring` merges online instead, in memory that grows with the length.

    Paper: Li et al., arXiv 2105.13120. There gradients of keys and values are reduced over all ranks; here they travel.
    """

    how = "scores"

    def forward_pass(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
        wide, (b, h, n) = accumulate_dtype(q.dtype), q.shape[:3]
        places = columns(call.keys)
        scores = q.new_full((b, h, n, call.keys.length), -torch.inf, dtype=wide)
        for owner, keys, _ in tour(k, k.shape[-1], call):
            products = q.to(wide) * call.scaling(q) @ repeat_heads(keys, h).to(wide).mT
            seen = dense_mask(call.pieces(call.rank, owner), n, keys.shape[2], q.device)
            scores[..., places[owner]] = products.masked_fill_(~seen, -torch.inf)
        weights = torch.softmax(scores, -1).nan_to_num_(0) if call.keys.length else scores
        out = q.new_zeros(b, h, n, v.shape[3], dtype=wide)
        for owner, values, _ in tour(v, v.shape[-1], call):
            out += weights[..., places[owner]] @ repeat_heads(values, h).to(wide)
        return out, (out, weights)

    def backward_pass(self, grad, q, k, v, saved, call):
        (out, weights), d, (groups, heads) = saved, k.shape[-1], (k.shape[1], q.shape[1])
        kv, wide, places = torch.cat([k, v], -1), out.dtype, columns(call.keys)
        grad, dq, dkv = grad.to(wide), torch.zeros_like(q, dtype=wide), None
        along = (grad * out).sum(-1, keepdim=True)
        for owner, keys, values in tour(kv, d, call):
            part = weights[..., places[owner]]
            upstream = grad @ repeat_heads(values, heads).to(wide).mT
            slopes = part * (upstream - along) * call.scaling(q)
            dq += slopes @ repeat_heads(keys, heads).to(wide)
            found = torch.cat([slopes.mT @ q.to(wide), part.mT @ grad], -1)
            own = found.unflatten(1, (groups, heads // groups)).sum(2)
            dkv = own if dkv is None else dkv + own
            dkv = call.group.shift(dkv, shape_of(kv, call, owner - 1)).wait()[0]
        assert dkv is not None
        return dq, dkv[..., :d], dkv[..., d:]

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [Sample("rows of scores", cls())]


def columns(keys: Plan) -> list[slice]:
    """Where each rank's keys stand in a row of scores: rank after rank, each in its own order."""
    ends = [sum(keys.sizes[:rank]) for rank in range(keys.ranks + 1)]
    return [slice(a, b) for a, b in pairwise(ends)]


def dense_mask(pieces: list[Piece], n: int, m: int, device: torch.device) -> Tensor:
    """``(n, m)`` bool: what the pieces show."""
    seen = torch.zeros(n, m, dtype=torch.bool, device=device)
    for piece in pieces:
        block = seen[piece.rows, piece.cols]
        block |= torch.ones_like(block).tril() if piece.causal else True
    return seen
