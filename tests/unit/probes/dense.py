"""Probes written from their definitions over a dense A, to hold the streaming ones to."""

from __future__ import annotations

import math

import torch

from regard.core.tile import Tile, Tokens


def make_map(heads: int, n: int, seed: int = 0, batch: int = 1, causal: bool = True) -> torch.Tensor:
    """A softmax map ``(batch, heads, n, n)`` in float64 with some heavy entries."""
    scores = 3 * torch.randn(batch, heads, n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if causal:
        scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -math.inf)
    return scores.softmax(-1)


def tiles(dense, ids=None, cuts=(0,), causal=True, keys=None, start=False, **other):
    """The tiles of whole rows of a dense map, cut at the rows ``cuts``; ``start`` leaves keys out that no row sees."""
    n = dense.shape[2]
    keys = torch.ones(dense.shape[0], n, dtype=torch.bool) if keys is None else keys
    tokens = None if ids is None else Tokens(ids)
    for first, last in zip(cuts, [*cuts[1:], n], strict=True):
        width = last if causal and start else n
        yield Tile(
            layer=0,
            weights=dense[:, :, first:last, :width],
            rows=torch.arange(first, last),
            start=0,
            m=n,
            queries=keys[:, first:last],
            key_mask=keys,
            causal=causal,
            tokens=tokens,
            **other,
        )


def fed(probe, *args, **kwargs):
    """The probe after all tiles of a map."""
    for tile in tiles(*args, **kwargs):
        probe.update(tile)
    return probe


def last_before(ids: list[int], i: int, token: int) -> int | None:
    """The last slot before ``i`` that holds ``token``."""
    return max((j for j in range(i) if ids[j] == token), default=None)


def induction(dense, ids):
    rows = [(i, last_before(ids, i, ids[i])) for i in range(len(ids))]
    rows = [(i, p) for i, p in rows if p is not None and p + 1 < i]
    return torch.stack([dense[:, i, p + 1] for i, p in rows]).mean(0)


def duplicate(dense, ids):
    found = []
    for i in range(len(ids)):
        same = [j for j in range(i) if ids[j] == ids[i]]
        if same:
            found.append(dense[:, i, same].sum(-1))
    return torch.stack(found).mean(0)


def retrieval(dense, ids, beyond):
    found = []
    for t in range(len(ids) - 1):
        copies = [j for j in range(t - beyond + 1) if ids[j] == ids[t + 1]]
        if copies:
            strongest = dense[:, t].argmax(-1)
            found.append(torch.isin(strongest, torch.tensor(copies)).double())
    return torch.stack(found).mean(0)


def pooled(dense, cells):
    """By the definition of docs/record.md: cell y covers ⌊yn/c⌋ … ⌊(y+1)n/c⌋ − 1."""
    n = dense.shape[1]
    edge = [y * n // cells for y in range(cells + 1)]
    out = torch.zeros(dense.shape[0], cells, cells, dtype=torch.float64)
    for y in range(cells):
        for x in range(cells):
            pairs = [(i, j) for i in range(edge[y], edge[y + 1]) for j in range(edge[x], edge[x + 1]) if j <= i]
            if pairs:
                out[:, y, x] = sum(dense[:, i, j] for i, j in pairs) / len(pairs)
    return out
