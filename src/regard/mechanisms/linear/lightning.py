"""Lightning attention: linear attention with a constant decay for each head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layer import Norm
from regard.core.layout import Layout
from regard.core.mechanism import Example, LayerSpec, accumulate_dtype, repeat_heads
from regard.core.state import count_new
from regard.kernels import scan
from regard.mechanisms.linear.base import Recurrent, RecurrentState, aligned, unaligned
from regard.mechanisms.slopes import alibi_slopes


@published(
    "lightning",
    family="linear",
    row=53,
    title="Lightning Attention-2: A Free Lunch for Handling Unlimited Sequence Lengths in Large Language Models",
    arxiv="2401.04658",
    year=2024,
    aliases=("lightning_attention", "lightning_attention_2"),
    fidelity="third-party code",
    claim=(
        Claim(
            "equals the quadratic form, output and gradients",
            cells="long_texts.lightning",
            holds="common.within(most=1e-4)",
        ),
        Claim(
            "the state's size does not change with the length; decoding equals one call",
            cells="long_texts.lightning_steps",
            holds="long_texts.decodes",
        ),
        Claim(
            "time per token is the same from 4k to 64k tokens",
            cells="long_texts.lightning_time",
            holds="long_texts.within_ten_percent",
        ),
    ),
)
class Lightning(Recurrent):
    """Causal linear attention whose memory of each token fades at a fixed rate for each head.

        A_ij = λ_h^{p_i - p_j} q_i · k_j  for j ≤ i, else 0

    computed block by block of B tokens, with the past in a matrix KV:

        O = [(Q Kᵀ) ⊙ M] V + Λ Q KV,   KV ← λ^B KV + (λ^{B-t} K)ᵀ V,   M_ts = λ^{t-s},   Λ_t = λ^t,   t = 1 … B

    A is ``weights``; λ is ``exp(-slope)``, ``slopes`` being fixed; p counts the real tokens of a sequence or document.
    Products are unscaled and of any sign. SiLU of q, k and v, the norm over all heads and the sigmoid gate are its
    host's, as in MiniMax-01.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` -> ``(b, h, n, e)``; g divides h; causal.
    Cost: ``m (2 · 64 (d + e) + 4 d e)`` FLOPs a head, memory O(m); a padded or packed batch runs in the general scan.
    State: ``d e`` numbers a head, at least float32.

    Args:
        slopes: one for each head, all at least 0; None for the geometric series of ALiBi, as in the paper's code.

    Raises:
        ValueError: a slope below zero, or another number of them than q has heads.

    Paper: Qin et al., arXiv 2401.04658. Their models shrink the slopes layer by layer; give ``slopes`` to do so.
    """

    layer = LayerSpec(rotary=False, activation="silu", norm=Norm("all"), gate="sigmoid")

    def __init__(self, slopes: Sequence[float] | None = None):
        super().__init__()
        if slopes is not None and not all(slope >= 0 for slope in slopes):
            raise wrong("slopes", str(list(slopes)), "numbers of at least 0: decay cannot grow")
        self.slopes = None if slopes is None else tuple(slopes)

    def log_decay(self, k: Tensor, signals: Mapping[str, Tensor]) -> Tensor:
        return -self.rates(k)[None, :, None].expand(1, k.shape[1], k.shape[2])

    def rates(self, k: Tensor) -> Tensor:
        """``(h,)``: the slopes, in the precision of sums."""
        slopes = alibi_slopes(k.shape[1]) if self.slopes is None else self.slopes
        if len(slopes) != k.shape[1]:
            raise wrong("q", f"{k.shape[1]} heads", f"{len(slopes)}, the number of slopes")
        return torch.tensor(slopes, dtype=accumulate_dtype(k.dtype), device=k.device)

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(causal=True), **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        n, m = q.shape[2], k.shape[2]
        apart = layout.query_positions(n, m, q.device)[:, :, None] - layout.positions(m, q.device)[:, None, :]
        decay = scan.powers(-self.rates(q), apart.clamp(min=0)).transpose(0, 1)
        products = q.to(decay.dtype) @ repeat_heads(k, q.shape[1]).to(decay.dtype).mT * decay
        return products.masked_fill(~layout.allowed(n, m, q.device), 0).to(q.dtype)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(causal=True), **signals: Tensor
    ) -> Tensor:
        self.check(q, k, v, layout, signals)
        if not layout.plain:
            return super().forward(q, k, v, layout, **signals)
        return unaligned(self.steady(aligned(q, k.shape[2]), k, v, None)[0], q.shape[2])

    def steady(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor | None) -> tuple[Tensor, Tensor]:
        """``(out, KV)`` of tokens without padding that follow the memory ``kv``, None for an empty one."""
        wide = accumulate_dtype(q.dtype)
        queries, keys, values = (x.to(wide) for x in (q, repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])))
        if kv is None:
            kv = queries.new_zeros(*q.shape[:2], q.shape[3], v.shape[3])
        out, kv = scan.decayed(queries, keys, values, -self.rates(q), kv)
        return out.to(q.dtype), kv

    def extend(
        self, q: Tensor, k: Tensor, v: Tensor, state: Any, key_mask: Tensor | None = None, **signals: Tensor
    ) -> tuple[Tensor, RecurrentState]:
        """Scans on from the memory; padding neither fades nor adds to it."""
        if key_mask is not None:
            return super().extend(q, k, v, state, key_mask, **signals)
        self.check(q, k, v, Layout(causal=True), signals)
        _, seen = count_new(state, key_mask, k.shape[2], k.shape[0])
        out, kv = self.steady(q, k, v, state.kv if state.kv.shape[1] else None)
        return out, RecurrentState(seen, kv)

    def cost(self, shape: Shape, layout: Layout = Layout(causal=True)) -> Cost:
        heads, d, e = shape.batch * shape.heads, shape.head_dim, shape.values
        return Cost(heads * scan.flops(shape.keys, d, e), shape.io_bytes, heads * d * e * max(shape.itemsize, 4))

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("default slopes", cls(), heads=3, kv_heads=3),
            Example("given slopes, grouped", cls(slopes=(0.0, 0.1, 3.0, 50.0)), heads=4, kv_heads=2),
        ]
