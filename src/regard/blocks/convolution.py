"""The short causal convolution in front of recurrent mechanisms."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.core.errors import wrong
from regard.core.layout import Layout


def check_taps(name: str, taps: int) -> None:
    """Raises an error that names the argument if a causal convolution does not reach its own token."""
    if taps < 1:
        raise wrong(name, str(taps), "at least 1: the token itself")


class ShortConvolution(nn.Module):
    """Each channel becomes a weighted sum of its last few tokens.

        y_i = Σ_{t < T} w_t ⊙ x_{i−t} + c

    T is ``taps``; x_{i−t} is the t-th real token before i in its document, zero before the first: padding counts for
    nothing wherever it stands. w begins as the identity (w_0 = 1) plus small noise, c as zero.

    Args:
        channels: of the hidden states. taps: T, at least 1. bias: whether there is c.
    """

    def __init__(self, channels: int, taps: int, bias: bool = False) -> None:
        super().__init__()
        check_taps("taps", taps)
        self.taps = taps
        weight = torch.randn(taps, channels) * 0.1 / taps
        weight[0] += 1
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """``x (b, n, c)`` of all tokens of a layout."""
        out = shifted_sum(x, self.weight, layout.key_mask, layout.positions(x.shape[1], x.device))
        return out if self.bias is None else out + self.bias

    def extend(self, x: Tensor, tail: Tensor, seen: Tensor, key_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """``(y of the new tokens, the new tail)``; ``tail (b, T − 1, c)`` holds the last real tokens, newest last."""
        out, tail = extended(x, self.weight, tail, seen, key_mask)
        return out if self.bias is None else out + self.bias, tail


def shifted_sum(x: Tensor, weight: Tensor, keys: Tensor | None, positions: Tensor) -> Tensor:
    """The sum over real tokens, which are moved together for it and back afterwards; ``weight (T, c)``."""
    if keys is not None:
        order = torch.argsort(~keys, dim=1, stable=True)
        back = order.argsort(1)
        x, positions = x.take_along_dim(order[..., None], 1), positions.gather(1, order)
    out = x * weight[0]
    for t in range(1, min(len(weight), x.shape[1])):
        earlier = torch.nn.functional.pad(x[:, :-t], (0, 0, t, 0))
        out = out + earlier * weight[t] * (positions >= t)[..., None]
    return out if keys is None else out.take_along_dim(back[..., None], 1)


def extended(x: Tensor, weight: Tensor, tail: Tensor, seen: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
    """``(sums of the new tokens, the new tail)`` after ``seen (b,)`` real tokens, the last of them in ``tail``."""
    held, new = tail.shape[1], x.shape[1]
    filled = torch.arange(held, 0, -1, device=x.device) <= seen[:, None]
    fresh = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if keys is None else keys
    real, both = torch.cat([filled, fresh], 1), torch.cat([tail, x], 1)
    out = shifted_sum(both, weight, real, (real.cumsum(1) - 1).clamp(min=0))[:, held:]
    order = torch.argsort(real, dim=1, stable=True)[:, new:]
    return out, both.take_along_dim(order[..., None], 1)
