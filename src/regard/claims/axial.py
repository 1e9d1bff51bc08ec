"""Axial attention of pools: how many scores it has, and its places."""

from __future__ import annotations

import torch

from regard.claims.cells import measured
from regard.claims.figures import Figures, Finding
from regard.claims.testbeds.maps import apart, drawn
from regard.networks.vision.p2at import HEADS, P2AT, PLACES, AxisAttention

SIZES = {"64 x 64": (2, 2), "96 x 160": (3, 5), "75 x 330": (3, 11)}
"""Rows and columns of images, and of their coarsest maps."""


@measured(size=tuple(SIZES))
def scores(size: str) -> dict[str, int]:
    """The numbers in all maps of the network's attention."""
    net = P2AT(5, (1, 1, 1, 1), 4, 8).eval()
    with torch.no_grad():
        maps = net.intermediates(torch.zeros(1, 3, *map(int, size.split(" x "))))
    return {"entries": sum(each.numel() for each in maps.values()), "layers": len(net.layers)}


def are_of_both_axes(found: Figures) -> Finding:
    """Exactly, at every size."""
    told, held = [], []
    for size, (y, x) in SIZES.items():
        own, layers = (found.one(name, size=size) for name in ("entries", "layers"))
        told.append(f"{own:,} at {y} × {x} cells")
        held.append(own == layers * HEADS * (y * y + x * x))
    return Finding.of(", ".join(told), *held)


@measured()
def places() -> dict[str, float]:
    """Attention of as many rows as places are learned, against one written out."""
    torch.manual_seed(0)
    made = AxisAttention(HEADS * 3).double()
    q, k, v = (drawn(2, HEADS * c, PLACES, seed=n) for n, c in enumerate((3, 3, 5)))
    with torch.no_grad():
        queries, keys, values = (each.unflatten(1, (HEADS, -1)) for each in (q + made.q, k + made.k, v))
        weights = torch.softmax(torch.einsum("bhdi,bhdj->bhij", queries, keys) * 3**-0.5, -1)
        want = torch.einsum("bhij,bhdj->bhdi", weights, values).flatten(1, 2)
        return {"apart": apart(made(q, k, v), want)}
