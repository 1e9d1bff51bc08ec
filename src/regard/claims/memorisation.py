"""How many examples heads know by heart, with contexts of their own and with one for all."""

from __future__ import annotations

import torch

from regard.claims.cells import measured, null, quick
from regard.claims.figures import Figures, Finding
from regard.studies.memorisation import capacity, heads, read_by_heads

D = 16


def known(n: int, count: int, head_dim: int, seed: int, shared: bool, scale: float) -> dict[str, float]:
    """The largest T whose random labels are fitted, and H (r − 1) + 1."""
    generator = torch.Generator().manual_seed(seed)
    most = count * D + 9
    context = torch.rand(1 if shared else most, n, D, generator=generator, dtype=torch.float64)
    query = torch.randn(most, D, generator=generator, dtype=torch.float64)
    labels = torch.randn(most, generator=generator, dtype=torch.float64)
    read = read_by_heads(context, query, heads(count, D, head_dim, generator, scale))
    bound = count * (min(n, head_dim) - 1) + 1
    return {"known": capacity(read, labels), "bound": bound}


@quick(n=[8], count=[2, 4], seed=[0])
@null(scale=[0.0])
@measured(n=(4, 8, 16), count=(1, 2, 4, 8), head_dim=(4, 16), scale=[4.0], seed=range(3))
def separate(n: int, count: int, head_dim: int, scale: float, seed: int) -> dict[str, float]:
    """Examples with a context each. Of scale 0 all heads take the mean."""
    return known(n, count, head_dim, seed, False, scale)


def reaches_the_bound(found: Figures) -> Finding:
    """Never below it."""
    ratios = [known / bound for known, bound in zip(found("known"), found("bound"), strict=True)]
    return Finding.of(f"{min(ratios):.2f} to {max(ratios):.1f} times the bound", min(ratios) >= 1)


@quick(n=[8], count=[2, 4], seed=[0])
@null(scale=[0.0])
@measured(n=(4, 8, 16), count=(1, 2, 4, 8), scale=[4.0], seed=range(3))
def shared(n: int, count: int, scale: float, seed: int) -> dict[str, float]:
    """Examples that differ in their query alone, with heads of full size."""
    return known(n, count, D, seed, True, scale)


def is_the_bound(found: Figures) -> Finding:
    """Exactly."""
    known, bound = found("known"), found("bound")
    same = sum(a == b for a, b in zip(known, bound, strict=True))
    return Finding.of(f"exactly H (n − 1) + 1 in {same} of {len(known)} cases, up to {max(known)}", same == len(known))
