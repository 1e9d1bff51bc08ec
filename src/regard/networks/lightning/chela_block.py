"""Short and long causal convolutions that become one kernel, in front of gated linear attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regard.blocks.attention import Attention, AttentionState
from regard.blocks.block import Block
from regard.blocks.convolution import ShortConvolution, check_taps
from regard.core.cost import Cost
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import LayerSpec, Mechanism, accumulate_dtype
from regard.core.sizes import Sizes
from regard.kernels.packing import documents
from regard.mechanisms.linear.lightning import Lightning
from regard.projections.base import Grouped, Projection


class LongConvolution(nn.Module):
    """Each channel becomes a weighted sum of many earlier tokens, by the fast Fourier transform.

        y_i = Σ_{t < L} w_t ⊙ x_{i−t}

    w is ``weight (L, channels)``; x_{i−t} is the t-th real token before i in its document, zero before the first.
    w begins as noise of unit energy that fades over τ tokens, τ from 1 to L in a geometric series over the channels.

    Cost: O(n log min(n, L)) in training and prefill, each sequence by itself where there is padding, and each packed
    document; L for each token of decoding, over the last L − 1 tokens, which are kept.

    Args:
        channels: of the hidden states. length: L, at least 1.
    """

    def __init__(self, channels: int, length: int) -> None:
        super().__init__()
        check_taps("length", length)
        fading = length ** torch.linspace(0, 1, channels)
        weight = torch.randn(length, channels) * torch.exp(-torch.arange(length)[:, None] / fading)
        self.weight = nn.Parameter(weight / weight.norm(dim=0))

    @property
    def kernel(self) -> Tensor:
        """w, ``(L, channels)``."""
        return self.weight

    def forward(self, x: Tensor, layout: Layout = Layout(causal=True)) -> Tensor:
        """``x (b, n, c)`` of all tokens of a layout; zeros at padding."""
        if layout.regular:
            return convolved(x, self.weight)
        out = torch.zeros_like(x)
        for row, tokens in documents(layout, x.shape[0], x.shape[1], x.device):
            if tokens.numel():
                out[row, tokens] = convolved(x[row : row + 1, tokens], self.weight)[0]
        return out

    def extend(self, x: Tensor, tail: Tensor, key_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(y of the new tokens, the new tail)``; ``tail (b, L − 1 at most, c)`` ends with the newest real token."""
        held, new, kernel = tail.shape[1], x.shape[1], self.kernel
        both = torch.cat([tail, x if key_mask is None else x * key_mask[..., None]], 1)
        if key_mask is not None:
            real = torch.cat([key_mask.new_ones(key_mask.shape[0], held), key_mask], 1)
            order = torch.argsort(real, dim=1, stable=True)[..., None]
            both = both.take_along_dim(order, 1)
        if new == 1:
            near = both[:, -len(kernel) :].flip(1)
            out = (near * kernel[: near.shape[1]]).sum(1, keepdim=True)
        else:
            out = convolved(both, kernel)
            out = (out if key_mask is None else out.take_along_dim(order.argsort(1), 1))[:, held:]
        return out, both[:, max(both.shape[1] - len(kernel) + 1, 0) :]


class ShortLong(LongConvolution):
    """A long convolution and a short one beside it, which `merged` makes one kernel of.

        y_i = Σ_{t < T} s_t ⊙ x_{i−t} + Σ_{t < L} l_t ⊙ x_{i−t} = Σ_{t < L} (s + l)_t ⊙ x_{i−t},   s_t = 0 from T on

    l is ``weight (L, channels)``, s is ``short.weight (T, channels)``. Training sums the two branches, of which the
    short one begins as the identity; decoding uses their one kernel.

    Args:
        channels: of the hidden states. length: L. taps: T, at most L.

    Raises:
        ValueError: more taps than the length, or none.
    """

    def __init__(self, channels: int, length: int, taps: int = 3) -> None:
        super().__init__(channels, length)
        if taps > length:
            raise wrong("taps", str(taps), f"at most the length, {length}: the long kernel takes the short one in")
        self.short = ShortConvolution(channels, taps)

    @property
    def kernel(self) -> Tensor:
        short = self.short.weight
        return self.weight + nn.functional.pad(short, (0, 0, 0, len(self.weight) - len(short)))

    def forward(self, x: Tensor, layout: Layout = Layout(causal=True)) -> Tensor:
        return super().forward(x, layout) + self.short(x, layout)

    def merged(self) -> LongConvolution:
        """One long convolution with the same output."""
        one = LongConvolution(self.weight.shape[1], len(self.weight)).to(self.weight)
        with torch.no_grad():
            one.weight.copy_(self.kernel)
        return one


def convolved(x: Tensor, kernel: Tensor) -> Tensor:
    """``y_i = Σ_t kernel_t ⊙ x_{i−t}``, ``(b, n, c)``, x being zero before its first token.

    Frames of N tokens begin N − L + 1 apart; the first L − 1 outputs of each are wrapped, and dropped.
    """
    n, wide = x.shape[1], accumulate_dtype(x.dtype)
    if n == 0:
        return x
    size, step, count = frames(n, len(kernel))
    reach = size - step + 1
    spaced = nn.functional.pad(x.mT.to(wide), (reach - 1, count * step - n)).unfold(2, size, step)
    spectrum = torch.fft.rfft(kernel[:reach].mT.to(wide), size)[:, None]
    out = torch.fft.irfft(torch.fft.rfft(spaced) * spectrum, size)[..., reach - 1 :]
    return out.flatten(2)[..., :n].mT.to(x.dtype)


def frames(n: int, length: int) -> tuple[int, int, int]:
    """Tokens of a frame, between the beginnings of two, and how many frames hold n tokens under ``length`` taps."""
    reach = min(n, length)
    size = 1 << (2 * reach - 1).bit_length()
    step = size - reach + 1
    return size, step, -(-n // step)


def transform_flops(n: int, length: int, batch: int) -> int:
    """Of the convolution of one channel: real transforms of 5/2 N log₂ N each way and the products of the spectra."""
    size, _, count = frames(n, length)
    return (2 * batch * count + 1) * 5 * size * (size.bit_length() - 1) // 2 + batch * count * 3 * size


@dataclass(frozen=True, kw_only=True)
class FedState(AttentionState):
    """What a `FedAttention` keeps of the past.

    Args:
        past: ``(b, L − 1 at most, width)``, the last inputs of its convolution, newest last.
    """

    past: Tensor


class FedAttention(Attention):
    """Attention that reads convolved hidden states: ``y = attention(z)``, ``z = convolution(x)``.

    Cost: that of the attention and of the transforms. State: both, ``min(seen, L − 1)`` inputs for the convolution.

    Args:
        mechanism, projection: of `Attention`; there are no rotary positions, as the convolution knows order.
        feed: the convolution, of as many channels as the hidden states.

    Raises:
        ValueError: attention to another sequence, a layout that is not causal, or a mask.
    """

    def __init__(self, mechanism: Mechanism, projection: Projection, feed: LongConvolution) -> None:
        super().__init__(mechanism, projection)
        self.feed = feed

    def forward(self, x: Tensor, layout: Layout = Layout(causal=True), context: Tensor | None = None) -> Tensor:
        z = self.fed(x, layout, context)
        q, k, v, signals = super().inputs(z, layout)
        return self.finish(self.mechanism(q, k, v, layout, **signals), z, layout.positions(x.shape[1], x.device))

    def inputs(
        self, x: Tensor, layout: Layout = Layout(causal=True), context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """``(q, k, v, signals)`` as the mechanism is given them."""
        return super().inputs(self.fed(x, layout, context), layout)

    def fed(self, x: Tensor, layout: Layout, context: Tensor | None) -> Tensor:
        """z, refused where the attention would not be of the tokens to themselves, causal."""
        if context is not None:
            raise wrong("context", "another sequence", "None: the convolution is over the queries' own tokens")
        if not layout.causal:
            raise wrong("layout.causal", "False", "True: the convolution sees the past alone")
        if layout.mask is not None:
            raise wrong("layout.mask", "a mask", "None: the convolution sees all of the past")
        return self.feed(x, layout)

    def start(self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> FedState:
        """The state before any token."""
        past = torch.zeros(batch, 0, self.projection.width, device=device, dtype=dtype)
        return with_past(super().start(batch, device=device, dtype=dtype), past)

    def extend(self, x: Tensor, state: AttentionState, key_mask: Tensor | None = None) -> tuple[Tensor, FedState]:
        """``(y of the new tokens, the state after them)``; ``key_mask (b, n)`` marks the real ones."""
        if not isinstance(state, FedState):
            raise wrong("state", type(state).__name__, "what `start` or `extend` of this layer gave", TypeError)
        z, past = self.feed.extend(x, state.past, key_mask)
        out, after = super().extend(z, state, key_mask)
        return out, with_past(after, past)

    def cost(self, n: int, m: int | None = None, batch: int = 1, causal: bool = True, itemsize: int = 4) -> Cost:
        """FLOPs of ``forward`` with one kernel; bytes of weights and the mechanism's tensors, of the state."""
        inner, width, length = super().cost(n, m, batch, causal, itemsize), self.projection.width, len(self.feed.weight)
        past = batch * min(n, length - 1) * width * itemsize
        return Cost(inner.flops + width * transform_flops(n, length, batch), inner.bytes, inner.state_bytes + past)


def with_past(state: AttentionState, past: Tensor) -> FedState:
    """The state of the attention with that of the convolution."""
    return FedState(state.seen, state.inner, state.tail, state.nested, state.last, past=past)


class ChelaBlock(Block):
    """A pre-norm block of gated linear attention that reads a short and a long convolution, and a gated network.

        z = short(norm(x)) + long(norm(x)),   q = silu(z W_q),   k = silu(z W_k),   v = silu(z W_v)
        o_i = Σ_{j ≤ i} (q_i · k_j) v_j,   h = x + (silu(z W_g) ⊙ norm(o)) W_o,   y = h + network(norm(h))

    The sum over j runs in tiles, with the past in Σ k_j v_jᵀ (`Lightning` without decay); o is normed head by head.
    `merge` makes one kernel of both convolutions, for good: they stand side by side, as an activation between them
    would leave no one kernel to merge into.

    Shapes: ``x (b, n, width)`` -> ``(b, n, width)``, causal. State: d² numbers a head, and the last L − 1 inputs.

    Args:
        width: of the hidden states. heads: of the attention. inner: of the gated network. length: L of the long
            kernel; no token reaches further by it. taps: of the short one.

    Raises:
        ValueError: heads that do not divide the width, more taps than the length, or a size below one.

    Paper: Liu et al., arXiv 2406.08128; from its abstract and accounts of others. One of them puts the two convolutions
    one behind the other with a SiLU between, which no single kernel equals; side by side they merge, as it claims.
    """

    def __init__(self, width: int, heads: int, inner: int, length: int, taps: int = 3) -> None:
        if width % heads:
            raise wrong("width", str(width), f"a multiple of the {heads} heads")
        projection = Grouped(Sizes.even(width, heads))
        super().__init__(FedAttention(gated_sum(heads), projection, ShortLong(width, length, taps)), width, inner)

    def merge(self) -> ChelaBlock:
        """The block itself, from now on with one kernel."""
        attention = self.attention
        if isinstance(attention, FedAttention) and isinstance(attention.feed, ShortLong):
            attention.feed = attention.feed.merged()
        return self


def gated_sum(heads: int) -> Lightning:
    """Linear attention without decay, its inputs through silu, its heads normed and gated."""
    mechanism = Lightning((0.0,) * heads)
    mechanism.layer = LayerSpec(rotary=False, activation="silu", norm=True, gate="silu")
    return mechanism
