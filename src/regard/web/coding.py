"""Numbers as byte strings that are small and quickly read: varints, planes, raw deflate."""

from __future__ import annotations

import zlib

import numpy as np


def varints(values: np.ndarray) -> bytes:
    """Each value below 2^35 in as few 7-bit groups as it needs."""
    length = np.ones(len(values), dtype=np.int64)
    for groups in range(1, 5):
        length += values >= 1 << (7 * groups)
    ends = np.cumsum(length)
    out = np.empty(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
    for byte in range(5):
        has = length > byte
        group = (values[has] >> (7 * byte)) & 0x7F
        out[ends[has] - length[has] + byte] = group | ((length[has] > byte + 1).astype(np.int64) << 7)
    return out.tobytes()


def planes(values: np.ndarray) -> bytes:
    """The bytes of little-endian numbers: one plane a byte, the most significant first."""
    size = values.dtype.itemsize
    return np.ascontiguousarray(values.reshape(-1).view(np.uint8).reshape(-1, size)[:, ::-1].T).tobytes()


def deflate(data: bytes) -> bytes:
    """Raw deflate, as the browser's ``DecompressionStream("deflate-raw")`` reads it."""
    squeeze = zlib.compressobj(6, zlib.DEFLATED, -15)
    return squeeze.compress(data) + squeeze.flush()
