"""Keys seen as means of runs: how near that is to attention, beside whole blocks of as many products."""

from __future__ import annotations

import torch

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.claims.routed import smooth
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.sparse.pyramid import PyramidSparse
from regard.routers.levels import QUOTAS


@measured(seed=range(6))
def smooth_video(seed: int) -> dict[str, float]:
    """Relative errors of a head by levels and by whole blocks of as many products, of four heads, boxes of 64 cells."""
    states, v = smooth(2, torch.Generator().manual_seed(seed))
    places = torch.arange(states.shape[2]).view(2, 4, 4, 4, 4, 4).permute(0, 2, 4, 1, 3, 5).flatten()
    q, k, v = (x[:, :, places] for x in (states, states, v))
    before, products = 0.0, 0.0
    for level, share in QUOTAS.items():
        products += (share - before) / level
        before = share
    dense, found = Softmax()(q, k, v), {"products": products}
    for name, quotas in (("levels", QUOTAS), ("blocks", {1: products})):
        apart = PyramidSparse(quotas=quotas)(q, k, v) - dense
        errors = (apart.square().sum((0, 2, 3)) / dense.square().sum((0, 2, 3))).sqrt()
        found |= {f"{name}_{head}": error for head, error in enumerate(errors.tolist())}
    return found


def is_nearer(found: Figures) -> Finding:
    """In nine of ten heads, of 15 to 25% of the products."""
    pairs = [(a, b) for head in range(4) for a, b in zip(found(f"levels_{head}"), found(f"blocks_{head}"), strict=True)]
    nearer, products = sum(a < b for a, b in pairs) / len(pairs), found("products")[0]
    a, b = (sum(x) / len(pairs) for x in zip(*pairs, strict=True))
    figure = (
        f"nearer in {nearer:.0%} of {len(pairs)} heads at {products:.1%} of the products: errors {a:.3f} and {b:.3f}"
    )
    return Finding.of(figure, nearer >= 0.9, 0.15 <= products <= 0.25)
