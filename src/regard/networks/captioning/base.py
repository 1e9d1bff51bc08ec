"""What captioners share: an image encoder to a grid of annotation vectors, and a state that keeps where they looked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.networks.writer import Encoded, Remembered, Writer


@dataclass(frozen=True)
class Looked(Remembered):
    """An LSTM's ``hidden`` and ``cell`` ``(b, width)``, and what the last step looked at, ``weights (b, m)``."""

    hidden: Tensor
    cell: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Asked(Encoded):
    """What was encoded, with its keys as a reader is asked them, ``projected (b, m, width)``, once for all steps."""

    projected: Tensor

    def select(self, rows: Tensor) -> Asked:
        """The sources of these rows of the batch."""
        part = super().select(rows)
        return Asked(part.keys, part.end, part.layout, self.projected[rows])


class Grid(nn.Module):
    """Four convolutions, of which two halve the sides: images to annotation vectors ``(b, cells, width)``.

    The coordinates of pixels come in as two more channels, since attention over cells has no order of its own.

    Args:
        channels: of the images. width: of each vector. wide: factor of the channels between the convolutions.
    """

    def __init__(self, channels: int, width: int, wide: float = 1.0) -> None:
        super().__init__()
        sizes = (channels + 2, int(16 * wide), int(32 * wide), int(32 * wide), width)
        self.layers = nn.ModuleList(
            nn.Conv2d(into, out, 3, stride, 1)
            for into, out, stride in zip(sizes[:-1], sizes[1:], (1, 2, 2, 1), strict=True)
        )

    def forward(self, images: Tensor) -> Tensor:
        y, x = (torch.linspace(-1, 1, side, dtype=images.dtype, device=images.device) for side in images.shape[2:])
        places = torch.stack(torch.meshgrid(y, x, indexing="ij")).expand(images.shape[0], -1, -1, -1)
        x = torch.cat([images, places], 1)
        for layer in self.layers:
            x = F.relu(layer(x))
        return x.flatten(2).mT


class Captioner(Writer):
    """The base of networks that write what they see in an image.

    A subclass keeps what it looks at in the ``weights`` of its states, as `Looked` does.

    Args:
        target: vocabulary. width: of annotation vectors and states. channels: of the images.
        wide: of the image encoder. seed: of the initial weights; None takes PyTorch's.

    Raises:
        ValueError: a size below one.
    """

    def __init__(
        self, target: int, width: int = 128, channels: int = 3, wide: float = 1.0, seed: int | None = None
    ) -> None:
        super().__init__()
        if min(target, width, channels) < 1:
            raise wrong("target, width, channels", f"{target}, {width}, {channels}", "at least 1 each")
        if seed is not None:
            torch.manual_seed(seed)
        self.target, self.channels = target, channels
        self.grid, self.embedding = Grid(channels, width, wide), nn.Embedding(target + 1, width)

    def encode(self, source: Tensor, lengths: Tensor | None = None) -> Encoded:
        """Images ``(b, c, y, x)`` as annotation vectors, and the mean of them.

        Raises:
            ValueError: images of other channels, or lengths: an image has none.
        """
        if source.dim() != 4 or source.shape[1] != self.channels:
            raise wrong("source", f"shape {tuple(source.shape)}", f"images (b, {self.channels}, y, x)")
        if lengths is not None:
            raise wrong("lengths", str(lengths.tolist()), "None: images are of one size")
        keys = self.grid(source)
        return Encoded(keys, keys.mean(1), Layout())

    def intermediates(self, *inputs: Any, **named: Any) -> dict[str, Tensor]:
        """What each step looked at, ``(b, 1, n, m)``."""
        return self.looked(*inputs, **named)


def pictures(batch: int, seed: int) -> Sequence[Tensor]:
    """Images and captions for examples."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, 13, 11, generator=generator)
    return images, torch.randint(11, (batch, 5), generator=generator)


GIVEN = {"inputs": pictures, "output": (5, 11)}
"""What the laws of networks want to know of an example with 11 words."""
