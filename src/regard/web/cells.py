"""What the page knows of weights below its threshold: their mean over each cell of the pooled map, in one byte.

A cell's byte is 0 where its weak weights are nothing, or not known; else ``w = t 10^(5 (byte − 255) / 254)``, where t
is the page's threshold, to 2.3%. The mean over all pairs of a cell follows from this and from the weights that are
kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np

DECADES = 5


def bounds(n: int, cells: int) -> np.ndarray:
    """``(cells + 1,)``: the first token of each cell, and n."""
    return np.arange(cells + 1) * n // cells


def visible_pairs(
    n: int, cells: int, layer: dict[str, Any], computed: np.ndarray, keys: int | None = None
) -> np.ndarray:
    """``(cells, cells)``: how many pairs of each cell the layer's computed queries may see.

    Args:
        layer: the record's description, for ``causal`` and ``window``. computed: ``(n,)`` bool, which rows are known.
        keys: how many there are, n unless said otherwise.
    """
    edges, rows = bounds(n, cells), np.flatnonzero(computed)
    first = np.zeros_like(rows) if layer["window"] is None else np.maximum(0, rows - layer["window"] + 1)
    last = rows + 1 if layer["causal"] else np.full_like(rows, n if keys is None else keys)
    low, high = (np.clip(ends[:, None], edges[:-1], edges[1:]) for ends in (first, last))
    found = np.zeros((cells, cells), dtype=np.int64)
    np.add.at(found, np.searchsorted(edges, rows, "right") - 1, np.maximum(high - low, 0))
    return found


def weak_means(
    pooled: np.ndarray, pairs: np.ndarray, rows: np.ndarray, keys: np.ndarray, weights: np.ndarray, n: int
) -> np.ndarray:
    """``(cells, cells)``: one head's mean over the pairs that are not among the edges.

    Args:
        pooled: means over all pairs, NaN where no row was computed. pairs: of each cell. rows, keys, weights: of the
            edges that are kept.
    """
    edges = bounds(n, len(pairs))
    at = (np.searchsorted(edges, rows, "right") - 1) * len(pairs) + np.searchsorted(edges, keys, "right") - 1
    kept = np.bincount(at, weights, pairs.size).reshape(pairs.shape)
    left = pairs - np.bincount(at, minlength=pairs.size).reshape(pairs.shape)
    mass = np.nan_to_num(pooled.astype(np.float64)) * pairs - kept
    return np.where(left > 0, np.maximum(mass, 0) / np.maximum(left, 1), 0)


def codes(means: np.ndarray, threshold: float) -> np.ndarray:
    """The bytes of these means."""
    with np.errstate(divide="ignore"):
        steps = np.rint(255 + 254 / DECADES * np.log10(means / threshold))
    return np.where(steps >= 1, np.minimum(steps, 255), 0).astype(np.uint8)


def values(packed: np.ndarray, threshold: float) -> np.ndarray:
    """The means that these bytes stand for."""
    return np.where(packed > 0, threshold * 10 ** (DECADES * (packed.astype(np.float64) - 255) / 254), 0)
