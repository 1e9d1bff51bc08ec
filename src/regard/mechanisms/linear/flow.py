"""Flow attention: linear attention in which what flows out of keys and into queries is conserved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.layout import Layout
from regard.core.mechanism import Example, LayerSpec, Mechanism, Traits, accumulate_dtype, repeat_heads
from regard.core.state import State, count_new
from regard.kernels import packing
from regard.kernels.scan import Inputs, gated_flops, scan
from regard.mechanisms.linear.base import adjoint

EPSILON = 1e-6


@dataclass(frozen=True)
class FlowState(State):
    """All that is left of the past.

    Args:
        keys_sum, queries_sum: ``(batch, heads, d)``, Σ φ(k) and Σ φ(q). out_sum, in_sum: ``(batch, heads, d)``, Σ of
            keys over their outgoing and of queries over their incoming flow.
        weight: ``(batch, heads)``, Σ of competition. kv: ``(batch, heads, d, e)``. All have four or fewer axes of size
            zero before the first token.
    """

    keys_sum: Tensor
    queries_sum: Tensor
    out_sum: Tensor
    in_sum: Tensor
    weight: Tensor
    kv: Tensor


@published(
    "flow",
    family="linear",
    row=141,
    title="Flowformer: Linearizing Transformers with Conservation Flows",
    arxiv="2202.06258",
    year=2022,
    aliases=("flow_attention", "flowformer"),
    fidelity="authors' code",
    claim=(
        Claim(
            "each query's incoming and each key's outgoing flow is one after conservation",
            cells="long_texts.conserved",
            holds="long_texts.is_conserved",
        ),
        Claim(
            "the causal form is its definition token by token",
            cells="long_texts.flow_steps",
            holds="common.within(most=1e-7)",
        ),
        Claim(
            "at linear cost",
            cells="long_texts.doubled_of(name=flow)",
            holds="common.at_most(figure=ratio, most=2.0, said='FLOPs for twice the tokens')",
        ),
        Claim(
            "on lists of operations it is above linear attention",
            cells="long_texts.listops",
            holds="long_texts.above_linear",
        ),
    ),
)
class Flow(Mechanism):
    """Linear attention in which keys compete for a fixed inflow of every query, and queries for a fixed outflow.

        φ = σ;  I_i = φ(q_i) · Σ_j φ(k_j),   O_j = φ(k_j) · Σ_i φ(q_i)
        Î_i = φ(q_i) · Σ_j φ(k_j) / O_j,     Ô_j = φ(k_j) · Σ_i φ(q_i) / I_i, cut to [−1, 1]
        A_ij = σ(Î_i n / m) · φ(q_i) · φ(k_j) / I_i · m softmax_j(Ô_j)

    Causal, the sums run to the token itself, I and O are divided and Î and Ô multiplied by its place 1, 2, 3 …, and the
    softmax is over the tokens so far: A_ij has the share that j had when it came. ε is added to every term, as in the
    authors' code. With fewer queries than keys, causal, the missing ones bring no flow.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h.
    Cost: linear in n and m. State: d (e + 4) + 1 numbers a head. A padded or packed batch runs document by document.

    Paper: Wu et al., arXiv 2202.06258.
    """

    traits = Traits(suffix=False, sign="nonnegative", time="linear", state="constant", equivariant=True)
    layer = LayerSpec(rotary=False)

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        n, m = q.shape[2], k.shape[2]
        if not layout.plain:
            out = q.new_zeros(*q.shape[:3], m)
            for row, tokens in packing.documents(layout, q.shape[0], m, k.device):
                own = tokens[tokens >= m - n] - (m - n)
                single = self.weights(q[row : row + 1, :, own], k[row : row + 1, :, tokens], Layout(layout.causal))
                out[row][:, own[:, None], tokens] = single[0]
            return out
        wide = accumulate_dtype(q.dtype)
        left, right = q.to(wide).sigmoid(), repeat_heads(k, q.shape[1]).to(wide).sigmoid()
        if not layout.causal:
            read, share = bidirectional(left, right)
            return (read[..., None] * (left @ right.mT) * share[..., None, :]).to(q.dtype)
        x = steps(first_blank(left, m), right, blank(left, 0), n)
        allowed = torch.ones(m, m, dtype=torch.bool, device=q.device).tril()
        full = x.read[..., None] * (first_blank(left, m) @ right.mT).masked_fill(~allowed, 0) * x.share[..., None, :]
        return pad(full[:, :, max(m - n, 0) :], (0, 0, max(n - m, 0), 0)).to(q.dtype)

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        if not layout.causal:
            return self.weights(q, k, layout)[:, :, rows]  # every row depends on all queries
        self.check(q, k, None, layout, signals)
        start, stop, _ = rows.indices(q.shape[2])
        wide, keys = accumulate_dtype(q.dtype), repeat_heads(k, q.shape[1])
        return adjoint(
            lambda v: self(q.detach().to(wide), keys.detach().to(wide), v, layout), q, k.shape[2], range(start, stop)
        ).to(q.dtype)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            wide, n, m = accumulate_dtype(q.dtype), q.shape[2], k.shape[2]
            left, right = q.to(wide).sigmoid(), repeat_heads(k, q.shape[1]).to(wide).sigmoid()
            values = repeat_heads(v, q.shape[1]).to(wide)
            if not layout.causal:
                read, share = bidirectional(left, right)
                return (read[..., None] * (left @ (right.mT @ (values * share[..., None])))).to(q.dtype)
            left = first_blank(left, m)
            x = steps(left, right, blank(left, values.shape[3]), n)
            out, _ = scan(Inputs(left, right, values * x.share[..., None]), x.before.kv)
            out = (out * x.read[..., None])[:, :, max(m - n, 0) :]
            return pad(out, (0, 0, max(n - m, 0), 0)).to(q.dtype)

        return run(q, k, v) if layout.plain else packing.per_sequence(run, q, k, v, layout)

    def start(self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> FlowState:
        """Nothing has flowed."""
        like = torch.empty(batch, 0, 0, 0, device=device, dtype=accumulate_dtype(dtype))
        return blank(like, 0)

    def extend(
        self, q: Tensor, k: Tensor, v: Tensor, state: Any, key_mask: Tensor | None = None, **signals: Tensor
    ) -> tuple[Tensor, FlowState]:
        """Goes on from the sums."""
        self.check(q, k, v, Layout(causal=True), signals)
        _, seen = count_new(state, key_mask, k.shape[2], k.shape[0])
        wide = accumulate_dtype(q.dtype)
        left, right = q.to(wide).sigmoid(), repeat_heads(k, q.shape[1]).to(wide).sigmoid()
        values = repeat_heads(v, q.shape[1]).to(wide)
        if state.kv.shape[1] == 0:
            state = blank(left, values.shape[3])
        x = steps(left, right, state, q.shape[2], key_mask)
        right = right if key_mask is None else right.masked_fill(~key_mask[:, None, :, None], 0)
        out, kv = scan(Inputs(left, right, values * x.share[..., None]), state.kv)
        after = {f.name: getattr(x.after, f.name) for f in fields(FlowState)} | {"kv": kv, "seen": seen}
        return (out * x.read[..., None]).to(q.dtype), FlowState(**after)

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        heads, d, e, n, m = shape.batch * shape.heads, shape.head_dim, shape.values, shape.n, shape.keys
        flops = gated_flops(m, d, e) if layout.causal else 2 * (n + m) * d * (e + 1) + 2 * (n + m) * d
        return Cost(heads * flops, shape.io_bytes, heads * (d * (e + 4) + 1) * max(shape.itemsize, 4))

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [Example("plain", cls(), heads=3, kv_heads=3), Example("grouped", cls(), heads=4, kv_heads=2)]


def bidirectional(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """``(what each query's row is multiplied with (b, h, n), what each key's column is (b, h, m))``."""
    n, m = left.shape[2], right.shape[2]
    inflow = ((left + EPSILON) @ (right.sum(2) + EPSILON)[..., None])[..., 0]
    outflow = ((right + EPSILON) @ (left.sum(2) + EPSILON)[..., None])[..., 0]
    sink = ((left + EPSILON) @ ((right / outflow[..., None]).sum(2) + EPSILON)[..., None])[..., 0]
    source = ((right + EPSILON) @ ((left / inflow[..., None]).sum(2) + EPSILON)[..., None])[..., 0]
    share = torch.softmax(source.clamp(-1, 1), dim=-1) * m
    return torch.sigmoid(sink * (n / max(m, 1))) / inflow, share


@dataclass(frozen=True)
class Steps:
    """The causal factors of tokens: ``read`` of rows and ``share`` of columns, and the sums before and after them."""

    read: Tensor
    share: Tensor
    before: FlowState
    after: FlowState


def steps(left: Tensor, right: Tensor, before: FlowState, n: int, keys: Tensor | None = None) -> Steps:
    """Causal flows from the sums so far; ``key_mask (b, m)`` False marks tokens that bring none, and of the tokens only
    the last ``n`` have queries."""
    m = right.shape[2]
    real = torch.ones(left.shape[0], m, dtype=torch.bool, device=left.device) if keys is None else keys
    asks = real & (torch.arange(m, device=left.device) >= m - n)
    place = (before.seen[:, None] + real.cumsum(1)).clamp(min=1)[:, None].to(left.dtype)
    flows, asking = right.masked_fill(~real[:, None, :, None], 0), left.masked_fill(~asks[:, None, :, None], 0)
    keys_sum = before.keys_sum[:, :, None] + flows.cumsum(2)
    queries_sum = before.queries_sum[:, :, None] + asking.cumsum(2)
    inflow = ((left + EPSILON) * (keys_sum + EPSILON)).sum(-1) / place
    outflow = ((right + EPSILON) * (queries_sum + EPSILON)).sum(-1) / place
    out_sum = before.out_sum[:, :, None] + (flows / outflow[..., None]).cumsum(2)
    in_sum = before.in_sum[:, :, None] + (asking / inflow[..., None]).cumsum(2)
    sink = ((left + EPSILON) * (out_sum + EPSILON)).sum(-1) / place
    source = (((right + EPSILON) * (in_sum + EPSILON)).sum(-1) / place).clamp(-1, 1).exp()
    weight = before.weight[:, :, None] + source.masked_fill(~real[:, None], 0).cumsum(2)
    share = source / weight.clamp(min=EPSILON) * place
    last = {"keys_sum": keys_sum, "queries_sum": queries_sum, "out_sum": out_sum, "in_sum": in_sum, "weight": weight}
    ends = {name: x[:, :, -1] if m else getattr(before, name) for name, x in last.items()}
    after = FlowState(**{"seen": before.seen, "kv": before.kv} | ends)
    return Steps(torch.sigmoid(sink) / inflow / place, share, before, after)


def blank(like: Tensor, e: int) -> FlowState:
    """No flow yet, for queries like ``like (b, h, n, d)``."""
    batch, heads, _, d = like.shape
    sums = [like.new_zeros(batch, heads, d) for _ in range(4)]
    seen = torch.zeros(batch, dtype=torch.int64, device=like.device)
    a, b, c, f = sums
    return FlowState(seen, a, b, c, f, like.new_zeros(batch, heads), like.new_zeros(batch, heads, d, e))


def first_blank(left: Tensor, m: int) -> Tensor:
    """One query a key: zeros before the given ones, and none of those before the first key."""
    return pad(left, (0, 0, m - left.shape[2], 0))
