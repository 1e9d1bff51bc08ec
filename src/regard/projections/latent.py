"""Projections whose cache is not keys and values of heads but what these are made of: latents, or hidden states."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.sizes import Sizes
from regard.projections.base import Grouped, Projection, split_heads

Form = Literal["expanded", "absorbed"]
EPSILON = 1e-6  # of the norms, as DeepSeek's


@published(
    "latent",
    family="scored",
    kind="projection",
    title="DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model",
    arxiv="2405.04434",
    year=2024,
    aliases=("mla", "multi_head_latent"),
    fidelity="third-party code",
    claim=Claim(
        ("the absorbed form, which attends to the latents of all heads at once, equals the expanded one"),
        cells="projections.absorbed",
        holds="common.within(most=1e-10)",
    ),
)
class Latent(Projection):
    """Multi-head latent attention: keys and values of all heads are made from one short latent of each token.

        c = norm(x W^{DKV}),  k^R = x W^{KR} (turned by position, one for all heads),  q = norm(x W^{DQ}) W^{UQ}
        expanded: k_h = [k^R, c W^{UK}_h],  v_h = c W^{UV}_h
        absorbed: q_h = [q^R_h, q^C_h W^{UK}_hᵀ],  k = [k^R, c],  v = c,  and W^{UV} stands behind the heads

    The turned coordinates come first: give `blocks.Rotary` their number. Both forms have one set of parameters and
    compute the same; expanded is for training, absorbed for decoding, where a token's cache is its latent and k^R:
    once in mechanisms that cache all tokens, twice in those that choose what they keep of keys and of values.

    Args:
        width, heads: as usual. rank: of c. plain, rotary: coordinates of a head without and with position. value: of a
            head's values. query_rank: of the queries' latent, 0 for none. form: as above.

    Raises:
        ValueError: a size below one (query_rank: zero), an odd number of turned coordinates, another form.

    Paper: Liu et al. (DeepSeek-V2), arXiv 2405.04434.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        rank: int,
        plain: int,
        rotary: int,
        value: int,
        query_rank: int = 0,
        form: Form = "expanded",
    ) -> None:
        if form not in ("expanded", "absorbed"):
            raise wrong("form", repr(form), "expanded or absorbed")
        if min(rank, plain, value) < 1 or min(rotary, query_rank) < 0 or rotary % 2:
            got = f"rank {rank}, plain {plain}, rotary {rotary}, value {value}, query_rank {query_rank}"
            raise wrong("rank, plain, rotary, value, query_rank", got, "at least 1; rotary even; query_rank at least 0")
        super().__init__(Sizes(width, heads, *self.shapes(form, heads, rank, plain, rotary, value)))
        self.rank, self.plain, self.rotary, self.value, self.form = rank, plain, rotary, value, form
        self.query_rank = query_rank
        self.query_down = nn.Linear(width, query_rank, bias=False) if query_rank else nn.Identity()
        self.query_norm = nn.RMSNorm(query_rank, EPSILON) if query_rank else nn.Identity()
        self.query_up = nn.Linear(query_rank or width, heads * (rotary + plain), bias=False)
        self.down = nn.Linear(width, rotary + rank, bias=False)
        self.norm = nn.RMSNorm(rank, EPSILON)
        self.key_up = nn.Parameter(torch.randn(heads, rank, plain) * rank**-0.5)
        self.value_up = nn.Parameter(torch.randn(heads, rank, value) * rank**-0.5)
        self.out = nn.Linear(heads * value, width, bias=False)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        positions, without = cls(13, 3, 6, 5, 4, 7, 10), cls(11, 2, 7, 3, 0, 5)
        return [
            Sample("absorbed", positions.as_form("absorbed"), {"equals": positions}),
            Sample("expanded", positions, {"equals": positions.as_form("absorbed")}),
            Sample("absorbed, no positions", without.as_form("absorbed"), {"equals": without}),
        ]

    @staticmethod
    def shapes(form: Form, heads: int, rank: int, plain: int, rotary: int, value: int) -> tuple[int, int, int]:
        """kv heads, head_dim and value_dim of a form."""
        return (heads, rotary + plain, value) if form == "expanded" else (1, rotary + rank, rank)

    def as_form(self, form: Form) -> Latent:
        """The same parameters, shared, in the other form."""
        found = copy.copy(self)
        shapes = self.shapes(form, self.heads, self.rank, self.plain, self.rotary, self.value)
        found.form, found.sizes = form, Sizes(self.width, self.heads, *shapes)
        return found

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = split_heads(self.query_up(self.query_norm(self.query_down(x))), self.heads)
        turned, latent = self.down(context).split([self.rotary, self.rank], dim=-1)
        turned, latent = turned[:, None], self.norm(latent)[:, None]
        if self.form == "expanded":
            k = torch.cat([turned.expand(-1, self.heads, -1, -1), latent @ self.key_up], dim=-1)
            return q, k, latent @ self.value_up
        across = q[..., self.rotary :] @ self.key_up.mT
        # Mechanisms divide by the root of the head_dim that they see; that of the expanded form is meant.
        factor = ((self.rotary + self.rank) / (self.rotary + self.plain)) ** 0.5
        return torch.cat([q[..., : self.rotary], across], -1) * factor, torch.cat([turned, latent], -1), latent

    def merge(self, out: Tensor) -> Tensor:
        out = out if self.form == "expanded" else out @ self.value_up
        return self.out(out.transpose(1, 2).flatten(2))

    @property
    def turned(self) -> int:
        return self.rotary

    @property
    def value_slice(self) -> slice | None:
        return None if self.form == "expanded" else slice(self.rotary, self.rotary + self.rank)

    @property
    def parameter_count(self) -> int:
        return self.flops // 2 + self.rank + self.query_rank

    @property
    def flops(self) -> int:
        """FLOPs for each token, the same in both forms."""
        query = self.heads * (self.rotary + self.plain)
        to_query = self.query_rank * (self.width + query) if self.query_rank else self.width * query
        up = self.rank * self.heads * (self.plain + self.value)
        return 2 * (to_query + self.width * (self.rotary + self.rank + self.heads * self.value) + up)


@published(
    "expanded_queries",
    family="scored",
    kind="projection",
    row=257,
    title="EL-Attention: Memory Efficient Lossless Attention for Generation",
    arxiv="2105.04779",
    year=2021,
    aliases=("el_attention",),
    fidelity="third-party code",
    claim=(
        Claim(
            "queries that are expanded by the key matrix attend to hidden states themselves: equal to "
            "multi-head attention, with a cache of one vector a token for all heads",
            cells="projections.expanded_queries",
            holds="projections.caches_hidden_states",
        ),
        Claim(
            "a decoder of BART's kind writes with it at least as fast as with its cache of the source",
            cells="source_cache.decoding",
            holds="source_cache.no_slower",
        ),
    ),
)
class ExpandedQueries(Projection):
    """A multi-head projection in the form that caches hidden states instead of keys and values.

        q_h = x W^Q_h W^K_hᵀ,   k = v = c,   y = Σ_h o_h W^V_h W^O_h

    No rotary positions: they would stand between W^Q and W^K. `hosts.expanded.ExpandedCross` puts it into the
    cross-attention of Transformers' encoder–decoders.

    Args:
        of: the projection whose parameters it uses.

    Paper: Yan et al., arXiv 2105.04779.
    """

    def __init__(self, of: Grouped) -> None:
        super().__init__(Sizes(of.width, of.heads, 1, of.width, of.width))
        self.of = of

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        of, grouped = Grouped(Sizes(13, 3, 3, 5, 7)), Grouped(Sizes(11, 4, 2, 3, 5))
        return [Sample("3 heads", cls(of), {"equals": of}), Sample("4 heads over 2", cls(grouped), {"equals": grouped})]

    @property
    def turned(self) -> int:
        return 0

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p = self.of
        keys = p.k.weight.view(p.kv_heads, p.head_dim, p.width).repeat_interleave(p.heads // p.kv_heads, 0)
        factor = (p.width / p.head_dim) ** 0.5  # mechanisms divide by the root of the width instead
        return split_heads(p.q(x), p.heads) @ keys * factor, context[:, None], context[:, None]

    def merge(self, out: Tensor) -> Tensor:
        p = self.of
        values = p.v.weight.view(p.kv_heads, p.value_dim, p.width).repeat_interleave(p.heads // p.kv_heads, 0)
        return p.merge(out @ values.mT)

    @property
    def value_slice(self) -> slice | None:
        return slice(0, self.width)

    @property
    def parameter_count(self) -> int:
        return self.of.parameter_count

    @property
    def flops(self) -> int:
        p = self.of
        return 2 * p.heads * (p.head_dim + p.value_dim) * 2 * p.width
