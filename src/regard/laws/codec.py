"""The laws of codecs: few bits as they say, each vector by itself, and what was decoded is near what was coded.

Examples are `given` ``d``, the numbers of a vector, and ``coarser``, a codec of the same kind with fewer bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from regard.core.codec import Codec
from regard.core.kinds import Sample
from regard.laws.finding import Broken, same

COUNT = 67


class Coded:
    """A codec under examination.

    Args:
        sample: the codec. device: where.
    """

    def __init__(self, sample: Sample, device: str = "cpu") -> None:
        self.codec: Codec = sample.thing
        self.d: int = sample.given.get("d", 24)
        self.coarser: Codec | None = sample.given.get("coarser")
        self.device = device

    def vectors(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """``(67, d)`` of normal noise, of lengths that differ by a thousand."""
        draw = torch.Generator().manual_seed(7)
        sizes = 10 ** (3 * torch.rand(COUNT, 1, generator=draw) - 1.5)
        return (torch.randn(COUNT, self.d, generator=draw) * sizes).to(self.device, dtype)

    def error(self, codec: Codec) -> float:
        """The mean squared error, relative, each vector counting the same."""
        x = self.vectors()
        return ((codec.through(x) - x).square().sum(-1) / x.square().sum(-1)).mean().item()


def counted(coded: Coded) -> str:
    """A vector, even of zeros, has as many codes, of as many values, as is said; bits are those of their logarithms."""
    x, sizes = coded.vectors(), coded.codec.sizes(coded.d)
    x[0] = 0
    codes = coded.codec.encode(x)
    if set(codes) != set(sizes):
        raise Broken(f"codes {sorted(codes)}, sizes of {sorted(sizes)}")
    for name, (count, size) in sizes.items():
        found = codes[name]
        if found.dtype != torch.int64 or found.shape != (COUNT, count):
            raise Broken(f"{name} are {found.dtype} of shape {tuple(found.shape)}, want int64 ({COUNT}, {count})")
        if int(found.min()) < 0 or int(found.max()) >= size:
            raise Broken(f"{name} from {int(found.min())} to {int(found.max())}, want 0 to {size - 1}")
    want = sum(count * math.log2(size) for count, size in sizes.values()) / coded.d
    same(torch.tensor(coded.codec.bits(coded.d)), torch.tensor(want), 1e-6, "bits")
    return f"{want:.2f} bits a number"


def alone(coded: Coded) -> str:
    """A vector is coded as it is alone, in an array of any axes, and in half precision it stays so."""
    x = coded.vectors()
    every = coded.codec.through(x)
    each = torch.stack([coded.codec.through(row) for row in x])
    worst = same(every, each, 1e-6, "alone")
    same(coded.codec.through(x[:66].unflatten(0, (2, 3, 11))).flatten(0, 2), every[:66], 1e-6, "in an array")
    half = coded.codec.through(coded.vectors(torch.float16))
    if half.dtype != torch.float16 or half.shape != x.shape:
        raise Broken(f"{half.dtype} {tuple(half.shape)} of float16 {tuple(x.shape)}")
    return f"{worst:.0e}"


def close(coded: Coded) -> str:
    """Normal vectors are told with half of their square as error at most, and with a tenth less than by fewer bits."""
    mine = coded.error(coded.codec)
    if not mine < 0.5:
        raise Broken(f"an error of {mine:.3f} of the vectors' square")
    if coded.coarser is not None:
        other = coded.error(coded.coarser)
        if not (mine < 0.9 * other and coded.codec.bits(coded.d) > coded.coarser.bits(coded.d)):
            raise Broken(f"an error of {mine:.4f} with {coded.codec.bits(coded.d):.2f} bits, {other:.4f} with fewer")
    return f"{mine:.4f}"


def again(coded: Coded) -> str:
    """What was decoded is moved less than half as far by coding it again."""
    x = coded.vectors()
    once = coded.codec.through(x)
    twice = coded.codec.through(once)
    first, second = (((a - b).norm() / b.norm()).item() for a, b in ((once, x), (twice, once)))
    if not second < first / 2:
        raise Broken(f"coded again it moves by {second:.4f}, the first time by {first:.4f}")
    return f"{second:.1e}"


def scaled(coded: Coded) -> str:
    """Vectors twice as long are decoded twice as long, and zeros as zeros."""
    x = coded.vectors()
    worst = same(coded.codec.through(2 * x), 2 * coded.codec.through(x), 1e-5, "twice as long")
    zeros = coded.codec.through(torch.zeros(3, coded.d, device=coded.device))
    if bool(zeros.any()) or bool(zeros.isnan().any()):
        raise Broken("zeros are not decoded as zeros")
    return f"{worst:.0e}"


LAWS: dict[str, Callable[[Coded], str]] = {law.__name__: law for law in (counted, alone, close, again, scaled)}


def subject(example: Sample, device: str = "cpu") -> Coded:
    """What the laws look at."""
    return Coded(example, device)


def example(thing: Codec, **given: Any) -> Sample:
    """A codec from elsewhere as an example."""
    return Sample(type(thing).__name__, thing, given)
