"""Padded and packed batches as what they stand for: sequences and documents on their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from regard.core.layout import Layout

Run = Callable[..., Tensor]


def per_sequence(run: Run, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """``run(q, k, v)`` on the real tokens of each sequence and document by itself, the outputs put back in place.

    Where the layout has a mask, ``run`` gets the part of it that is about these tokens as a fourth argument.
    For kernels whose layout is regular: padding costs nothing, and a window never meets it. Queries that are
    padding, or that stand before the first key, get zeros.
    """
    n, m = q.shape[2], k.shape[2]
    out = q.new_zeros(*q.shape[:3], v.shape[3])
    for row, tokens in documents(layout, q.shape[0], m, k.device):
        queries = tokens[tokens >= m - n] - (m - n)
        if queries.numel():
            single = slice(row, row + 1)
            mask = () if layout.mask is None else (mask_of(layout.mask, row, queries, tokens),)
            part = run(q[single, :, queries], k[single, :, tokens], v[single, :, tokens], *mask)
            out[row, :, queries] = part[0]
    return out


def mask_of(mask: Tensor, row: int, queries: Tensor, keys: Tensor) -> Tensor:
    """``(1, heads or 1, queries, keys)``: what a mask ``(batch or 1, heads or 1, n, m)`` says of some of a sequence."""
    own = mask[min(row, mask.shape[0] - 1)][None]
    return own.index_select(2, queries).index_select(3, keys)


def documents(layout: Layout, batch: int, m: int, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """Each sequence and document: its row in the batch, and the columns of its real tokens."""
    for row in range(batch):
        tokens = torch.arange(m, device=device)
        tokens = tokens if layout.key_mask is None else tokens[layout.key_mask[row]]
        if layout.segments is None:
            yield row, tokens
        else:
            lengths = layout.segments[row][tokens].unique_consecutive(return_counts=True)[1]
            yield from ((row, part) for part in tokens.split(lengths.tolist()))
