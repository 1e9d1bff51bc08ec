"""SiMBA: Mamba mixes tokens, and a network in the frequency domain mixes channels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.networks.base import Network
from regard.networks.lm import Config

SHRUNK = 0.01
"""What parts of a frequency are moved towards zero by."""
START = 0.02


class EinFFT(nn.Module):
    """A two-layer complex network of blocks of channels, at each frequency of tokens and blocks.

        X = FFT2(x),   Y = shrink(relu(X W_1 + b_1) W_2 + b_2),   y = Re IFFT2(Y)

    x is seen as ``(tokens, blocks, channels of a block)``; both Fourier transforms are orthonormal and run over tokens
    *and* blocks, so that every token reaches every other. W are complex, a matrix for each block; relu and the soft
    shrinkage act on real and imaginary parts apart.

    Shapes: ``x (b, n, width)`` -> the same.

    Args:
        width: channels. blocks: a divisor of them.
    """

    def __init__(self, width: int, blocks: int = 4) -> None:
        super().__init__()
        if blocks < 1 or width % blocks:
            raise wrong("blocks", str(blocks), f"a divisor of the {width} channels")
        self.blocks, size = blocks, width // blocks
        self.weights = nn.ParameterList(START * torch.randn(2, blocks, size, size) for _ in range(2))
        self.biases = nn.ParameterList(START * torch.randn(2, blocks, size) for _ in range(2))

    def layer(self, place: int, real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
        """``X W + b`` in parts, ``(b, n, blocks, size)``."""
        (w, u), (b, c) = self.weights[place], self.biases[place]

        def times(x: Tensor, matrices: Tensor) -> Tensor:
            return torch.einsum("bnkd,kde->bnke", x, matrices)

        return times(real, w) - times(imaginary, u) + b, times(real, u) + times(imaginary, w) + c

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.fft2(x.unflatten(2, (self.blocks, -1)), dim=(1, 2), norm="ortho")
        parts = self.layer(0, spectrum.real, spectrum.imag)
        parts = self.layer(1, *(F.relu(part) for part in parts))
        mixed = torch.complex(*(F.softshrink(part, SHRUNK) for part in parts))
        return torch.fft.ifft2(mixed, dim=(1, 2), norm="ortho").real.flatten(2)


class SimbaBlock(nn.Module):
    """``h = x + mamba(norm(x))``, then ``h + mix(norm(h))`` with `EinFFT`, or a plain network of four times the width.

    Args:
        width: of the hidden states. state: numbers of the state for each channel. blocks: of `EinFFT`, None for the
            plain network.
    """

    def __init__(self, width: int, state: int, blocks: int | None) -> None:
        super().__init__()
        self.attention = Config(1, width, "mamba", 1, None, state, width).attention("mamba")
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        plain = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.mix: nn.Module = plain if blocks is None else EinFFT(width, blocks)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, n, width)``."""
        x = x + self.attention(self.norms[0](x), Layout(causal=True))
        return x + self.mix(self.norms[1](x))


@published(
    "simba",
    family="linear",
    kind="network",
    row=204,
    title="SiMBA: Simplified Mamba-Based Architecture for Vision and Multivariate Time series",
    arxiv="2403.15360",
    year=2024,
    aliases=("einfft",),
    fidelity="hand values",
    claim=(
        Claim(
            "the product of parts is the complex one", cells="hybrids.simba_product", holds="common.within(most=1e-5)"
        ),
        Claim("twelve layers stay finite in training", cells="hybrids.simba_deep", holds="hybrids.stays_finite"),
        Claim(
            "forecasts drawn series at most 2% worse than Mamba with a plain network",
            cells="hybrids.simba_series",
            holds="hybrids.forecasts_as_well",
        ),
    ),
)
class Simba(Network):
    """A forecaster of several series: Mamba over the tokens, then a network in the frequency domain over the channels.

        ŷ = mean_n(norm(h_L)) W,   h_0 = x W_e,   h_l = block_l(h_{l−1})

    Mamba is causal, the Fourier transforms are not. See `SimbaBlock`.

    Shapes: ``x (b, n, series)`` -> ``(b, horizon, series)``.

    Args:
        series: how many. horizon: steps ahead. width, depth: of the blocks. state: of Mamba. blocks: of the frequency
            network, None for a plain one. seed: of the weights, None for PyTorch's running generator.

    Raises:
        ValueError: a size below 1; blocks that do not divide the width.

    Paper: Patro and Agneeswaran, arXiv 2403.15360. No code of its forecasting is public: the head is a matrix of the
    mean token. The four stages for images: `regard.networks.vision.simba`.
    """

    def __init__(
        self,
        series: int,
        horizon: int,
        width: int = 64,
        depth: int = 4,
        state: int = 64,
        blocks: int | None = 4,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        sizes = {"series": series, "horizon": horizon, "width": width, "depth": depth, "state": state}
        for name, size in sizes.items():
            if size < 1:
                raise wrong(name, str(size), "at least 1")
        self.series, self.horizon = series, horizon
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.embed, self.norm = nn.Linear(series, width), nn.LayerNorm(width)
            self.blocks = nn.ModuleList(SimbaBlock(width, state, blocks) for _ in range(depth))
            self.head = nn.Linear(width, horizon * series)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, horizon, series)``."""
        if x.dim() != 3 or x.shape[2] != self.series:
            raise wrong("x", f"shape {tuple(x.shape)}", f"(batch, tokens, {self.series})")
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1)).unflatten(1, (self.horizon, self.series))

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        given = {"inputs": partial(drawn, 3), "output": (5, 3)}
        return [
            Sample("two blocks", cls(3, 5, 12, 2, 4, 2, seed=0), given),
            Sample("a plain network", cls(3, 5, 12, 1, 4, None, seed=0), given),
        ]


def drawn(series: int, batch: int, seed: int) -> tuple[Tensor]:
    """Random series of 17 steps."""
    return (torch.randn(batch, 17, series, generator=torch.Generator().manual_seed(seed)),)
