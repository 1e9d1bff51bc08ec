"""How queries, keys and values come from hidden states, and how the heads' outputs become one again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor, nn

from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.sizes import Sizes, sizes_apart


class Projection(nn.Module):
    """The base of every projection: hidden states in, ``q (b, h, n, d)``, ``k (b, g, m, d)``, ``v (b, g, m, e)`` out.

    Args:
        sizes: width of the hidden states, h, g, d and e.

    Raises:
        TypeError: something else than `Sizes`.
    """

    order: int = 1
    """Of attention: above 1, so many attentions less one make queries and keys first (`Nexus`)."""

    @sizes_apart
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        if not isinstance(sizes, Sizes):
            raise wrong("sizes", repr(sizes), "Sizes(width, heads, kv_heads, head_dim, value_dim)", TypeError)
        self.sizes = sizes

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        if "__init__" in vars(cls):
            cls.__init__ = sizes_apart(cls.__init__)

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(q, k, v)`` of hidden states ``x (b, n, width)`` and of those attended to, ``context (b, m, width)``."""
        raise NotImplementedError

    def add_value_positions(self, v: Tensor, positions: Tensor | None) -> Tensor:
        """Values ``(b, g, m, e)`` with what their tokens' ``positions (b or 1, m)`` add, None in another sequence."""
        return v

    def gate_heads(self, out: Tensor, x: Tensor, positions: Tensor | None) -> Tensor:
        """The heads' outputs ``(b, h, n, e)`` after what the queries' own ``x (b, n, width)`` does to them.

        ``positions (b or 1, n)`` are those of x, None in attention to another sequence.
        """
        return out

    def merge(self, out: Tensor) -> Tensor:
        """Hidden states ``(b, n, width)`` of the heads' outputs."""
        raise NotImplementedError

    def finish(self, out: Tensor, x: Tensor, positions: Tensor | None) -> Tensor:
        """All that follows attention: `opened`, then `merge`, then what x does to the whole."""
        return self.merge(self.gate_heads(out, x, positions))

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        """Small instances that the laws examine, ``given`` what they equal, if anything: see `laws.projection`."""
        raise NotImplementedError

    @property
    def width(self) -> int:
        """Of the hidden states."""
        return self.sizes.width

    @property
    def heads(self) -> int:
        """How many query heads the mechanism has."""
        return self.sizes.heads

    @property
    def kv_heads(self) -> int:
        """How many heads of keys and values the mechanism has."""
        return self.sizes.kv_heads

    @property
    def head_dim(self) -> int:
        """Coordinates of a query and of a key."""
        return self.sizes.head_dim

    @property
    def value_dim(self) -> int:
        """Coordinates of a value."""
        return self.sizes.value_dim

    @property
    def parameter_count(self) -> int:
        """How many parameters it has, by formula."""
        raise NotImplementedError

    @property
    def turned(self) -> int:
        """How many coordinates of queries and keys, the first ones, rotary positions turn; even."""
        return self.head_dim - self.head_dim % 2

    @property
    def causal(self) -> bool:
        """Whether what it makes of a token depends on that token alone, so that texts can be continued and padded."""
        return True

    @property
    def ordered(self) -> bool:
        """Whether what it makes of a token depends on earlier tokens too, though on no later ones: whole texts can be
        attended to causally, and continued from all hidden states so far, but neither padded nor packed."""
        return False

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many heads of queries, of keys and of values it makes; fewer than the mechanism's are repeated for it."""
        return self.heads, self.kv_heads, self.kv_heads

    @property
    def value_slice(self) -> slice | None:
        """The coordinates of each key that its value is, so that a cache can hold both once; None if it is not."""
        return None

    @property
    def cached_numbers(self) -> int:
        """Numbers that a cache of all tokens holds for each of them."""
        return self.kv_heads * (self.head_dim + (self.value_dim if self.value_slice is None else 0))

    @property
    def flops(self) -> int:
        """FLOPs for each token: two for each parameter of a matrix."""
        return 2 * self.parameter_count


class Grouped(Projection):
    """One matrix each for queries, keys, values and the output: MHA, MQA (g = 1) and GQA.

        q_h = x W^Q_h,   k_g = c W^K_g,   v_g = c W^V_g,   y = [o_1 … o_h] W^O

    c is ``context``, x itself in self-attention. Parameters: width (h d + g d + g e + h e).

    Papers: Vaswani et al., arXiv 1706.03762; Shazeer, 1911.02150 (g = 1); Ainslie et al., 2305.13245.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.q = nn.Linear(self.width, self.heads * self.head_dim, bias=False)
        self.k = nn.Linear(self.width, self.kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(self.width, self.kv_heads * self.value_dim, bias=False)
        self.out = nn.Linear(self.heads * self.value_dim, self.width, bias=False)

    def forward(self, x: Tensor, context: Tensor, values: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """``values`` are the hidden states of the values where these are not the keys'."""
        queries, keys, written = self.counts
        v = self.v(context if values is None else values)
        return split_heads(self.q(x), queries), split_heads(self.k(context), keys), split_heads(v, written)

    def merge(self, out: Tensor) -> Tensor:
        return self.out(out.transpose(1, 2).flatten(2))

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [Sample("8 heads over 2", cls(Sizes(13, 8, 2, 5, 7))), Sample("1 head", cls(Sizes(11, 1, 1, 4, 3)))]

    def same_as(self, other: nn.Module) -> Self:
        """Itself, with those weights of ``other`` whose names it has."""
        self.load_state_dict(other.state_dict(), strict=False)
        return self

    @property
    def parameter_count(self) -> int:
        queries = self.heads * (self.head_dim + self.value_dim)
        return self.width * (queries + self.kv_heads * (self.head_dim + self.value_dim))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``(b, n, heads · d)`` as ``(b, heads, n, d)``."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """`apart` undone."""
    return x.transpose(1, 2).flatten(2)
