"""Projections that mechanisms ask for: B and C of state-space layers, made of hidden states or of the values, and
queries that are the keys too."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from regard.core.errors import wrong
from regard.core.sizes import Sizes
from regard.projections.base import Grouped, Projection, merge_heads, split_heads


class MultiValue(Grouped):
    """Queries and keys shared by the heads of a group, values for every head: multi-value attention.

        q_g = x W^Q_g,   k_g = c W^K_g,   v_h = c W^V_h,   y = [o_1 … o_h] W^O

    The mirror of multi-query attention; Mamba-2's B and C are its keys and queries. Parameters:
    width (2 g d + 2 h e).

    Args:
        sizes: its kv_heads are g, the groups; those of the projection itself are h, as every head has its values.

    Paper: Dao and Gu, arXiv 2405.21060.
    """

    def __init__(self, sizes: Sizes) -> None:
        Projection.__init__(self, replace(sizes, kv_heads=sizes.heads))
        self.groups = sizes.kv_heads
        self.q = nn.Linear(self.width, self.groups * self.head_dim, bias=False)
        self.k = nn.Linear(self.width, self.groups * self.head_dim, bias=False)
        self.v = nn.Linear(self.width, self.heads * self.value_dim, bias=False)
        self.out = nn.Linear(self.heads * self.value_dim, self.width, bias=False)

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.groups, self.groups, self.heads

    @property
    def parameter_count(self) -> int:
        return 2 * self.width * (self.groups * self.head_dim + self.heads * self.value_dim)


class SharedKeys(Grouped):
    """Queries that are the keys too, for every head.

        q_h = x W^Q_h,   k_h = c W^Q_h,   v_h = c W^V_h,   y = [o_1 … o_h] W^O

    c is ``context``, x itself in self-attention. Parameters: width (h d + 2 h e).

    Raises:
        ValueError: other kv heads than heads.

    Papers: Kitaev et al., arXiv 2001.04451; Roy et al., 2003.05997.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        if sizes.kv_heads != sizes.heads:
            raise wrong("kv_heads", str(sizes.kv_heads), f"the {sizes.heads} heads, whose queries are the keys")
        del self.k

    def forward(self, x: Tensor, context: Tensor, values: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        v = self.v(context if values is None else values)
        q = split_heads(self.q(x), self.heads)
        k = q if context is x else split_heads(self.q(context), self.heads)
        return q, k, split_heads(v, self.heads)

    @property
    def parameter_count(self) -> int:
        return self.width * self.heads * (self.head_dim + 2 * self.value_dim)


class Selective(MultiValue):
    """Values for every head; queries and keys are made of all of these, after the block's convolution and activation.

        v_h = c W^V_h,   z = act(conv([v_1 … v_h])),   q_g = z W^Q_g,   k_g = z W^K_g,   y = [o_1 … o_h] W^O

    Mamba's x_proj, of one value a head. Parameters: 2 h e (width + g d).

    Paper: Gu and Dao, arXiv 2312.00752.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.q = nn.Linear(self.inner, self.groups * self.head_dim, bias=False)
        self.k = nn.Linear(self.inner, self.groups * self.head_dim, bias=False)

    @property
    def inner(self) -> int:
        """Size of z."""
        return self.heads * self.value_dim

    def forward(self, x: Tensor, context: Tensor, values: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """As for z = v, without what the block does between."""
        v = self.written(context)
        return *self.scored(v), v

    def written(self, context: Tensor) -> Tensor:
        """Values ``(b, h, m, e)`` as they are projected."""
        return split_heads(self.v(context), self.heads)

    def scored(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys ``(b, g, m, d)`` of values as the mechanism takes them."""
        z = merge_heads(v)
        return split_heads(self.q(z), self.groups), split_heads(self.k(z), self.groups)

    @property
    def parameter_count(self) -> int:
        return 2 * self.inner * (self.width + self.groups * self.head_dim)


def as_hosted(kind: str, sizes: Sizes) -> Grouped:
    """The plain projection that `LayerSpec.projection` names; ``kv_heads`` are the groups of those that share."""
    if kind == "shared":
        return SharedKeys(replace(sizes, kv_heads=sizes.heads) if sizes.kv_heads == 1 else sizes)
    return {"grouped": Grouped, "multi_value": MultiValue, "selective": Selective}[kind](sizes)
