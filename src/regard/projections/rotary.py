"""Rotary position embedding: queries and keys turned by their positions."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.core.errors import wrong


class Rotary:
    """Turns pairs of coordinates by an angle that grows with the position, so that products see distances only.

        (x_c, x_{c+D/2}) ↦ R(p θ_c) (x_c, x_{c+D/2}),   θ_c = base^{-2c/D},   c = 0 … D/2 − 1

    D is ``dim``; coordinates from D on stay as they are. Angles are float32 or float64, whatever x is.

    Args:
        dim: D, even. base: the larger, the longer the slowest wave.

    Raises:
        ValueError: ``dim`` is odd or negative, ``base`` not above 1.

    Paper: Su et al., arXiv 2104.09864; halves are paired as in GPT-NeoX and Llama, not neighbours.
    """

    def __init__(self, dim: int, base: float = 10_000.0) -> None:
        if dim < 0 or dim % 2:
            raise wrong("dim", str(dim), "an even number: coordinates are turned in pairs")
        if not base > 1:
            raise wrong("base", str(base), "above 1")
        self.dim, self.base = dim, base

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        """``x (b, h, n, d)`` turned by ``positions (b or 1, n)``."""
        wide = torch.promote_types(x.dtype, torch.float32)
        steps = torch.arange(0, self.dim, 2, device=x.device, dtype=torch.float64) / max(self.dim, 1)
        angles = positions[:, None, :, None].to(torch.float64) * self.base**-steps
        cos, sin = angles.cos().to(wide), angles.sin().to(wide)
        turned, rest = x[..., : self.dim].to(wide), x[..., self.dim :]
        first, second = turned.chunk(2, dim=-1)
        turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
        return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned
