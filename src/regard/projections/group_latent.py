"""Grouped latent attention: one latent of each token for each group of heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.projections.base import split_heads
from regard.projections.latent import EPSILON, Form, Latent


@published(
    "group_latent",
    family="scored",
    kind="projection",
    title="Hardware-Efficient Attention for Fast Decoding",
    arxiv="2505.21487",
    year=2025,
    aliases=("gla_projection", "grouped_latent"),
    fidelity="hand values",
    claim=Claim(
        "the absorbed form, in which a group's heads attend to its latents, equals the expanded one",
        cells="alternating.absorbed_groups",
        holds="common.within(most=1e-10)",
    ),
)
class GroupLatent(Latent):
    """Multi-head latent attention whose heads are groups with a latent each; the turned coordinates are all heads'.

        c_g = norm(x W^{DKV}_g),   expanded: k_h = [k^R, c_g W^{UK}_h],  v_h = c_g W^{UV}_h for each head h of group g
        absorbed: q_h = [q^R_h, q^C_h W^{UK}_hᵀ],   k_g = [k^R, c_g],  v_g = c_g,  and W^{UV} stands behind the heads

    With one group it is `Latent`. A group's heads share keys and values, so that mechanisms which choose do it for all
    of them at once.

    Args:
        width, heads: as usual. groups: latents of a token, a divisor of heads. rank: of each. plain, rotary, value,
            query_rank, form: as of `Latent`.

    Raises:
        ValueError: groups that do not divide the heads, and what `Latent` refuses.

    Paper: Zadouri et al., arXiv 2505.21487.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        groups: int,
        rank: int,
        plain: int,
        rotary: int,
        value: int,
        query_rank: int = 0,
        form: Form = "expanded",
    ) -> None:
        if groups < 1 or heads % groups:
            raise wrong("groups", str(groups), f"a divisor of the {heads} heads")
        super().__init__(width, heads, rank, plain, rotary, value, query_rank, form)
        self.groups = groups
        self.down = nn.Linear(width, rotary + groups * rank, bias=False)
        self.norm = nn.RMSNorm(rank, EPSILON)
        if form == "absorbed":
            self.sizes = replace(self.sizes, kv_heads=groups)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        two, one = cls(13, 4, 2, 6, 5, 4, 7, 10), cls(11, 3, 1, 7, 3, 2, 5)
        return [
            Sample("absorbed, two groups", two.as_form("absorbed"), {"equals": two}),
            Sample("expanded, two groups", two, {"equals": two.as_form("absorbed")}),
            Sample("one group is a latent", one, {"equals": plain_like(one)}),
        ]

    def as_form(self, form: Form) -> GroupLatent:
        found = super().as_form(form)
        assert isinstance(found, GroupLatent)
        if form == "absorbed":
            found.sizes = replace(found.sizes, kv_heads=found.groups)
        return found

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = split_heads(self.query_up(self.query_norm(self.query_down(x))), self.heads)
        turned, latent = self.down(context).split([self.rotary, self.groups * self.rank], dim=-1)
        latent = self.norm(split_heads(latent, self.groups))
        if self.form == "expanded":
            each = latent.repeat_interleave(self.heads // self.groups, 1)
            k = torch.cat([turned[:, None].expand(-1, self.heads, -1, -1), each @ self.key_up], dim=-1)
            return q, k, each @ self.value_up
        across = q[..., self.rotary :] @ self.key_up.mT
        # Mechanisms divide by the root of the head_dim that they see; that of the expanded form is meant.
        factor = ((self.rotary + self.rank) / (self.rotary + self.plain)) ** 0.5
        k = torch.cat([turned[:, None].expand(-1, self.groups, -1, -1), latent], -1)
        return torch.cat([q[..., : self.rotary], across], -1) * factor, k, latent

    @property
    def parameter_count(self) -> int:
        return self.flops // 2 + self.rank + self.query_rank

    @property
    def flops(self) -> int:
        return super().flops + 2 * self.width * (self.groups - 1) * self.rank


def plain_like(group: GroupLatent) -> Latent:
    """The latent of one group, with its parameters."""
    found = Latent(group.width, group.heads, group.rank, group.plain, group.rotary, group.value, group.query_rank)
    found.load_state_dict(group.state_dict())
    return found
