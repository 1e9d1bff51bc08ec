"""Rounds as another CPU might: `pytest -p other_cpu` finds tests that compare products of different shapes bit by bit.

Every matrix product, convolution and fused attention is changed by up to two units in the last place, in a way that its
shapes alone decide: the same product of the same shapes stays the same, as on any CPU.
"""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "mv", "convolution", "_scaled_dot_product_flash_attention_for_cpu"}


class OtherCPU(TorchDispatchMode):
    """The mode in which products are rounded otherwise."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        out = found[0] if isinstance(found, tuple) else found
        if name in PRODUCTS and isinstance(out, Tensor) and out.is_floating_point() and out.device.type == "cpu":
            nudged = out * (1 + torch.finfo(out.dtype).eps * steps(name, args, out))
            out.copy_(torch.where(exact(name, args, out), out, nudged))
        return found


def steps(name: str, args: tuple, out: Tensor) -> Tensor:
    """−1 … 1 in steps of a half for each entry, drawn by the shapes of the inputs."""
    shapes = f"{name} {[(tuple(x.shape), x.dtype) for x in args if isinstance(x, Tensor)]}"
    seed = int.from_bytes(hashlib.sha256(shapes.encode()).digest()[:6], "big")
    drawn = torch.randint(-2, 3, out.shape, generator=torch.Generator().manual_seed(seed))
    return drawn.to(out.dtype) / 2


def exact(name: str, args: tuple, out: Tensor) -> Tensor:
    """Where every CPU gives the same: short binary fractions, and sums of a single term."""
    fraction = out.double() * 1024
    found = (fraction == fraction.round()) | ~out.isfinite()
    if name in ("mm", "bmm"):
        found |= (args[0] != 0).double() @ (args[1] != 0).double() <= 1
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    with OtherCPU():
        return (yield)
