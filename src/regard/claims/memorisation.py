"""How many examples heads know by heart, with contexts of their own and with one for all."""

from __future__ import annotations

import torch

from regard.claims.cells import measured, null, quick
from regard.claims.figures import Figures, Finding, listed
from regard.experiments.many import train_many
from regard.studies.memorisation import Memory, capacity, heads, read_by_heads

D, SMALL, RATES = 16, 6, (1e-2, 3e-2)
GRID = tuple(round(6 * 1.3**power) for power in range(13))


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


@quick(count=[1, 2], seed=[0], steps=[5])
@null(selects=[False])
@measured(n=[4], count=(1, 2, 4), selects=[True], seed=range(3), steps=[1000])
def trained(n: int, count: int, selects: bool, seed: int, steps: int) -> dict[str, float]:
    """The largest T, each 1.3 times the one before, whose labels of ±1 are all told by heads that were trained at the
    better of two rates.

    Tokens of six numbers; all examples share their context. Layers for all T and both rates are trained side by side.
    Null: queries are all one, so that heads read the same of every example.
    """
    bound, sizes = count * (n - 1) + 1, GRID
    generator = torch.Generator().manual_seed(seed)
    context = torch.rand(1, n, SMALL, generator=generator)
    query = torch.randn(1 if not selects else max(sizes), SMALL, generator=generator).expand(max(sizes), -1)
    labels = torch.randn(max(sizes), generator=generator).sign()
    each = [(size, rate) for size in sizes for rate in RATES]
    real = torch.stack([(torch.arange(max(sizes)) < size).float() for size, _ in each])
    given = (context.expand(len(each), 1, -1, -1), query.expand(len(each), -1, -1), labels.expand(len(each), -1), real)

    def loss(call, context, query, labels, real):
        return ((call(context, query) - labels).square() * real).sum() / real.sum()

    models = [Memory(count, SMALL, SMALL, torch.Generator().manual_seed(100 + seed)) for _ in each]
    found = train_many(models, loss, lambda step: given, steps, [rate for _, rate in each])
    with torch.no_grad():
        right = [
            ((m(context, query) * labels)[:size] > 0).all().item() for m, (size, _) in zip(found, each, strict=True)
        ]
    known = [size for place, (size, _) in enumerate(each) if right[place]]
    return {"known": float(max(known, default=0)), "bound": float(bound), "most": float(max(sizes))}


def descends_to_the_bound(found: Figures) -> Finding:
    """In every seed; and of a line through the means over heads R² is 0.95 at least."""
    by = found.by("count", "known")
    below = [known < bound for known, bound in zip(found("known"), found("bound"), strict=True)]
    means = torch.tensor([sum(values) / len(values) for values in by.values()], dtype=torch.float64)
    counts = torch.tensor([float(count) for count in by], dtype=torch.float64)
    fit = 0.0
    if len(by) > 2 and means.std() > 0:
        fit = torch.corrcoef(torch.stack([counts, means]))[0, 1].square().item()
    told = "; ".join(f"{count} heads {listed(values, '.0f')}" for count, values in by.items())
    return Finding.of(f"known {told}; R² {fit:.3f}", not any(below), fit >= 0.95)
