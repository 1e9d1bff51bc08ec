"""Flux attention: a router looks at a whole prompt and says of each layer whether it attends to all or to a window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, Mechanism, Traits, accumulate_dtype
from regard.core.state import State, count_new
from regard.kernels import packing as alone
from regard.mechanisms.cached import KeyValues
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.sparse.window import SlidingWindow

SURE = 4.5
"""How much more an untrained router wants full attention."""


@dataclass(frozen=True)
class Decided(State):
    """What a layer has decided at the prompt, and what it keeps for it.

    Args:
        full: ``(b,)`` int64, 1 for full attention, 0 for the window, −1 before the first token. local: the window's
            state. cache: every key and value.
    """

    full: Tensor
    local: State
    cache: KeyValues


@published(
    "flux",
    family="sparse",
    row=120,
    title="Flux Attention: Context-Aware Hybrid Attention for Efficient LLMs Inference",
    arxiv="2604.07394",
    year=2026,
    aliases=("flux_attention",),
    fidelity="authors' code",
    claim=(
        Claim(
            "a layer is the window where its router says so, and softmax attention elsewhere",
            cells="flux.both_ends",
            holds="common.within(most=1e-12)",
        ),
        Claim(
            "routers trained on a frozen model send at most half of its layers to all keys at 98% of its recall, and "
            "more for recall than for text",
            cells="flux.routed_by",
            holds="flux.spares_half",
        ),
    ),
)
class Flux(Mechanism):
    """Softmax attention of a layer to all keys, or to a window and sinks, as a router of the prompt's queries says.

        p = mean over heads of mean(q_1 … q_c, q_{n−c+1} … q_n),   z = MLP(p) ∈ ℝ²,   A = D if z_1 ≥ z_0 else S

    c is ``pool``, D softmax attention, S the window with its sinks; each sequence or document decides for itself, with
    its first call, and keeps to it while it is continued. With ``temperature`` set, for training, the decision is a
    sample of a Gumbel softmax of z, straight through: both branches are computed, the gradient is the soft one's.
    Where texts hold answers too, ``prompt (b, n)``, once set for whole passes, marks the tokens of context and
    question, of which p is then made.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; causal.
    Cost: at most that of softmax attention and the window's. State: all keys and values, and those in sight.

    Args:
        head_dim: d. window: w. sinks: first tokens that are seen anyway. pool: c.

    Raises:
        ValueError: a pool below one, and what `SlidingWindow` refuses.

    Paper: Qiu et al., arXiv 2604.07394; trained by `regard.train.routers`.
    """

    traits = Traits(
        bidirectional=False, cross=False, resumable=False, suffix=False, leaks=True, rows="one", sign="nonnegative",
        flops="at most",
    )  # fmt: skip

    def __init__(self, head_dim: int, window: int = 1024, sinks: int = 128, pool: int = 100) -> None:
        super().__init__()
        if pool < 1:
            raise wrong("pool", str(pool), "at least 1 token")
        d = head_dim
        self.head_dim, self.pool, self.full, self.local = d, pool, Softmax(), SlidingWindow(window, sinks)
        self.features = nn.Sequential(nn.Linear(d, 8 * d), nn.SiLU(), nn.Linear(8 * d, 2 * d))
        self.router = nn.Sequential(nn.Linear(2 * d, 4 * d), nn.SiLU(), nn.Linear(4 * d, d), nn.SiLU(), nn.Linear(d, 2))
        last: Any = self.router[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        with torch.no_grad():
            last.bias[1] = SURE
        self.temperature: float | None = None
        self.decided: Tensor | None = None
        self.prompt: Tensor | None = None

    def logits(self, q: Tensor, real: Tensor | None = None) -> Tensor:
        """``(b, 2)``: how much each sequence of ``q (b, h, n, d)`` wants the window, and all keys."""
        n = q.shape[2]
        real = torch.ones(len(q), n, dtype=torch.bool, device=q.device) if real is None else real
        place, count = real.cumsum(1) - 1, real.sum(1, keepdim=True)
        first, last = (place < self.pool) & real, (place >= count - self.pool) & real
        weight = (first.to(q.dtype) + last.to(q.dtype)) / (first.sum(1) + last.sum(1)).clamp(min=1)[:, None]
        pooled = (q * weight[:, None, :, None]).sum(2).mean(1)
        return self.router(self.features(pooled.to(next(self.router.parameters()).dtype)))

    def decision(self, q: Tensor, real: Tensor | None = None) -> Tensor:
        """``(b,)``: 1 for all keys, 0 for the window; differentiable where there is a temperature."""
        z = self.logits(q, real)
        if self.temperature is None:
            return (z[:, 1] >= z[:, 0]).to(accumulate_dtype(q.dtype))
        soft = F.softmax((z - torch.empty_like(z).exponential_().log()) / self.temperature, -1)[:, 1]
        self.decided = (soft > 0.5).to(soft.dtype) + (soft - soft.detach())
        return self.decided

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(causal=True), **signals: Tensor) -> Tensor:
        return self.rows(q, k, layout, slice(0, q.shape[2]), **signals)

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        full, local = (mechanism.rows(q, k, layout, rows) for mechanism in (self.full, self.local))
        chosen = self.by_token(q, layout)[:, None, rows, None]
        return chosen * full + (1 - chosen) * local

    def by_token(self, q: Tensor, layout: Layout) -> Tensor:
        """``(b, n)``: the decision of each token's sequence or document."""
        b, n = len(q), q.shape[2]
        if self.prompt is not None and self.prompt.shape != (b, n):
            raise wrong("prompt", f"shape {tuple(self.prompt.shape)}", f"({b}, {n}), a mark for each token")
        if layout.segments is None:
            real = layout.key_mask
            if real is not None:
                m = real.shape[1]
                real = F.pad(real[:, max(m - n, 0) :], (max(n - m, 0), 0))
            if self.prompt is not None:
                real = self.prompt if real is None else real & self.prompt
            return self.decision(q, real)[:, None].expand(b, n).to(q.dtype)
        found = q.new_zeros(b, n)
        for row, tokens in alone.documents(layout, b, n, q.device):
            asked = None if self.prompt is None else self.prompt[row : row + 1, tokens]
            found = found.index_put(
                (torch.full_like(tokens, row), tokens), self.decision(q[row : row + 1, :, tokens], asked).to(q.dtype)
            )
        return found

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(causal=True), **signals: Tensor
    ) -> Tensor:
        self.check(q, k, v, layout, signals)
        chosen = self.by_token(q, layout)
        if self.temperature is not None or not bool((chosen == chosen[:, :1]).all()):
            full, local = self.full(q, k, v, layout), self.local(q, k, v, layout)
            return local + chosen[:, None, :, None] * (full - local)
        out = v.new_zeros(*q.shape[:3], v.shape[3])
        for mechanism, which in ((self.full, chosen.new_ones(())), (self.local, chosen.new_zeros(()))):
            rows = (chosen[:, :1] == which).any(1).nonzero()[:, 0] if q.shape[2] else chosen.new_zeros(0).long()
            if len(rows):
                part = mechanism(q[rows], k[rows], v[rows], of_rows(layout, rows))
                out = out.index_copy(0, rows, part)
        return out

    def start(self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Decided:
        """Nothing seen, nothing decided."""
        local = self.local.start(batch, device=device, dtype=dtype)
        undecided = torch.full((batch,), -1, dtype=torch.int64, device=device)
        return Decided(local.seen, undecided, local, KeyValues.empty(batch, device, dtype))

    def extend(
        self, q: Tensor, k: Tensor, v: Tensor, state: Any, key_mask: Tensor | None = None, **signals: Tensor
    ) -> tuple[Tensor, Decided]:
        """Decides where nothing is decided yet, and reads all keys for the sequences that attend to them."""
        self.check(q, k, v, Layout(causal=True), signals)
        _, seen = count_new(state, key_mask, k.shape[2], k.shape[0])
        full = torch.where(state.full < 0, self.decision(q, key_mask).detach().round().long(), state.full)
        full = full.masked_fill(seen == 0, -1)
        out, local = self.local.extend(q, k, v, state.local, key_mask)
        cache = state.cache.append(k, v, key_mask)
        rows = (full == 1).nonzero()[:, 0]
        if len(rows):
            given = (x if len(rows) == len(q) else x[rows] for x in (q, cache.k, cache.v))
            every = self.full(*given, of_rows(Layout(causal=True, key_mask=cache.key_mask), rows))
            out = out.index_copy(0, rows, every)
        return out, Decided(seen, full, local, cache)

    def cost(self, shape: Shape, layout: Layout = Layout(causal=True)) -> Cost:
        full, local, d = self.full.cost(shape, layout), self.local.cost(shape, layout), self.head_dim
        routed = 2 * shape.batch * (8 * d * d + 16 * d * d + 8 * d * d + 4 * d * d + 2 * d)
        state = full.state_bytes + local.state_bytes + 8 * shape.batch
        return Cost(full.flops + local.flops + routed, full.bytes + local.bytes, state)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("as the queries say", unsure(cls(5, 7, 2, 3)), heads=3, kv_heads=3),
            Example("grouped", unsure(cls(5, 3, 1, 4)), heads=4, kv_heads=2),
        ]


def of_rows(layout: Layout, rows: Tensor) -> Layout:
    """The layout of some sequences."""
    given = {name: getattr(layout, name) for name in ("key_mask", "segments")}
    return replace(layout, **{name: None if x is None else x[rows] for name, x in given.items()})


def unsure(flux: Flux) -> Flux:
    """With random weights, and no more for the one than for the other."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in flux.parameters():
            nn.init.normal_(parameter, std=float(parameter.dim() > 1))
    return flux
