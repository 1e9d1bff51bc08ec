"""Steps of convolutions and of networks of each cell: positions, perceptrons, gated and focal convolutions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.errors import did_you_mean, wrong
from regard.networks.stages.norms import ConvNorm
from regard.networks.stages.steps.base import Step

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
}


def activation_of(name: str) -> Callable[[Tensor], Tensor]:
    """The function of this name.

    Raises:
        ValueError: none has it.
    """
    if name not in ACTIVATIONS:
        raise wrong("activation", repr(name), f"one of {', '.join(ACTIVATIONS)}{did_you_mean(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]


class Positions(Step):
    """A depthwise convolution, zero beyond the border, that tells each cell where it stands.

    Args:
        width: c. side: of the kernel, odd. activation: of what it gives.

    Paper: Chu et al., arXiv 2102.10882.
    """

    normed = False

    def __init__(self, width: int, side: int = 3, activation: str = "none") -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, side, padding=side // 2, groups=width)
        self.act = activation_of(activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.convolution(x))


class Local(ConvNorm, Step):
    """A depthwise convolution without a bias and a batch norm, which begins at zero.

    Args:
        width: c. side: of the kernel, odd.
    """

    normed = False

    def __init__(self, width: int, side: int = 3) -> None:
        super().__init__(width, width, side, groups=width, start=0.0)


class Concentration(Step):
    """``conv(norm(gelu(conv(x))))``, depthwise convolutions and a batch norm: what linear attention lacks nearby.

    Args:
        width: c. side: of the kernels, odd.

    Paper: Zheng (L²ViT), arXiv 2501.16182.
    """

    def __init__(self, width: int, side: int = 7) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, side, padding=side // 2, groups=width) for _ in range(2))
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(F.gelu(self.first(x))))


class MLP(Step):
    """Two matrices over the channels of each cell with an activation between.

    Args:
        width: c. ratio: of the inner channels to c. activation: between.
    """

    def __init__(self, width: int, ratio: float = 4.0, activation: str = "gelu") -> None:
        super().__init__()
        inner = int(width * ratio)
        self.first, self.second, self.act = nn.Linear(width, inner), nn.Linear(inner, width), activation_of(activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.act(self.first(x.movedim(1, -1)))).movedim(-1, 1)


class NormedMLP(Step):
    """``norm(W_2 relu(norm(W_1 x)))`` with batch norms, the last of which begins at zero.

    Args:
        width: c. ratio: of the inner channels to c.
    """

    normed = False

    def __init__(self, width: int, ratio: float = 2.0) -> None:
        super().__init__()
        inner = int(width * ratio)
        self.first, self.second = ConvNorm(width, inner), ConvNorm(inner, width, start=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class Focal(Step):
    """Focal modulation: each cell is multiplied by a gated sum of contexts of growing reach.

        q, z_0, g = W x,   z_l = gelu(conv_l z_{l−1}),   y = W' (q ⊙ W'' (Σ_l g_l z_l + g_L gelu(mean z_L)))

    conv_l are depthwise of side ``window`` + 2 l. The gates g, one number a level and cell, are linear. It is not
    linear in any values: there is no A. `maps` shows the gates and the size of the modulator.

    Args:
        width: c. levels: L. window: side of the first kernel, odd.

    Paper: Yang et al. (FocalNet), arXiv 2203.11926.
    """

    def __init__(self, width: int, levels: int = 2, window: int = 3) -> None:
        super().__init__()
        self.levels, self.split = levels, (width, width, levels + 1)
        self.first = nn.Linear(width, sum(self.split))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width, width, window + 2 * level, padding=window // 2 + level, groups=width, bias=False)
            for level in range(levels)
        )
        self.modulator, self.last = nn.Linear(width, width), nn.Linear(width, width)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q ``(b, y, x, c)``, the gates ``(b, levels + 1, y, x)``, what multiplies q ``(b, y, x, c)``."""
        q, context, gates = self.first(x.movedim(1, -1)).split(self.split, -1)
        context, gates, total = context.movedim(-1, 1), gates.movedim(-1, 1), context.new_zeros(())
        for level, convolution in enumerate(self.convolutions):
            context = F.gelu(convolution(context))
            total = torch.addcmul(total, context, gates[:, level, None])
        total = torch.addcmul(total, F.gelu(context.mean((2, 3), keepdim=True)), gates[:, -1:])
        return q, gates, self.modulator(total.movedim(1, -1))

    def forward(self, x: Tensor) -> Tensor:
        q, _, by = self.parts(x)
        return self.last(q * by).movedim(-1, 1)

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        _, gates, by = self.parts(x)
        return {"gates": gates, "modulator": by.norm(dim=-1)[:, None]}


class GatedConvolution(Step):
    """A gate times channels, some of which pass a depthwise convolution: Mamba's block without its recurrence.

        g, i, z = W x,   y = W' (gelu(g) ⊙ [i, conv z])

    Args:
        width: c; of z too. ratio: of the channels of g, and of i and z together, to c. side: of the kernel, odd.

    Paper: Yu and Wang (MambaOut), arXiv 2405.07992.
    """

    def __init__(self, width: int, ratio: float = 8 / 3, side: int = 7) -> None:
        super().__init__()
        inner = int(ratio * width)
        if inner < width:
            raise wrong("ratio", str(ratio), "at least 1: the convolution's channels are among the inner ones")
        self.split = (inner, inner - width, width)
        self.first, self.second = nn.Linear(width, 2 * inner), nn.Linear(inner, width)
        self.convolution = nn.Conv2d(width, width, side, padding=side // 2, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        gate, plain, moved = self.first(x.movedim(1, -1)).split(self.split, -1)
        moved = self.convolution(moved.movedim(-1, 1)).movedim(1, -1)
        return self.second(F.gelu(gate) * torch.cat([plain, moved], -1)).movedim(-1, 1)

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        gate = self.first(x.movedim(1, -1)).split(self.split, -1)[0]
        return {"gate": F.gelu(gate).movedim(-1, 1)}
