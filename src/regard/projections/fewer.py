"""Attention with fewer matrices: without values', without keys', or with one over positions besides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.sizes import Sizes
from regard.projections.base import Grouped, Projection, split_heads


@published(
    "super_attention",
    family="scored",
    kind="projection",
    row=160,
    title="You Need to Pay Better Attention: Rethinking the Mathematics of Attention Mechanism",
    arxiv="2403.01643",
    year=2024,
    aliases=("optimised_attention", "efficient_projection"),
    fidelity="hand values",
    claim=(
        Claim(
            (
                "optimised attention has 3/4, efficient attention 1/2 of multi-head attention's parameters, "
                "super attention one matrix over positions more; they are multi-head attention with the "
                "identity for what they lack"
            ),
            cells="projections.fewer",
            holds="projections.has_fewer",
        ),
        Claim(
            "on digits efficient and super attention are within a point of multi-head attention",
            cells="projections.on_digits",
            holds="projections.within_a_point(forms='efficient super')",
        ),
        Claim(
            "on texts too",
            cells="projections.texts_of(forms='MHA efficient super')",
            holds="projections.within_a_point(forms='efficient super')",
        ),
    ),
)
class FewerMatrices(Projection):
    """Attention without a value matrix (optimised), with one head and neither key nor value matrix (efficient), or with
    a matrix over positions besides (super).

        optimised: q_h = x W^Q_h,  k_h = c W^K_h,  v_h = the h-th slice of c,  y = [o_1 … o_h] W^O
        efficient: q = x W^Q,      k = c,          v = c,                       y = o W^O
        super:     q = x W^Q,      k = c,          v = W^A c,                   y = o W^O

    W^A has a row and a column for each place of a text of at most ``length`` tokens, so that values know of all tokens:
    the super form is bidirectional and takes whole texts, neither padded nor packed. W^A begins as the identity. With
    ``triangular``, values know of no later tokens: it is causal, and can be continued from all hidden states so far.

    Parameters: 3 width², 2 width², and 2 width² + length², half of which say nothing where it is triangular.

    Paper: Hosseini et al., arXiv 2403.01643.

    Raises:
        ValueError: heads that do not divide the width, several of them in forms other than the optimised, a length that
            is missing in the super form, given in another, or shorter than a text; a triangle in another form.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        form: Literal["optimised", "efficient", "super"] = "optimised",
        length: int | None = None,
        triangular: bool = False,
    ) -> None:
        if form not in ("optimised", "efficient", "super"):
            raise wrong("form", repr(form), "optimised, efficient or super")
        if width % heads or (form != "optimised" and heads > 1):
            raise wrong("heads", str(heads), f"a divisor of the width {width}, and 1 in all but the optimised form")
        if (length is None) == (form == "super"):
            raise wrong("length", str(length), "a number of tokens in the super form alone")
        if triangular and form != "super":
            raise wrong("triangular", "True", "False in all but the super form")
        super().__init__(Sizes.even(width, heads))
        self.form, self.triangular = form, triangular
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False) if form == "optimised" else nn.Identity()
        self.out = nn.Linear(width, width, bias=False)
        self.align = None if length is None else nn.Parameter(torch.eye(length))

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        """Each form, and the grouped projection with the identity for what it leaves out."""
        found = []
        for fewer in (cls(12, 3), cls(12, 1, "efficient"), cls(12, 1, "super", 19)):
            form, plain = fewer.form, Grouped(fewer.sizes).same_as(fewer)
            with torch.no_grad():
                for matrix in [plain.v] if form == "optimised" else [plain.k, plain.v]:
                    matrix.weight.copy_(torch.eye(12))
            found.append(Sample(form, fewer, {"equals": plain}))
        mixed = cls(12, 1, "super", 19)
        assert mixed.align is not None
        with torch.no_grad():
            mixed.align.add_(torch.randn_like(mixed.align))
        return [*found, Sample("super, mixed", mixed)]

    @property
    def causal(self) -> bool:
        return self.align is None

    @property
    def ordered(self) -> bool:
        return self.triangular

    @property
    def value_slice(self) -> slice | None:
        return slice(0, self.head_dim) if self.align is None and not isinstance(self.k, nn.Linear) else None

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values, m = context, context.shape[1]
        if self.align is not None:
            if m > len(self.align):
                raise wrong("context", f"{m} tokens", f"at most {len(self.align)}, the length of the matrix")
            align = self.align[:m, :m]
            values = (align.tril() if self.triangular else align) @ values
        return (
            split_heads(self.q(x), self.heads),
            split_heads(self.k(context), self.heads),
            split_heads(values, self.heads),
        )

    def merge(self, out: Tensor) -> Tensor:
        return self.out(out.transpose(1, 2).flatten(2))

    @property
    def parameter_count(self) -> int:
        aligned = 0 if self.align is None else len(self.align) ** 2
        return (3 if isinstance(self.k, nn.Linear) else 2) * self.width**2 + aligned

    @property
    def flops(self) -> int:
        """FLOPs for each token of a text of the full length."""
        aligned = 0 if self.align is None else len(self.align)
        return 2 * ((3 if isinstance(self.k, nn.Linear) else 2) * self.width + aligned) * self.width
