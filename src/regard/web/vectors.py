"""Queries and keys of a few heads for the page's neuron view: of all heads they would be many times the page.

A vector is its largest coordinate, as float16, and the coordinates in thousandths of it. A blob is the planes of the
former and those of the latter as int16, coordinate by coordinate.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from regard.core.errors import wrong
from regard.web.coding import deflate, planes

BYTES = 1_200_000
"""Of the page, for heads that nobody asked for."""
MOST = 4_000_000
"""For those that somebody did."""
ROLES = ("retrieval", "induction", "previous_token", "duplicate_token", "sink")
Blobs = dict[str, bytes]


def vectors(folder: Path, record: dict[str, Any]) -> tuple[list[tuple[int, int]], Blobs]:
    """``(layer, head)`` of those whose vectors are on the page, and the blobs by name (``9/q/4``, ``9/k/1``).

    First the heads that the record asks for (``neurons``), else those that lead its roles, until `BYTES` are full.

    Raises:
        ValueError: heads that are asked for take more than `MOST`.
    """
    if not record["kept"]:
        return [], {}
    asked = [(layer, head) for layer, head in record.get("neurons", [])]
    heads, blobs, size = list[tuple[int, int]](), Blobs(), 0
    with safe_open(folder / "tensors.safetensors", framework="pt") as tensors:
        names = set(tensors.keys())
        scored = {layer["index"]: layer for layer in record["layers"] if f"{layer['index']}/lse" in names}
        for layer, head in asked or leading(record):
            if layer not in scored:
                continue
            about, mine = scored[layer], Blobs()
            for kind, row in (("q", head), ("k", head // (about["heads"] // about["kv_heads"]))):
                if f"{layer}/{kind}/{row}" not in blobs:
                    mine[f"{layer}/{kind}/{row}"] = packed(tensors.get_slice(f"{layer}/{kind}")[row])
            size += encoded(mine)
            if size > (MOST if asked else BYTES):
                if asked:
                    most = f"fewer, which take at most {MOST / 1e6:.0f} MB of the page"
                    raise wrong("neurons", f"{len(asked)} heads of {record['tokens']:,} tokens", most)
                break
            heads.append((layer, head))
            blobs |= mine
    return heads, blobs


def encoded(blobs: Blobs) -> int:
    """Bytes that they take in the page."""
    return sum(len(blob) for blob in blobs.values()) * 5 // 4


def leading(record: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """The best head of each role, the second best, and so on; then all others."""
    ranked = [[(layer, head) for layer, head, _ in record["summary"][role]] for role in ROLES]
    every = [(layer["index"], head) for layer in record["layers"] for head in range(layer["heads"])]
    longest = max(map(len, ranked))
    best = [heads[rank] for rank in range(longest) for heads in ranked if rank < len(heads)]
    yield from dict.fromkeys(best + every)


def packed(vectors: torch.Tensor) -> bytes:
    """``(n, d)`` vectors."""
    values = vectors.float().numpy()
    largest = np.maximum(np.abs(values).max(1, keepdims=True), 1e-7).astype("<f2")
    codes = np.rint(values / largest.astype("<f4") * 1000)
    return deflate(planes(largest.ravel()) + planes(codes.T.astype("<i2").ravel()))
