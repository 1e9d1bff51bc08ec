"""What a mechanism costs, from its formula."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """The sizes that a cost depends on; symbols as in `scaled_dot_product_attention`.

    Args:
        n: queries. m: keys, None for ``n``. batch, heads, kv_heads (None for ``heads``), head_dim: d.
        value_dim: e, None for d. itemsize: bytes of one number, 4 for float32. inside: whether values are part of the
            keys, as those of latent attention, so that a cache of all tokens holds them once.
    """

    n: int
    m: int | None = None
    batch: int = 1
    heads: int = 1
    kv_heads: int | None = None
    head_dim: int = 64
    value_dim: int | None = None
    itemsize: int = 4
    inside: bool = False

    @property
    def keys(self) -> int:
        return self.n if self.m is None else self.m

    @property
    def groups(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def values(self) -> int:
        return self.head_dim if self.value_dim is None else self.value_dim

    @property
    def cache_bytes(self) -> int:
        """Keys and values of all tokens."""
        numbers = self.head_dim + (0 if self.inside else self.values)
        return self.batch * self.groups * self.keys * numbers * self.itemsize

    @property
    def io_bytes(self) -> int:
        """Reading q, k and v once and writing the output once: the least that any algorithm moves."""
        queries = self.heads * self.n * (self.head_dim + self.values)
        return self.batch * (queries + self.groups * self.keys * (self.head_dim + self.values)) * self.itemsize


@dataclass(frozen=True)
class Cost:
    """FLOPs of the matrix products (two per multiply-add), bytes that must move, bytes of decoding state."""

    flops: int
    bytes: int
    state_bytes: int
