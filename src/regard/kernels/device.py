"""The kernels for GPUs, in Triton: what `kernels` computes by matrix products of PyTorch, as one program a block.

Modules here import Triton, which PyTorch's builds for GPUs bring with them; nothing else does, so that regard runs
without it. `fla` hands scans to flash-linear-attention where that is installed. ``TRITON_INTERPRET=1`` runs all of them
on a CPU, slowly, which is how they are tested there.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor


def usable(x: Tensor) -> bool:
    """Whether a call with such tensors runs in Triton: on CUDA, in single or half precision."""
    precise = x.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return x.device.type == "cuda" and precise and find_spec("triton") is not None


def precision() -> str:
    """How float32 is multiplied, as PyTorch is told to do it."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"


def power(size: int) -> int:
    """The side of the tile that holds ``size``: a power of two, at least 16."""
    return max(16, 1 << (size - 1).bit_length())
