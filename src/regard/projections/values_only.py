"""A projection for mechanisms that look at positions alone: values, and neither queries nor keys."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regard.core.kinds import Sample
from regard.core.sizes import Sizes
from regard.projections.base import Grouped, Projection, split_heads


class ValuesOnly(Projection):
    """One matrix each for values and the output; queries and keys are zeros of size one.

        v_h = c W^V_h,   y = [o_1 … o_h] W^O

    Parameters: 2 width h e.

    Args:
        width: of the hidden states. heads: h. value_dim: e.
    """

    def __init__(self, width: int, heads: int, value_dim: int) -> None:
        super().__init__(Sizes(width, heads, heads, 1, value_dim))
        self.v = nn.Linear(width, heads * value_dim, bias=False)
        self.out = nn.Linear(heads * value_dim, width, bias=False)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        """The grouped projection whose queries are zero attends alike to all, as this does with softmax."""
        found, plain = cls(13, 3, 7), Grouped(Sizes(13, 3, 3, 1, 7))
        plain.same_as(found)
        with torch.no_grad():
            plain.q.weight.zero_()
        return [Sample("3 heads", found, {"equals": plain})]

    @property
    def turned(self) -> int:
        return 0

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k = (part.new_zeros(part.shape[0], self.heads, part.shape[1], 1) for part in (x, context))
        return q, k, split_heads(self.v(context), self.heads)

    def merge(self, out: Tensor) -> Tensor:
        return self.out(out.transpose(1, 2).flatten(2))

    @property
    def parameter_count(self) -> int:
        return 2 * self.width * self.heads * self.value_dim
