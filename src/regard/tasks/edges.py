"""Edges of images by their gradients: what finders of boundaries are compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.errors import wrong

CLOSE = 1e-6


def slopes(images: Tensor, deviation: float) -> Tensor:
    """The gradient ``(b, 2, y, x)``, along x and along y, of images ``(b, 1, y, x)`` smoothed by a Gaussian; images go
    on beyond their edges as their mirror images do."""
    reach = max(1, round(3 * deviation))
    steps = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    bell = torch.exp(-steps.square() / (2 * deviation**2))
    bell = bell / bell.sum()
    slope = steps * bell
    slope = slope / (slope * steps).sum()
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    return F.conv2d(padded, torch.stack((torch.outer(bell, slope), torch.outer(slope, bell)))[:, None])


def canny(images: Tensor, deviation: float, low: float, high: float) -> Tensor:
    """Canny's edges ``(b, 1, y, x)`` bool of images ``(b, 1, y, x)``.

    A pixel is one where the smoothed image's gradient is longer than ``low`` and no shorter than a pixel ahead and a
    pixel back along it, and which such pixels join to one whose gradient is longer than ``high``.

    Args:
        deviation: of the Gaussian, in pixels. low, high: lengths of gradients.

    Raises:
        ValueError: images of several channels, or smaller than the Gaussian; thresholds out of order.

    Paper: Canny, A Computational Approach to Edge Detection, 1986.
    """
    reach = max(1, round(3 * deviation))
    if images.dim() != 4 or images.shape[1] != 1 or min(images.shape[2:]) <= reach:
        raise wrong("images", f"{tuple(images.shape)}", f"(b, 1, y, x), more than {reach} pixels a side")
    if not 0 <= low <= high:
        raise wrong("low, high", f"{low}, {high}", "from 0, the first no higher than the second")
    gradient = slopes(images, deviation)
    length = gradient.norm(dim=1, keepdim=True)
    way = gradient / length.clamp(min=1e-12)
    y, x = (torch.arange(n, device=images.device, dtype=images.dtype) for n in images.shape[2:])
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"))
    size = images.new_tensor(images.shape[:1:-1])[:, None, None]
    near = []
    for sign in (1, -1):
        where = (2 * (places + sign * way) + 1) / size - 1
        near.append(F.grid_sample(length, where.movedim(1, -1), padding_mode="border", align_corners=False))
    # of two pixels alike, to rounding, the first
    thin = (length * (1 + CLOSE) >= near[0]) & (length > near[1] * (1 + CLOSE)) & (length > low)
    found = thin & (length > high)
    while True:
        grown = thin & (F.max_pool2d(found.to(images.dtype), 3, 1, 1) > 0)
        if torch.equal(grown, found):
            return found
        found = grown
