"""Windows whose keys and values are read elsewhere: moved and scaled by what each of them shows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.blocks.spatial import flat, image
from regard.core.errors import wrong
from regard.networks.stages.norms import whole
from regard.networks.stages.steps.attention import Biased
from regard.networks.stages.steps.base import Step


class VariedWindows(Step):
    """Softmax attention of the cells of each window to as many samples of a window of another place and size.

        A = softmax(s q k̂ᵀ + B) S,   k̂ = S k,  v̂ = S v,   S reads bilinearly at  c + r (1 + a_h) + o_h

    c is the window's middle, r its cells' places around it, B a table of relative positions; a and o are one pair each
    for a window and head, ``W leaky_relu(mean of the window)``, zero at first, o over the number of whole windows.
    Outside of the map all is zero. Still linear in the values: `attention` forms A.

    Args:
        width: c. heads: of q. bias: of queries, keys and values. side: of a window.

    Paper: Zhang et al. (VSA), arXiv 2204.08446. Keys and values are filled up with zeros to whole windows, which are
    attended to, as in the authors' code.
    """

    def __init__(self, width: int, heads: int, bias: bool = True, side: int = 7) -> None:
        super().__init__()
        if side < 2:
            raise wrong("side", str(side), "at least 2")
        self.projection, self.side = Biased(width, heads, bias), side
        self.scales, self.offsets = (nn.Conv2d(width, 2 * heads, 1) for _ in range(2))
        self.table = nn.Parameter(torch.empty(heads, 2 * side - 1, 2 * side - 1))
        nn.init.trunc_normal_(self.table, std=0.02)
        for regressor in (self.scales, self.offsets):
            nn.init.zeros_(regressor.weight)
            nn.init.zeros_(regressor.bias)  # pyright: ignore[reportArgumentType]

    def moves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scales a and offsets o ``(b, h, windows down, windows across, 2)``, column first."""
        seen = F.leaky_relu(F.avg_pool2d(whole(x, self.side), self.side))
        count = seen.new_tensor([max(x.shape[axis] // self.side, 1) for axis in (3, 2)])
        a, o = (made(seen).unflatten(1, (-1, 2)).movedim(2, -1) for made in (self.scales, self.offsets))
        return a, o / count

    def places(self, x: Tensor) -> Tensor:
        """Where the samples of each window are read ``(b, h, windows down, windows across, side², 2)``, −1 to 1."""
        side, axes = self.side, []
        for size in (x.shape[3], x.shape[2]):
            line = torch.linspace(-1, 1, size + -size % side, device=x.device, dtype=x.dtype).unflatten(0, (-1, side))
            axes.append((line.mean(1), line - line.mean(1, keepdim=True)))
        (across, right), (down, below) = axes
        middle = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1)
        around = torch.stack(torch.meshgrid(right[0], below[0], indexing="xy"), -1).flatten(0, 1)
        a, o = self.moves(x)
        return middle[:, :, None] + around * (1 + a)[..., None, :] + o[..., None, :]

    def read(self, x: Tensor, places: Tensor) -> Tensor:
        """Samples ``(b · windows, h, side², d)`` of a head's maps ``(b, h, d, y, x)``."""
        grid = places.flatten(0, 1).flatten(1, 2)
        found = F.grid_sample(x.flatten(0, 1), grid.to(x.dtype), align_corners=True)
        found = found.unflatten(0, x.shape[:2]).unflatten(3, places.shape[2:4])
        return found.permute(0, 3, 4, 1, 5, 2).flatten(0, 2)

    def windows(self, x: Tensor) -> Tensor:
        """A head's maps ``(b, h, d, y, x)`` as windows ``(b · windows, h, side², d)``."""
        parts = x.unflatten(4, (-1, self.side)).unflatten(3, (-1, self.side)).permute(0, 3, 5, 1, 4, 6, 2)
        return parts.flatten(4, 5).flatten(0, 2)

    def relative(self, like: Tensor) -> Tensor:
        """B ``(1, h, side², side²)``."""
        place = torch.arange(self.side**2, device=like.device)
        index = (each[:, None] - each + self.side - 1 for each in (place // self.side, place % self.side))
        return self.table[(slice(None), *index)][None].to(like.dtype)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v as maps ``(b, h, d, y, x)``, filled up to whole windows."""
        grid, tokens = (x.shape[2], x.shape[3]), flat(x)
        more = (0, -grid[1] % self.side, 0, -grid[0] % self.side)
        q, k, v = (F.pad(each.mT.unflatten(3, grid), more) for each in self.projection(tokens, tokens))
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        (q, k, v), places = self.heads(x), self.places(x)
        q, k, v = self.windows(q), self.read(k, places), self.read(v, places)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.relative(q))
        down, across = places.shape[2:4]
        out = out.unflatten(0, (-1, down, across)).unflatten(4, (self.side, self.side))
        out = out.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4).flatten(1, 2)
        filled = (down * self.side, across * self.side)
        return image(self.projection.out(out.flatten(1, 2)), filled)[:, :, : x.shape[2], : x.shape[3]]

    def attention(self, x: Tensor) -> Tensor:
        """A ``(b · windows, h, side², cells)`` of a whole map: its weights by window, over all cells."""
        (q, k, _), places = self.heads(x), self.places(x)
        cells = x.shape[2] * x.shape[3]
        every = torch.eye(cells, device=x.device, dtype=x.dtype).unflatten(1, x.shape[2:])
        samples = self.read(every.expand(*q.shape[:2], -1, -1, -1), places)
        scores = self.windows(q) @ self.read(k, places).mT * q.shape[2] ** -0.5 + self.relative(q)
        return torch.softmax(scores, -1) @ samples

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        a, o = self.moves(x)
        return {"scale": (1 + a).movedim(-1, 2).flatten(1, 2), "offset": o.movedim(-1, 2).flatten(1, 2)}
