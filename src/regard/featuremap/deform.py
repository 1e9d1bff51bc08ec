"""Deformable convolution: a convolution whose taps stand where offsets move them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.core.errors import wrong


def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """``y_p = Σ_k w_k m_k,p x[s p + d k − padding + offset_k,p] + b``, read between cells bilinearly, zero outside.

    Offsets of zero and a mask of ones give the plain convolution. Offsets are in cells, (y, x) for each tap in turn,
    and what lies outside counts as zero: the conventions of torchvision. Groups of g channels each have offsets and
    masks of their own, one group's after the other's; all are mixed by the weight.

    Shapes: ``x (b, c, y, x)``, ``offset (b, 2 g k k, y', x')``, ``weight (c', c, k, k)``, ``mask (b, g k k, y', x')``
    -> ``(b, c', y', x')``. Cost: that of the convolution, and k² readings of the map.

    Raises:
        ValueError: groups that do not divide the channels, offsets or a mask of another shape.

    Papers: Dai et al., arXiv 1703.06211; with a mask Zhu et al., 1811.11168.
    """
    (b, c, _, _), (rows, columns) = x.shape, weight.shape[2:]
    sides = zip(x.shape[2:], (rows, columns), strict=True)
    size, taps = tuple(out_size(n, k, stride, padding, dilation) for n, k in sides), rows * columns
    if groups < 1 or c % groups:
        raise wrong("groups", str(groups), f"a number that divides the {c} channels")
    for name, given, count in (("offset", offset, 2 * groups * taps), ("mask", mask, groups * taps)):
        if given is not None and given.shape != (b, count, *size):
            raise wrong(name, f"shape {tuple(given.shape)}", f"{(b, count, *size)}")
    alone = offset.reshape(b * groups, -1, *size)
    places = taken_from(alone, size, (rows, columns), stride, padding, dilation)
    parts = x.reshape(b * groups, c // groups, *x.shape[2:]).to(places.dtype)
    read = F.grid_sample(parts, normalised(places, x), padding_mode="zeros", align_corners=False)
    read = read.view(b * groups, c // groups, taps, *size).to(x.dtype)
    if mask is not None:
        read = read * mask.reshape(b * groups, 1, taps, *size)
    out = (weight.flatten(1) @ read.view(b, c * taps, -1)).view(b, -1, *size)
    return out if bias is None else out + bias[:, None, None]


def out_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Rows or columns of what a convolution gives."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def taken_from(offset: Tensor, size: tuple, kernel: tuple, stride: int, padding: int, dilation: int) -> Tensor:
    """Where each tap reads ``(b, taps, y', x', 2)``, in cells, row first, at least in float32."""
    dtype = torch.promote_types(offset.dtype, torch.float32)

    def steps(count: int, by: int) -> Tensor:
        return torch.arange(count, device=offset.device, dtype=dtype) * by

    y = steps(kernel[0], dilation)[:, None, None, None] + steps(size[0], stride)[:, None] - padding
    x = steps(kernel[1], dilation)[:, None, None] + steps(size[1], stride) - padding
    regular = torch.stack(torch.broadcast_tensors(y, x), -1).flatten(0, 1)
    moved = offset.to(dtype).unflatten(1, (-1, 2)).movedim(2, -1)
    return regular + moved


def normalised(places: Tensor, x: Tensor) -> Tensor:
    """Places in cells as `grid_sample` wants them: ``(b, taps · y', x', 2)``, column first, borders at ±1."""
    limits = torch.tensor([x.shape[3], x.shape[2]], device=places.device, dtype=places.dtype)
    return ((2 * places.flip(-1) + 1) / limits - 1).flatten(1, 2)
