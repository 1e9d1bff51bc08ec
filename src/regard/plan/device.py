"""What a device can do at most."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from regard.core.errors import wrong
from regard.experiments.timing import ceilings


@dataclass(frozen=True)
class Device:
    """One accelerator, or a pool of equal ones over which weights and caches are spread.

    Args:
        flops: dense FLOP/s of one. bandwidth: byte/s of the memory of one. memory: bytes of one. count: how many.

    Raises:
        ValueError: a figure that is not above zero.
    """

    flops: float
    bandwidth: float
    memory: float
    count: int = 1

    def __post_init__(self) -> None:
        for name in ("flops", "bandwidth", "memory", "count"):
            if not getattr(self, name) > 0:
                raise wrong(name, str(getattr(self, name)), "above zero")

    @property
    def ridge(self) -> float:
        """FLOPs for each byte at which both ceilings are reached at once."""
        return self.flops / self.bandwidth


DEVICES = {
    "a100": Device(312e12, 2.039e12, 80e9),
    "h100": Device(989e12, 3.35e12, 80e9),
    "h200": Device(989e12, 4.8e12, 141e9),
    "b200": Device(2250e12, 8e12, 180e9),
}
"""Makers' figures of dense bfloat16 throughput and memory of the SXM versions."""


def here(threads: int, dtype: torch.dtype = torch.float32) -> Device:
    """This machine's processor, by a large matrix product and a copy; all memory that the system has."""
    import os

    roof = ceilings(torch.device("cpu"), dtype, threads)
    return Device(roof.flops, roof.bytes, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
