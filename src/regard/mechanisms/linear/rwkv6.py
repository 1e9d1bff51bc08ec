"""RWKV-6: decays by channel, and a bonus for the token itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layer import Norm, Shift
from regard.core.layout import Layout
from regard.core.mechanism import Example, LayerSpec, Signal, check_sizes
from regard.kernels.scan import Inputs, scan
from regard.mechanisms.linear.base import Recurrent, decayed_pairs


@published(
    "rwkv6",
    family="linear",
    title="Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence",
    arxiv="2404.05892",
    year=2024,
    aliases=("finch", "rwkv"),
    fidelity="third-party code",
    claim=Claim(
        ("the recurrence that reads the state before the token is added, and the token by its bonus, is attention"),
        cells="recurrent.forms_of(kind=rwkv6)",
        holds="common.within(most=1e-9)",
    ),
)
class RWKV6(Recurrent):
    """Linear attention that decays by channel and data, and weighs the token itself by a learned bonus.

        S_t = diag(w_t) S_{t−1} + k_t v_tᵀ,   o_t = (S_{t−1} + diag(u) k_t v_tᵀ)ᵀ r_t,   w_t = exp(log_decay_t), r = q

    w is given by the signal ``log_decay (b, h, m, d)``, −exp(b + tanh(x W₁) W₂) in a block; u is the parameter
    ``bonus (h, d)``. The token shift by the data, group norm and SiLU gate are its host's.

    Args:
        heads, head_dim: of q.

    Raises:
        ValueError: q has other heads or another d.

    Paper: Peng et al., arXiv 2404.05892.
    """

    signals: ClassVar = {
        "log_decay": Signal(
            "log of what stays of each channel",
            dim="key",
            high=0,
            start=(-0.0025, -0.37),
            rank=64,
            inner="tanh",
            form="exp",
        )
    }
    layer = LayerSpec(rotary=False, shift=Shift(32), norm=Norm(centred=True, each=True, eps=64e-5), gate="silu")
    by_channel = True

    def __init__(self, heads: int = 4, head_dim: int = 64) -> None:
        super().__init__()
        if min(heads, head_dim) < 1:
            raise wrong("heads, head_dim", f"{heads}, {head_dim}", "at least 1 each")
        ramp = torch.arange(head_dim) / max(head_dim - 1, 1)
        self.bonus = nn.Parameter((1 - ramp).repeat(heads, 1))

    def log_decay(self, k: Tensor, signals: Mapping[str, Tensor]) -> Tensor:
        return signals["log_decay"]

    def own(self, x: Inputs) -> Tensor:
        """What each token weighs to itself: ``r_t · (u ⊙ k_t)``, ``(b, h, n)``."""
        return (x.q * x.k * self.bonus.to(x.k.dtype)[None, :, None]).sum(-1)

    def pairs(self, x: Inputs, passing: Tensor | None, allowed: Tensor) -> Tensor:
        assert passing is not None
        before = passing.roll(1, 2)  # the token that reads has not decayed anything yet; row 0 is hidden
        found = decayed_pairs(x.q, x.k, before, allowed.tril(-1))
        mine = allowed & torch.eye(allowed.shape[-1], dtype=torch.bool, device=allowed.device)
        return found + torch.where(mine, self.own(x)[..., None], 0)

    def run(self, x: Inputs, state: Tensor) -> tuple[Tensor, Tensor]:
        """The scan read one token early: the query of t + 1 reads the state after t."""
        early = torch.cat([x.q[:, :, 1:], torch.zeros_like(x.q[:, :, :1])], dim=2)
        read, after = scan(replace(x, q=early), state)
        first = x.q[:, :, :1] @ state
        read = torch.cat([first, read[:, :, :-1]], dim=2) if read.shape[2] else read
        if x.resets is not None:
            read = read.masked_fill(x.resets[:, None, :, None], 0)
        return read + self.own(x)[..., None] * x.v, after

    def check(self, q, k, v, layout, signals) -> None:
        super().check(q, k, v, layout, signals)
        check_sizes(q, *self.bonus.shape)

    def cost(self, shape: Shape, layout: Layout = Layout(causal=True)) -> Cost:
        cost = super().cost(shape, layout)  # and the first token's reading of the state before it
        return replace(cost, flops=cost.flops + 2 * shape.batch * shape.heads * shape.head_dim * shape.values)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        d = Example.head_dim
        return [Example("plain", cls(3, d), heads=3, kv_heads=3), Example("grouped", cls(4, d), 4, 2)]
