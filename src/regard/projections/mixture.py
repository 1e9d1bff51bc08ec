"""Heads as experts: each token weighs the heads, and leaves some of them out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.sizes import Sizes
from regard.projections.base import Grouped, split_heads

Router = Literal["softmax", "relu", "norm"]


@published(
    "moh",
    family="scored",
    kind="projection",
    row=78,
    title="MoH: Multi-Head Attention as Mixture-of-Head Attention",
    arxiv="2410.11842",
    year=2024,
    aliases=("mixture_of_head", "mixture_of_heads"),
    fidelity="hand values",
    claim=(
        Claim("gates of one are multi-head attention", cells="moh.gates_of_one", holds="common.within(most=1e-12)"),
        Claim(
            "a small language model with 75% of its heads loses at most 0.02 to it",
            cells="moh.trained",
            holds="moh.loses_little",
        ),
        Claim("routed heads are used alike", cells="moh.trained", holds="moh.are_used_alike"),
    ),
)
class MixtureOfHeads(Grouped):
    """Grouped projections whose heads are experts: each token weighs them, and switches most of the routed ones off.

        y = Σ_h g_h o_h W^O_h
        shared heads:  g_h = 2 α_1 S softmax(x W_S)_h
        routed heads:  g_h = 2 α_2 K p_h / Σ_{chosen} p   if h is among the K largest p, else 0;   p = softmax(x W_R)
        (α_1, α_2) = softmax(x W_H)

    S is ``shared``, the first heads, which every token uses; K is ``routed``; g is ``gates``. The counts S, K and 2
    make the gates one on average, as in the authors' code, so that routers of zero are plain heads.

    "relu" has ``g_h = 2 α_1`` for shared heads and ``2 α_2 relu(x W_R)_h`` for the others: how many are open is learned
    (`head_activation` keeps them from closing for good). "norm" has no parameters and gates of 0 and 1: the K heads
    with the longest queries, for heads that were trained without gates (`to_mixture`).

    All heads are computed. Parameters: those of `Grouped`, and width times (h − S for W_R, S if above 1 for W_S, 2 for
    W_H if S > 0); "relu" has no W_S, "norm" none of them.

    Args:
        shared: S. routed: K, None for all; not for "relu". router: as above.

    Raises:
        ValueError: no head left to route, K not among 1 … h − S, K for "relu", another router.

    Papers: Jin et al., arXiv 2410.11842; "relu": Shi et al. (PVChat), 2503.17069.
    """

    def __init__(self, sizes: Sizes, shared: int = 0, routed: int | None = None, router: Router = "softmax") -> None:
        super().__init__(sizes)
        heads = sizes.heads
        if router not in ("softmax", "relu", "norm"):
            raise wrong("router", repr(router), "softmax, relu or norm")
        if not 0 <= shared < heads:
            raise wrong("shared", str(shared), f"0 to {heads - 1}, so that of {heads} heads one is routed")
        if routed is not None and (router == "relu" or not 1 <= routed <= heads - shared):
            wanted = "None: relu itself chooses" if router == "relu" else f"1 to {heads - shared}, or None for all"
            raise wrong("routed", str(routed), wanted)
        self.shared, self.routed, self.router = shared, heads - shared if routed is None else routed, router
        outputs = {
            "route": heads - shared if router != "norm" else 0,
            "share": shared if router == "softmax" and shared > 1 else 0,
            "balance": 2 if shared and router != "norm" else 0,
        }
        self.routers = nn.ModuleDict({n: nn.Linear(self.width, m, bias=False) for n, m in outputs.items() if m})
        for matrix in self.routers.parameters():
            nn.init.normal_(matrix, std=0.02)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        plain, five = Grouped(Sizes(13, 4, 2, 5, 7)), Sizes(13, 5, 5, 3, 7)
        return [
            Sample("all routed", to_mixture(plain, shared=2, router="softmax"), {"equals": plain}),
            Sample("2 of 3 routed", cls(five, shared=2, routed=2)),
            Sample("relu", cls(five, shared=1, router="relu")),
            Sample("longest queries", to_mixture(plain, shared=1, routed=2)),
        ]

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(p, chosen)`` of the routed heads, each ``(b, n, h − S)``: what they score, and whether they are open."""
        if self.router == "relu":
            p = self.routers["route"](x).relu()
            return p, p > 0
        if self.router == "norm":
            queries = nn.functional.linear(x, self.q.weight[self.shared * self.head_dim :])
            lengths = split_heads(queries, self.heads - self.shared).norm(dim=-1).mT
            p = torch.softmax(lengths / lengths.std(-1, keepdim=True, correction=0).clamp(min=1e-6), -1)
        else:
            p = torch.softmax(self.routers["route"](x), -1)
        return p, torch.zeros_like(p, dtype=torch.bool).scatter(-1, p.topk(self.routed, -1).indices, True)

    def gates(self, x: Tensor) -> Tensor:
        """g ``(b, h, n)`` of tokens ``x (b, n, width)``."""
        p, chosen = self.route(x)
        common = torch.ones_like(x[..., :1]).expand(-1, -1, self.shared)
        if self.router == "norm":
            return torch.cat([common, chosen.to(x.dtype)], -1).mT
        if "share" in self.routers:
            common = self.shared * torch.softmax(self.routers["share"](x), -1)
        if self.router == "softmax":
            p = p * chosen
            p = self.routed * p / p.sum(-1, keepdim=True)
        if self.shared:
            balance = 2 * torch.softmax(self.routers["balance"](x), -1)
            common, p = common * balance[..., :1], p * balance[..., 1:]
        return torch.cat([common, p], -1).mT

    def gate_heads(self, out: Tensor, x: Tensor, positions: Tensor | None) -> Tensor:
        return out * self.gates(x)[..., None]

    @property
    def routing_parameters(self) -> int:
        """Those of the routers, by formula."""
        if self.router == "norm":
            return 0
        own = self.shared if self.router == "softmax" and self.shared > 1 else 0
        return self.width * (self.heads - self.shared + own + (2 if self.shared else 0))

    @property
    def parameter_count(self) -> int:
        return super().parameter_count + self.routing_parameters

    @property
    def flops(self) -> int:
        again = (self.heads - self.shared) * self.head_dim * self.width if self.router == "norm" else 0
        return 2 * (self.parameter_count + again)


def to_mixture(projection: Grouped, shared: int, routed: int | None = None, router: Router = "norm") -> MixtureOfHeads:
    """A mixture of the heads of a trained projection, the first ``shared`` of them for every token.

    With the routers "norm" and "softmax" and all heads routed it computes the same (the latter's matrices start at
    zero); with fewer, the tokens lose the heads with the shortest queries, and training goes on from there.
    """
    found = MixtureOfHeads(projection.sizes, shared, routed, router).to(projection.q.weight)
    found.load_state_dict(projection.state_dict(), strict=False)
    if router == "softmax":
        for matrix in found.routers.parameters():
            nn.init.zeros_(matrix)
    return found


def load_balance(p: Tensor, chosen: Tensor) -> Tensor:
    """How unevenly heads are routed to: ``R Σ_h f_h P_h``, which is K when each of R heads is used alike.

    f_h is the share of tokens that choose h, P_h its mean score.

    Shapes: ``p``, ``chosen (…, R)`` of all tokens -> scalar.

    Paper: Jin et al., arXiv 2410.11842, after Shazeer et al., 1701.06538.
    """
    return p.shape[-1] * (chosen.to(p.dtype).flatten(0, -2).mean(0) * p.flatten(0, -2).mean(0)).sum()


def head_activation(scores: Tensor, target: float) -> Tensor:
    """What it costs that ReLU-routed heads are closed to more tokens than a share of ``target``.

        mean_h max(exp(2 (ρ_h − target)) − 1, 0),   ρ_h = share of tokens with score_h ≤ 0

    A count has no gradient: that of ``sigmoid(−score)`` stands in for it.

    Args:
        scores: ``x W_R`` before the ReLU, ``(…, R)``. target: ρ up to which a head costs nothing, 0 ≤ target < 1.

    Paper: Shi et al. (PVChat), arXiv 2503.17069, whose ρ is of all heads together; here of each, so that none stays
    closed while others make up for it.
    """
    if not 0 <= target < 1:
        raise wrong("target", str(target), "0 or more, and below 1")
    smooth = torch.sigmoid(-scores)
    closed = (scores <= 0).to(scores.dtype) + smooth - smooth.detach()
    return (torch.exp(2 * (closed.flatten(0, -2).mean(0) - target)) - 1).clamp(min=0).mean()


@contextmanager
def routed_tokens(model: nn.Module) -> Iterator[list[tuple[MixtureOfHeads, Tensor]]]:
    """Collects, for each mixture in the model and each call, ``(mixture, the hidden states that it routed)``.

    with routed_tokens(lm) as calls:
        loss = lm.loss(ids)
    loss = loss + 0.01 * sum(load_balance(*mixture.route(x)) for mixture, x in calls)
    """
    calls: list[tuple[MixtureOfHeads, Tensor]] = []
    mixtures = [module for module in model.modules() if isinstance(module, MixtureOfHeads)]

    def watch(mixture: MixtureOfHeads) -> RemovableHandle:
        return mixture.register_forward_pre_hook(lambda _, inputs: calls.append((mixture, inputs[0])))

    hooks = [watch(mixture) for mixture in mixtures]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
