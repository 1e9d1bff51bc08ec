"""Heads that bring relations between tokens beside heads that bring the tokens themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.sizes import Sizes
from regard.projections.base import Grouped, Projection, merge_heads, split_heads
from regard.projections.rotary import Rotary

Symbols = Literal["attention", "position", "relative"]


@published(
    "dual",
    family="scored",
    kind="projection",
    row=23,
    title="Disentangling and Integrating Relational and Sensory Information in Transformer Architectures",
    arxiv="2405.16727",
    year=2024,
    aliases=("dat", "dual_attention", "relational_attention"),
    fidelity="hand values",
    claim=(
        Claim(
            "without relational heads it is multi-head attention", cells="dual.without", holds="common.within(most=0)"
        ),
        Claim("its layers are the equation", cells="dual.equation", holds="common.within(most=1e-12)"),
        Claim(
            "with them, and as many parameters, whether an object occurs among three is learned from at most half the "
            "samples",
            cells="dual.samples",
            holds="dual.takes_half",
        ),
    ),
)
class Dual(Projection):
    """Sensory heads, which take values, and relational heads, which take relations to the tokens and their symbols.

        sensory:     o_ih = Σ_j α_ijh x_j W^V_h
        relational:  o_ih = Σ_j α_ijh (r_ij W^R_h + s_j W^S_h),   r_ijl = ⟨x_i Q_l, x_j K_l⟩ / √p,   l = 1 … R

    α is whatever the layer's mechanism makes of q and k. No r_ij is formed: since Σ_j α_ij ⟨x_i Q_l, x_j K_l⟩ is
    ⟨x_i Q_l, Σ_j α_ij x_j K_l⟩, the values of a relational head are all x_j K_l and its symbol, and `opened` does the
    rest. Sensory values are padded to their size.

    Symbols s, by ``symbols``: "attention": ``softmax(x_j W Tᵀ / √width) L`` over a library of ``library`` rows, told by
    what the token is; "position": row p_j of the library; "relative": sines and cosines of p_j − p_i.

    Sizes: p = d h_r / R for h_r relational heads. Values have e numbers without relational heads, else R p + e (for
    "relative" e to the next even number).

    Args:
        relational: h_r, the last heads. relations: R, None for h_r. symmetric: K = Q. symbols, library: as above.

    Raises:
        ValueError: h_r outside 0 … h, a group of heads with both kinds, R that does not divide d h_r, other symbols, a
            position beyond the library, attention to another sequence for symbols of positions.

    Paper: Altabaa and Lafferty, arXiv 2405.16727. There "relative" is a learned row for each distance up to a longest,
    which no value of j alone can carry; symbolic attention may have several heads, and one library serves all layers.
    """

    def __init__(
        self,
        sizes: Sizes,
        relational: int = 1,
        relations: int | None = None,
        symmetric: bool = False,
        symbols: Symbols = "attention",
        library: int = 32,
    ) -> None:
        super().__init__(sizes)
        width, heads, kv_heads, head_dim, value_dim = astuple(sizes)
        if not 0 <= relational <= heads or relational % (heads // kv_heads):
            raise wrong(
                "relational", str(relational), f"0 to {heads}, a multiple of {heads // kv_heads}, a key's heads"
            )
        if symbols not in ("attention", "position", "relative"):
            raise wrong("symbols", repr(symbols), "attention, position or relative")
        count = relational if relations is None else relations
        if relational and (count < 1 or head_dim * relational % count):
            raise wrong("relations", str(count), f"a divisor of {head_dim * relational}, head_dim times relational")
        self.relational, self.relations, self.symmetric = relational, count, symmetric
        self.symbols, self.library, self.size = symbols, library, value_dim
        self.groups = relational // (heads // kv_heads)
        self.q = nn.Linear(width, heads * head_dim, bias=False)
        self.k = nn.Linear(width, kv_heads * head_dim, bias=False)
        plain = kv_heads - self.groups
        self.v = nn.Linear(width, plain * value_dim, bias=False) if plain else None
        self.out = nn.Linear(heads * value_dim, width, bias=False)
        if relational:
            self.add_relations(head_dim * relational)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        two, four = Sizes(13, 4, 2, 6, 7), Sizes(13, 4, 4, 6, 7)
        none = cls(two, relational=0)
        found = [
            Sample(f"symbols by {symbols}", cls(four, 2, 3, symmetric, symbols))
            for symbols, symmetric in zip(get_args(Symbols), (False, True, False), strict=True)
        ]
        plain = Grouped(two).same_as(none)
        return [Sample("no relational heads", none, {"equals": plain}), *found, Sample("all", cls(two, 4))]

    def add_relations(self, wide: int) -> None:
        """The parameters of relational heads; ``wide`` is R p."""
        self.told = self.size + self.size % 2 if self.symbols == "relative" else self.size
        self.sizes = replace(self.sizes, value_dim=wide + self.told)
        self.relation_q = nn.Linear(self.width, wide, bias=False)
        self.relation_k = None if self.symmetric else nn.Linear(self.width, wide, bias=False)
        self.relation_out = nn.Parameter(torch.randn(self.relational, self.relations, self.size) * self.relations**-0.5)
        if self.symbols == "relative":
            self.symbol_out = nn.Parameter(torch.randn(self.relational, self.told, self.size) * self.told**-0.5)
            return
        self.rows = nn.Parameter(torch.randn(self.library, self.width))
        self.symbol_v = nn.Linear(self.width, self.groups * self.size, bias=False)
        if self.symbols == "attention":
            self.symbol_q = nn.Linear(self.width, self.width, bias=False)
            self.templates = nn.Parameter(torch.randn(self.library, self.width))

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k = split_heads(self.q(x), self.heads), split_heads(self.k(context), self.kv_heads)
        parts = []
        if self.v is not None:
            v = split_heads(self.v(context), self.kv_heads - self.groups)
            parts.append(F.pad(v, (0, self.value_dim - self.size)))
        if self.groups:
            keys = (self.relation_k or self.relation_q)(context)[:, None].expand(-1, self.groups, -1, -1)
            if self.symbols == "attention":
                found = torch.softmax(self.symbol_q(context) @ self.templates.mT * self.width**-0.5, -1) @ self.rows
                symbols = split_heads(self.symbol_v(found), self.groups)
            else:
                symbols = keys.new_zeros(*keys.shape[:3], self.told)
            parts.append(torch.cat([keys, symbols], -1))
        return q, k, torch.cat(parts, 1)

    def add_value_positions(self, v: Tensor, positions: Tensor | None) -> Tensor:
        if not self.groups or self.symbols == "attention":
            return v
        if positions is None:
            raise wrong("context", "another sequence", "None: symbols of positions are those of one sequence")
        if self.symbols == "relative":
            symbols = Rotary(self.told)(self.unit(v), positions)
        else:
            if positions.numel() and int(positions.max()) >= self.library:
                raise wrong("library", str(self.library), f"{int(positions.max()) + 1} or more, for so many positions")
            symbols = split_heads(self.symbol_v(self.rows[positions.expand(v.shape[0], -1)]), self.groups)
        before, own = v.split([self.kv_heads - self.groups, self.groups], 1)
        symbols = symbols.expand(*own.shape[:3], -1)
        return torch.cat([before, torch.cat([own[..., : -self.told], symbols], -1)], 1)

    def unit(self, like: Tensor) -> Tensor:
        """The symbol of distance zero, ``(1, 1, 1, told)``: cosines one, sines zero."""
        half = torch.ones(self.told // 2, dtype=like.dtype, device=like.device)
        return torch.cat([half, 0 * half])[None, None, None]

    def gate_heads(self, out: Tensor, x: Tensor, positions: Tensor | None) -> Tensor:
        sensory, taken = out.split([self.heads - self.relational, self.relational], 1)
        sensory = sensory[..., : self.size]
        if not self.relational:
            return sensory
        taken, symbols = taken.split([self.value_dim - self.told, self.told], -1)
        shape = (self.relations, -1)
        queries = self.relation_q(x).unflatten(-1, shape)[:, None]
        related = (taken.unflatten(-1, shape) * queries).sum(-1) * queries.shape[-1] ** -0.5
        if self.symbols == "relative":
            assert positions is not None
            symbols = Rotary(self.told)(symbols, -positions) @ self.symbol_out
        return torch.cat([sensory, related @ self.relation_out + symbols], 1)

    def merge(self, out: Tensor) -> Tensor:
        return self.out(merge_heads(out))

    @property
    def parameter_count(self) -> int:
        shared = self.symmetric * self.width * self.head_dim * self.relational
        looked_up = self.library * self.width if self.relational and self.symbols == "position" else 0
        return self.flops // 2 - shared + looked_up

    @property
    def flops(self) -> int:
        h, g, d, e = self.relational, self.groups, self.head_dim, self.size
        own = (self.heads + self.kv_heads) * d + (self.kv_heads - g + self.heads) * e
        if not h:
            return 2 * self.width * own
        symbols = h * self.told * e if self.symbols == "relative" else self.width * g * e
        symbols += self.width * (self.width + 2 * self.library) if self.symbols == "attention" else 0
        return 2 * (self.width * (own + 2 * d * h) + h * self.relations * e + symbols)
