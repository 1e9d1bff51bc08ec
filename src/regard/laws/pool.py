"""The laws of latents: what they read of an array, in which order, at which cost.

Examples are `Latents` of any sizes; arrays are drawn here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.flop_counter import FlopCounterMode

from regard.core.kinds import Sample
from regard.laws.finding import Broken, Unclaimed, same, slopes_hold
from regard.networks.latents.base import Latents, Reading

BATCH, N = 2, 13
SEED = 5
WIDE = torch.float64


class Fed:
    """Latents under examination, in float64, every parameter moved away from where it began.

    Args:
        sample: the latents. device: where to examine them.
    """

    def __init__(self, sample: Sample, device: str = "cpu") -> None:
        self.device = device
        self.pool: Latents = copy.deepcopy(sample.thing).to(device, WIDE).eval()
        noise = torch.Generator().manual_seed(SEED)
        with torch.no_grad():
            for parameter in self.pool.parameters():
                moved = torch.randn(parameter.shape, generator=noise, dtype=WIDE)
                parameter.add_(0.2 * moved.to(device))

    def array(self, n: int = N, seed: int = 0) -> Tensor:
        """``(b, n, channels)`` of normal noise."""
        noise = torch.Generator().manual_seed(SEED + seed)
        return torch.randn(BATCH, n, self.pool.channels, generator=noise, dtype=WIDE).to(self.device)

    def start(self) -> Tensor:
        """Latents to begin with, the same at every call."""
        return self.pool.start(BATCH, self.generator)

    @property
    def generator(self) -> Generator:
        return torch.Generator(self.device).manual_seed(SEED)

    def real(self) -> Tensor:
        """``(b, n)`` bool with gaps."""
        found = torch.rand(BATCH, N, generator=torch.Generator().manual_seed(SEED)) < 0.6
        found[:, 4] = True
        return found.to(self.device)

    def asked(self, array: Tensor, real: Tensor | None = None) -> list[Reading]:
        """What the latents ask in each round in which they read."""
        found: list[Reading] = []
        self.pool.run(array, real, self.start(), None, found)
        return found


def shapes(subject: Fed) -> str:
    """Latents ``(b, M, width)``, or the array's own shape where they write, of any length, in any dtype."""
    pool = subject.pool
    for dtype in (WIDE, torch.float32, torch.bfloat16):
        cast = copy.deepcopy(pool).to(dtype)
        for n in (1, N):
            got = cast(subject.array(n).to(dtype), start=subject.start().to(dtype))
            want = (BATCH, n, pool.channels) if pool.writes else (BATCH, pool.latents, pool.width)
            if tuple(got.shape) != want or got.dtype != dtype or not got.isfinite().all():
                raise Broken(f"{tuple(got.shape)} of {got.dtype}, want finite {want} of {dtype}")
    return f"{pool.latents} × {pool.width}"


def order(subject: Fed) -> str:
    """Elements in another order change nothing but the order in which they are written; nor do latents, theirs."""
    pool, array, start = subject.pool, subject.array(), subject.start()
    elements = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    want = pool(array, start=start)
    got = pool(array[:, elements], start=start)
    worst = same(got, want[:, elements] if pool.writes else want, 1e-10, "elements in another order")
    if not pool.alike:
        return f"{worst:.0e}, latents differ"
    latents = torch.arange(start.shape[1]).flip(0)
    got = pool(array, start=start[:, latents])
    worst = max(worst, same(got, want if pool.writes else want[:, latents], 1e-10, "latents in another order"))
    return f"{worst:.0e}"


def masked(subject: Fed) -> str:
    """What is no element weighs nothing: neither what it holds nor that it is there; batches equal their parts."""
    pool, array, real, start = subject.pool, subject.array(), subject.real(), subject.start()
    other = torch.where(real[..., None], array, 50 * subject.array(seed=1))
    want, worst = pool(array, real, start), 0.0
    shown = real if pool.writes else torch.ones(want.shape[:2], dtype=torch.bool, device=want.device)
    worst = max(worst, same(pool(other, real, start)[shown], want[shown], 1e-12, "other numbers where no element is"))
    for row in range(BATCH):
        alone = pool(array[row : row + 1, real[row]], start=start[row : row + 1])[0]
        worst = max(worst, same(alone, want[row][shown[row]], 1e-10, "an array without them"))
    for a in pool.maps(array, real, start):
        if a.masked_select(~real[:, None, None].expand_as(a)).any():
            raise Broken("a map shows weights where no element is")
    return f"{worst:.0e}"


def normalised(subject: Fed) -> str:
    """Every latent's weights sum to one over the elements; slots' are first shared out, one for each element."""
    pool, array, start = subject.pool, subject.array(), subject.start()
    worst = 0.0
    maps, asked = pool.maps(array, None, start), subject.asked(array)
    if not maps:
        raise Broken("no map: the latents read nothing")
    for turn, (a, reading) in enumerate(zip(maps, asked, strict=True)):
        worst = max(worst, same(a.sum(-1), torch.ones_like(a.sum(-1)), 1e-6, "sums over the elements"))
        scores = torch.einsum("bhid,bhjd->bhij", reading.q, reading.k) * reading.scale
        weights = scores.exp() / scores.exp().sum(2 if pool.normalise == "slots" else 3, keepdim=True)
        weights = weights / weights.sum(3, keepdim=True)
        worst = max(worst, same(a, weights, 1e-5, f"the map, normalised over {pool.normalise}"))
        rows = weights if weights.shape[1] == reading.v.shape[1] else weights.transpose(1, 2)
        worst = max(worst, same(pool.gathered(turn, reading, None), rows @ reading.v, 1e-5, "what latents find"))
    return f"{worst:.0e}"


def cost(subject: Fed) -> str:
    """FLOPs are those of the formula, and grow by as much for each further element."""
    pool, counted = subject.pool.requires_grad_(False), []
    for n in (N, 2 * N, 3 * N):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            pool(subject.array(n), start=subject.start())
        counted.append(counter.get_total_flops())
        if counted[-1] != pool.flops(n, BATCH):
            raise Broken(f"{n} elements: {counted[-1]} FLOPs counted, the formula has {pool.flops(n, BATCH)}")
    if counted[2] - counted[1] != counted[1] - counted[0]:
        raise Broken(f"{counted} FLOPs of 1, 2 and 3 times the elements: not linear")
    return f"{(counted[1] - counted[0]) // (BATCH * N)} FLOPs an element"


def rank(subject: Fed) -> str:
    """What latents that write do to the values is a matrix of their number's rank at most, and it is what they do."""
    pool: Any = subject.pool
    if not pool.writes:
        raise Unclaimed("does not write")
    n = 3 * pool.latents
    array = subject.array(n)
    matrix = pool.effective(array)
    found = int(torch.linalg.matrix_rank(matrix, rtol=1e-9).max())
    if found > pool.latents:
        raise Broken(f"rank {found} with {pool.latents} latents")
    values = subject.asked(array)[0].v
    written = pool.out((matrix @ values).transpose(1, 2).flatten(2))
    error = same(pool(array, start=subject.start()), written, 1e-9, "what is written")
    return f"rank {found} of {n}, {error:.0e}"


def gradients(subject: Fed) -> str:
    """They reach the array and every parameter, and are those of finite differences."""
    pool, array, start = subject.pool, subject.array(3).requires_grad_(), subject.start().detach()
    aim = torch.randn(pool(array, start=start).shape, generator=torch.Generator().manual_seed(2), dtype=WIDE)
    (pool(array, generator=subject.generator) * aim.to(array.device)).sum().backward()
    for name, parameter in [("array", array), *pool.named_parameters()]:
        if parameter.grad is None or not parameter.grad.isfinite().all():
            raise Broken(f"{name}: no finite gradient")
        if not parameter.grad.any() and not name.endswith("key.bias"):  # which adds the same to all scores of a latent
            raise Broken(f"{name}: a gradient of zero")
    fixed = array.detach()[:1].requires_grad_()
    slopes_hold(lambda x: pool(x, start=start[:1]), [fixed], fast=False)
    return f"{sum(1 for _ in pool.parameters())} parameters"


LAWS: dict[str, Callable[[Fed], str]] = {
    law.__name__: law for law in (shapes, order, masked, normalised, cost, rank, gradients)
}
subject = Fed


def example(thing: Latents, **given: Any) -> Sample:
    """Latents as they are."""
    return Sample(type(thing).__name__, thing, given)
