"""Unpads a batch: where its documents lie, and a kernel run on each sequence or packed document by itself (varlen)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from regard.core.layout import Layout

Kernel = Callable[..., Tensor]
LEAST = 128
"""Tokens below which neighbouring documents run together: fewer make a call dearer than what it leaves out."""


def per_sequence(run: Kernel, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """``run(q, k, v)`` on the real tokens of each sequence and document by itself, the outputs put back in place.

    Where the layout has a mask, ``run`` gets the part of it that is about these tokens as a fourth argument.
    For kernels whose layout is regular: padding costs nothing, and a window never meets it. Queries that are
    padding, or that stand before the first key, get zeros. Documents of one length are a batch of one call, and all
    tokens are sorted by document once, so that neither pass costs more for many short documents than for a long one.
    """
    n, m = q.shape[2], k.shape[2]
    alike: dict[tuple[int, int], list[tuple[int, Tensor, Tensor]]] = {}
    for row, tokens in documents(layout, q.shape[0], m, k.device):
        queries = tokens[tokens >= m - n] - (m - n)
        if len(queries):
            alike.setdefault((len(queries), len(tokens)), []).append((row, queries, tokens))
    if not alike:
        return q.new_zeros(*q.shape[:3], v.shape[3])
    found = [part for group in alike.values() for part in group]
    rows = torch.cat([row * n + queries for row, queries, _ in found])
    columns = torch.cat([row * m + tokens for row, _, tokens in found])
    counts = [(len(group), *lengths) for lengths, group in alike.items()]
    queries, keys, values = (
        by_document(x, places, [(count[0], count[at]) for count in counts])
        for x, places, at in ((q, rows, 1), (k, columns, 2), (v, columns, 2))
    )
    masks = ([] if layout.mask is None else [shown(layout, group)] for group in alike.values())
    outs = [
        run(*given, *mask).transpose(1, 2).flatten(0, 1)
        for *given, mask in zip(queries, keys, values, masks, strict=True)
    ]
    out = outs[0].new_zeros(q.shape[0] * n, *outs[0].shape[1:]).index_copy(0, rows, torch.cat(outs))
    return out.unflatten(0, (q.shape[0], n)).transpose(1, 2)


def maps(
    run: Callable[[Tensor, Tensor, slice], Tensor], q: Tensor, k: Tensor, layout: Layout, rows: slice = slice(None)
) -> Tensor:
    """``(b, h, rows, m)``: some rows of A of sequences and documents that attend by themselves.

    ``run(q, k, rows)`` gives those of one document's last queries ``q (1, h, n, d)``; zeros stand everywhere else.
    """
    (n, m), (start, stop, _) = (q.shape[2], k.shape[2]), rows.indices(q.shape[2])
    a = q.new_zeros(*q.shape[:2], max(stop - start, 0), m)
    for row, tokens in documents(layout, q.shape[0], m, k.device):
        queries, one = tokens[tokens >= m - n] - (m - n), slice(row, row + 1)
        mine = slice(int((queries < start).sum()), int((queries < stop).sum()))
        if mine.stop > mine.start:
            part = run(q[one, :, queries], k[one, :, tokens], mine)[0]
            a[row, :, (queries[mine] - start)[:, None], tokens] = part.to(a)
    return a


def by_document(x: Tensor, places: Tensor, counts: list[tuple[int, int]]) -> list[Tensor]:
    """Batches ``(documents, heads, tokens, d)`` of the tokens at ``places`` of all sequences ``x (b, h, n, d)``.

    ``counts``: of each batch the number of documents, and of tokens in each.
    """
    tokens = x.transpose(1, 2).flatten(0, 1).index_select(0, places)
    split = tokens.split([many * length for many, length in counts])
    return [part.unflatten(0, count).transpose(1, 2) for part, count in zip(split, counts, strict=True)]


def shown(layout: Layout, group: list[tuple[int, Tensor, Tensor]]) -> Tensor:
    """The mask of each document of a group, ``(documents, heads or 1, queries, keys)``."""
    masks = ((layout.of(row).mask, queries, tokens) for row, queries, tokens in group)
    return torch.cat(
        [x.index_select(2, queries).index_select(3, tokens) for x, queries, tokens in masks if x is not None]
    )


def parts(layout: Layout, batch: int, n: int, m: int, device: torch.device) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """What attends by itself: its place in the batch, the rows of its queries and the columns of its keys.

    Each sequence and document, and the whole batch where the layout is regular.
    """
    if layout.regular:
        tokens = torch.arange(m, device=device)
        yield slice(None), tokens[max(m - n, 0) :] - (m - n), tokens
        return
    for row, tokens in documents(layout, batch, m, device):
        yield slice(row, row + 1), tokens[tokens >= m - n] - (m - n), tokens


def documents(layout: Layout, batch: int, m: int, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """Each sequence and document: its row in the batch, and the columns of its real tokens."""
    cut = [[(0, m)]] * batch if layout.segments is None else borders(layout.segments)
    for row, parts in enumerate(cut):
        for first, last in parts:
            tokens = torch.arange(first, last, device=device)
            yield row, tokens if layout.key_mask is None else tokens[layout.key_mask[row, first:last]]


def borders(segments: Tensor) -> list[list[tuple[int, int]]]:
    """Of each sequence of ``segments (b, m)`` its documents: the place of the first token, and that behind the last."""
    opens, m = Layout.opens(segments).cpu(), segments.shape[1]
    return [list(pairwise([*row.nonzero()[:, 0].tolist(), m])) for row in opens]


@dataclass(frozen=True)
class Run:
    """Some documents that lie beside each other in one sequence.

    Args:
        sequence: of the batch. keys: their places. alone: whether it is one document.
    """

    sequence: int
    keys: slice
    alone: bool


def runs(segments: Tensor) -> Iterator[Run]:
    """The documents of ``segments (b, m)``, those shorter than `LEAST` a few together."""
    for sequence, parts in enumerate(borders(segments)):
        start, held = 0, 0
        for first, last in parts:
            if held and last - first >= LEAST:
                yield Run(sequence, slice(start, first), held == 1)
                start, held = first, 0
            held += 1
            if last - start >= LEAST or last == segments.shape[1]:
                yield Run(sequence, slice(start, last), held == 1)
                start, held = last, 0


def reach(layout: Layout, n: int, m: int, blocks: list[slice]) -> list[tuple[int, int]]:
    """The keys, from the first to behind the last, that some query of each block of rows may see."""
    shift = m - n
    last = [min(max(rows.stop + shift, 0), m) if layout.causal else m for rows in blocks]
    if layout.segments is None:
        return [(0, stop) for stop in last]
    place = torch.arange(m + 1, device=layout.segments.device)
    begins = torch.nn.functional.pad(Layout.opens(layout.segments), (0, 1), value=True)
    opened = torch.where(begins[:, :-1], place[:-1], 0).cummax(1).values.amin(0)[shift:]
    closed = torch.where(begins[:, 1:], place[1:], m).flip(1).cummin(1).values.flip(1).amax(0)[shift:]
    ends = torch.stack([torch.stack([opened[rows].amin(), closed[rows].amax()]) for rows in blocks]).tolist()
    return [(first, min(stop, end)) for (first, end), stop in zip(ends, last, strict=True)]
