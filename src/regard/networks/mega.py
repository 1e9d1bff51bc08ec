"""Mega: a moving average of every channel, whose outcome is queried and gated by attention inside of chunks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.core.spec import Layer, Spec, parse_layers
from regard.core.state import State, count_new
from regard.kernels.packing import documents
from regard.mechanisms.scored.composed import Composed
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.slots import Slots, slots_of
from regard.networks.base import Network
from regard.networks.lm import LM, Config, text_sample

START = 0.02
"""Standard deviation of the weights at first."""


@dataclass(frozen=True)
class MegaState(State):
    """What a block keeps of the past.

    Args:
        average: ``(b, channels, N)``, h of the last token. k, v: ``(b, C, z)`` and ``(b, C, e)``, of the chunk that
            goes on.
    """

    average: Tensor
    k: Tensor
    v: Tensor


def powers(kept: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """``φ^{a side}`` and ``φ^b``, whose products are all powers below n: ``(width, N, side)`` of ``(width, N)``."""
    side = math.isqrt(max(n - 1, 0)) + 1
    steps = torch.arange(side, device=kept.device, dtype=kept.dtype)
    return kept[..., None] ** (steps * side), kept[..., None] ** steps


def faded(written: Tensor, kept: Tensor, n: int) -> Tensor:
    """``Σ_N written φ^t`` for t < n: ``(…, width, n)`` of ``written (…, width, N)``, ``kept (width, N)``."""
    coarse, fine = powers(kept, n)
    return ((written[..., None] * coarse).mT @ fine).flatten(-2)[..., :n]


def gathered(x: Tensor, kept: Tensor) -> Tensor:
    """``Σ_t φ^{n−1−t} x_t``, ``(b, width, N)`` of ``x (b, n, width)``."""
    coarse, fine = powers(kept, x.shape[1])
    late_first = F.pad(x.flip(1).mT, (0, coarse.shape[2] ** 2 - x.shape[1])).unflatten(2, (-1, coarse.shape[2]))
    return (late_first @ fine.mT * coarse.mT).sum(2)


class MovingAverage(nn.Module):
    """A damped moving average of every channel, in N dimensions, with a part of the token itself.

        h_t = p ⊙ β x_t + φ ⊙ h_{t−1},   y_t = silu(Σ_N γ ⊙ h_t / √N + ω x_t),   p = σ(δ),   φ = 1 − p σ(α)

    Over many tokens it is a convolution, by Fourier transforms. Padding counts for nothing wherever it stands. In both
    ways, the average from the end to the start, of parameters of its own, is added; both hold the token itself.

    Args:
        width: channels. size: N. both: both ways, and not from the past alone.
    """

    def __init__(self, width: int, size: int, both: bool = False) -> None:
        super().__init__()
        signs, rows = torch.ones(size), width * (1 + both)
        signs[1::2] = -1
        self.both = both
        self.alpha, self.delta = (nn.Parameter(0.2 * torch.randn(rows, size)) for _ in range(2))
        self.beta = nn.Parameter(signs + START * torch.randn(rows, size))
        self.gamma, self.omega = nn.Parameter(torch.randn(rows, size)), nn.Parameter(torch.randn(width))

    @property
    def rates(self) -> tuple[Tensor, Tensor, Tensor]:
        """``(p β, φ, γ / √N)``, each ``(width, N)``, those from the end to the start below the others."""
        p = torch.sigmoid(self.delta)
        return p * self.beta, 1 - p * torch.sigmoid(self.alpha), self.gamma * self.gamma.shape[1] ** -0.5

    def convolved(self, x: Tensor) -> Tensor:
        """``Σ_N γ h / √N`` of ``x (b, n, width)``, from h = 0."""
        if not self.both:
            return self.one_way(x, *self.rates)
        ways = zip(*(rate.chunk(2) for rate in self.rates), strict=True)
        past, future = (self.one_way(side, *rates) for side, rates in zip((x, x.flip(1)), ways, strict=True))
        return past + future.flip(1)

    def one_way(self, x: Tensor, written: Tensor, kept: Tensor, read: Tensor) -> Tensor:
        """`convolved` from the start to the end."""
        n = x.shape[1]
        if not n:
            return x
        kernel = faded(written * read, kept, n).mT
        wide = torch.promote_types(x.dtype, torch.float32)
        product = torch.fft.rfft(x.to(wide), 2 * n, 1) * torch.fft.rfft(kernel.to(wide), 2 * n, 0)
        return torch.fft.irfft(product, 2 * n, 1)[:, :n].to(x.dtype)

    def finish(self, averaged: Tensor, x: Tensor) -> Tensor:
        """y."""
        return F.silu(averaged + self.omega * x)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """``(b, n, width)`` of all tokens of a layout."""
        if layout.key_mask is None and layout.segments is None:
            return self.finish(self.convolved(x), x)
        out = torch.zeros_like(x)
        for row, tokens in documents(layout, x.shape[0], x.shape[1], x.device):
            if tokens.numel():
                out = out.index_put((torch.tensor(row), tokens), self.convolved(x[row : row + 1, tokens])[0])
        return self.finish(out, x)

    def extend(self, x: Tensor, before: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """``(y of the new tokens, h after them)`` from ``before (b, width, N)``; ``real (b, n)`` are no padding."""
        written, kept, read = self.rates
        order, count = torch.argsort(~real, dim=1, stable=True), real.sum(1).to(x.dtype)
        held = x * real[..., None]
        old = faded(before * read * kept, kept, x.shape[1]).mT
        averaged = (self.convolved(held.take_along_dim(order[..., None], 1)) + old).take_along_dim(
            order.argsort(1)[..., None], 1
        )
        new = written * gathered(held.take_along_dim(torch.argsort(real, dim=1, stable=True)[..., None], 1), kept)
        return self.finish(averaged, x), new + before * kept ** count[:, None, None]


class MegaAttention(nn.Module):
    """Attention inside of chunks, whose queries and keys are of a moving average, between a reset and an update gate.

        m = average(x),   z = silu(m W_z),   q = z ⊙ γ_1 + β_1,   k = z ⊙ γ_2 + β_2,   v = silu(x W_v)
        o = softmax(q kᵀ / √z + b_{i−j}) v,   h = silu(m W_h + (o ⊙ silu(m W_r)) U),   u = σ(m W_u)

    The average knows of all tokens, softmax of those of the chunk; b is learned for every distance in it. Gives h
    and u. The Laplace function in the place of softmax, ``½ (1 + erf((s − √½) √(2π)))`` of ``s = q kᵀ / (number of
    keys that i sees) + b``, weighs each key by itself.

    Args:
        width: of the hidden states. shared: z. inner: of the values. size: N of the average. chunk: C. laplace: for
            softmax. both: the average is of both ways, and tokens see later ones of their chunk.
    """

    def __init__(
        self, width: int, shared: int, inner: int, size: int, chunk: int, laplace: bool = False, both: bool = False
    ) -> None:
        super().__init__()
        self.shared, self.inner, self.chunk, self.laplace, self.both = shared, inner, chunk, laplace, both
        self.average = MovingAverage(width, size, both)
        own = Composed("dot(scale=1)", normaliser="laplace", heads=1, head_dim=shared) if laplace else Softmax()
        self.mechanism: Composed | Softmax = own
        self.value, self.out = nn.Linear(width, inner), nn.Linear(inner, width)
        self.base = nn.Linear(width, 2 * width + shared + inner)
        for linear in (self.value, self.out, self.base):
            nn.init.normal_(linear.weight, std=START)
            nn.init.zeros_(linear.bias)
        self.gamma, self.beta = nn.Parameter(START * torch.randn(2, shared)), nn.Parameter(torch.zeros(2, shared))
        self.bias = nn.Parameter(START * torch.randn(2 * chunk - 1 if both else chunk))  # from the earliest i − j on

    def parts(self, x: Tensor, moved: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """``(u, q, k, v, r, hx)`` of normed hidden states and their average."""
        width = x.shape[-1]
        u, z, r, own = self.base(moved).split([width, self.shared, self.inner, width], -1)
        q, k = (F.silu(z)[..., None, :] * self.gamma + self.beta).unbind(-2)
        return torch.sigmoid(u), q, k, F.silu(self.value(x)), F.silu(r), own

    def attend(
        self,
        slots: Slots,
        positions: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        past: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> Tensor:
        """The heads' output ``(b, n, e)``; ``past`` has k, v ``(b, C, …)`` and how many of them ``(b,)`` there are."""
        inside = (positions % self.chunk)[:, None]
        place = torch.where(slots.token < positions.shape[1], slots.filled(inside).flatten(1), -1)
        place = place.unflatten(1, (-1, slots.size)).flatten(0, 1)  # (b chunks, C), −1 where there is no token
        q, k, v = (slots.filled(x[:, None])[:, 0].flatten(0, 1) for x in (q, k, v))
        keys = place
        if past is not None:
            count = slots.course.opening.shape[1]
            first = torch.arange(count, device=q.device) == 0
            steps = torch.arange(self.chunk, device=q.device)
            held = torch.where(first[:, None] & (steps < past[2][:, None, None]), steps, -1).flatten(0, 1)
            k, v = (
                torch.cat([old.repeat_interleave(count, 0), new], 1) for old, new in zip(past[:2], (k, v), strict=True)
            )
            keys = torch.cat([held, place], 1)
        apart = place[:, :, None] - keys[:, None]
        seen = (keys[:, None] >= 0) & (place[:, :, None] >= 0)
        seen = seen if self.both else seen & (apart >= 0)
        if self.laplace:
            q = q / seen.sum(2, keepdim=True).clamp(min=1)
        last = self.chunk - 1
        index = (apart.clamp(-last, last) + last) if self.both else apart.clamp(0, last)
        layout = Layout(mask=seen[:, None], bias=self.bias[index][:, None])
        out = self.mechanism(q[:, None], k[:, None], v[:, None], layout)[:, 0]
        return slots.taken(out.unflatten(0, (positions.shape[0], -1))[:, None])[:, 0]

    def cost(self, n: int, m: int | None = None, batch: int = 1, causal: bool = True, itemsize: int = 4) -> Cost:
        """FLOPs of the matrix products of ``forward``, without the Fourier transforms; bytes as of any attention."""
        width, size = self.out.out_features, min(n, self.chunk)
        matrices = 2 * sum(x.weight.numel() for x in (self.value, self.out, self.base))
        chunks = -(-n // size) if n else 0
        inner = self.mechanism.cost(Shape(size, size, batch * chunks, 1, 1, self.shared, self.inner, itemsize))
        weights = sum(parameter.numel() for parameter in self.parameters()) * itemsize
        state = batch * itemsize * (self.average.alpha.numel() + self.chunk * (self.shared + self.inner))
        return Cost(batch * n * (matrices + 2 * width) + inner.flops, weights + inner.bytes, state)


class MegaBlock(nn.Module):
    """``y = x + u ⊙ (h − x)`` with h and u of `MegaAttention` of the layer-normed x, then ``y + silu(norm(y) W_1)
    W_2``.

    Args:
        width: of the hidden states. network: inner width of the two matrices. shared, inner, size, chunk, laplace,
            both: as of `MegaAttention`.

    Raises:
        ValueError: a causal layout in both ways, or one that is not causal.
    """

    def __init__(
        self,
        width: int,
        network: int,
        shared: int,
        inner: int,
        size: int,
        chunk: int,
        laplace: bool = False,
        both: bool = False,
    ) -> None:
        super().__init__()
        self.attention = MegaAttention(width, shared, inner, size, chunk, laplace, both)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.network = nn.Sequential(nn.Linear(width, network), nn.SiLU(), nn.Linear(network, width))

    def forward(self, x: Tensor, layout: Layout = Layout(causal=True)) -> Tensor:
        """``(b, n, width)`` of ``x (b, n, width)``."""
        normed, attention = self.norms[0](x), self.attention
        if layout.causal == attention.both:
            raise wrong("layout", str(layout), "causal, or bidirectional where the block is of both ways")
        positions = layout.positions(x.shape[1], x.device).expand(x.shape[0], -1)
        real = torch.ones_like(positions, dtype=torch.bool) if layout.key_mask is None else layout.key_mask
        slots = slots_of(attention.chunk, positions, real, positions.new_zeros(x.shape[0]), False)
        u, q, k, v, r, own = attention.parts(normed, attention.average(normed, layout))
        return self.rest(x, attention.attend(slots, positions, q, k, v), r, own, u)

    def rest(self, x: Tensor, out: Tensor, r: Tensor, own: Tensor, u: Tensor) -> Tensor:
        """What follows attention."""
        x = torch.lerp(x, F.silu(own + self.attention.out(out * r)), u)
        return x + self.network(self.norms[1](x))

    def start(self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> MegaState:
        """The state before any token."""
        a = self.attention
        if a.both:
            raise wrong("both", "True", "False: what reads later tokens cannot be continued")

        def nothing(*sizes: int) -> Tensor:
            return torch.zeros(batch, *sizes, device=device, dtype=dtype)

        seen = torch.zeros(batch, dtype=torch.int64, device=device)
        return MegaState(seen, nothing(*a.average.alpha.shape), nothing(a.chunk, a.shared), nothing(a.chunk, a.inner))

    def extend(self, x: Tensor, state: MegaState, key_mask: Tensor | None = None) -> tuple[Tensor, MegaState]:
        """``(the new tokens' hidden states, the state after them)``."""
        positions, seen = count_new(state, key_mask, x.shape[1], x.shape[0])
        real = torch.ones_like(positions, dtype=torch.bool) if key_mask is None else key_mask
        normed, attention, chunk = self.norms[0](x), self.attention, self.attention.chunk
        offset = state.seen % chunk
        slots = slots_of(chunk, positions, real, offset, False)
        moved, average = attention.average.extend(normed, state.average, real)
        u, q, k, v, r, own = attention.parts(normed, moved)
        out = attention.attend(slots, positions, q, k, v, (state.k, state.v, offset))
        goes_on = (seen // chunk == state.seen // chunk)[:, None, None]
        place = torch.where(real & (positions // chunk == (seen // chunk)[:, None]), positions % chunk, chunk)

        def kept(old: Tensor, new: Tensor) -> Tensor:
            """Those of the chunk that the last token is in."""
            old = F.pad(torch.where(goes_on, old, 0), (0, 0, 0, 1))
            return old.scatter(1, place[..., None].expand_as(new), new)[:, :-1]

        return self.rest(x, out, r, own, u), MegaState(seen, average, kept(state.k, k), kept(state.v, v))


@published(
    "mega",
    family="linear",
    kind="network",
    row=57,
    title="Mega: Moving Average Equipped Gated Attention",
    arxiv="2209.10655",
    year=2022,
    fidelity="authors' code",
    claim=(
        Claim(
            "the moving average by Fourier transforms is the recurrence",
            cells="hybrids.mega_average",
            holds="common.within(most=1e-5)",
        ),
        Claim(
            "chunks as long as the text are attention to all of it",
            cells="hybrids.mega_whole",
            holds="common.within(most=1e-5)",
        ),
        Claim(
            "costs at most 2.2 times as much at twice the length",
            cells="hybrids.mega_doubling",
            holds="hybrids.is_linear",
        ),
        Claim(
            "a small model's loss is at most that of a transformer of as many parameters",
            cells="hybrids.mega_loss",
            holds="hybrids.is_no_worse",
        ),
    ),
)
class MegaLM(LM):
    """A causal language model of moving averages under gated attention of one head inside of chunks.

    `LM` with `MegaBlock` for every layer. `MegaEncoder` has the same blocks of both ways.

    Args:
        config: the sizes; its layers are ``"softmax*L"``, its heads and rotary positions are not used. chunk: C.
        shared: channels of queries and keys. values: of the values, None for twice the width. size: N of the moving
            average. seed: of the weights, None for PyTorch's running generator. laplace: the Laplace function for
            softmax, which the paper has for images and sounds.

    Raises:
        ValueError: layers of another mechanism; a size below 1.

    Paper: Ma et al., arXiv 2209.10655.
    """

    def __init__(
        self,
        config: Config,
        chunk: int = 128,
        shared: int = 128,
        values: int | None = None,
        size: int = 16,
        seed: int | None = None,
        laplace: bool = False,
    ) -> None:
        if any(layer != Layer(Spec("softmax")) for layer in parse_layers(config.layers)):
            raise wrong("layers", repr(config.layers), "softmax in each layer, such as 'softmax*2'")
        for name, number in (("chunk", chunk), ("shared", shared), ("values", values), ("size", size)):
            if number is not None and number < 1:
                raise wrong(name, str(number), "at least 1")
        super().__init__(config, seed)
        sizes = config.width, config.inner_width, shared, values or 2 * config.width, size, chunk
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.blocks = nn.ModuleList(MegaBlock(*sizes, laplace) for _ in range(config.depth))

    def flops(self, n: int, batch: int = 1) -> int:
        """FLOPs of the matrix products of ``forward`` over ``n`` tokens, without the Fourier transforms."""
        c = self.config
        networks = c.width * (4 * c.inner_width * c.depth + 2 * c.vocabulary)
        return batch * n * networks + sum(block.attention.cost(n, batch=batch).flops for block in self.layers)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        model = cls(Config(29, 12, "softmax*2", heads=1, inner=17), chunk=5, shared=7, values=11, size=3, seed=0)
        other = cls(Config(29, 12, "softmax", heads=1), chunk=6, shared=5, values=7, size=2, seed=0, laplace=True)
        found = [text_sample("chunks of 5", model), text_sample("Laplace in chunks of 6", other)]
        return [replace(sample, given={**sample.given, "counted": False}) for sample in found]


class MegaEncoder(Network):
    """Hidden states of a sequence, such as the pixels of an image, by moving averages and attention of both ways.

        y = LN(MegaBlock_L(… MegaBlock_1(x)))

    Shapes: ``x (b, n, width)`` -> ``(b, n, width)``.

    Args:
        width: of the hidden states. depth: L. network, shared, inner, size, chunk, laplace: as of `MegaBlock`. seed: of
            the weights, None for PyTorch's running generator.

    Raises:
        ValueError: a size below 1.

    Paper: Ma et al., arXiv 2209.10655, which embeds tokens or numbers before and takes the mean over them behind.
    """

    def __init__(
        self,
        width: int,
        depth: int = 2,
        network: int | None = None,
        shared: int = 64,
        inner: int | None = None,
        size: int = 16,
        chunk: int = 128,
        laplace: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        sizes = {"width": width, "depth": depth, "network": network or 2 * width, "shared": shared}
        sizes |= {"inner": inner or 2 * width, "size": size, "chunk": chunk}
        for name, number in sizes.items():
            if number < 1:
                raise wrong(name, str(number), "at least 1")
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            del sizes["depth"]
            self.blocks = nn.ModuleList(MegaBlock(**sizes, laplace=laplace, both=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """``(b, n, width)`` of ``x (b, n, width)``; ``key_mask (b, n)`` marks the real tokens."""
        for block in self.blocks:
            x = block(x, Layout(key_mask=key_mask))
        return self.norm(x)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        def drawn(batch: int, seed: int) -> tuple[Tensor]:
            return (torch.randn(batch, 23, 6, generator=torch.Generator().manual_seed(seed)),)

        given = {"inputs": drawn, "output": (23, 6), "counted": False}
        made = {"Laplace in chunks of 5": (5, True), "softmax over all": (29, False)}
        return [
            Sample(label, cls(6, 2, 11, 3, 5, 2, chunk, laplace, 0), given) for label, (chunk, laplace) in made.items()
        ]
