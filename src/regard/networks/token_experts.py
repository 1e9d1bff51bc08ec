"""Mixtures of experts whose router hears what tokens that are alike would choose."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.build import build
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.networks.base import Network

Graph = Literal["none", "similarity", "attention"]
CAUSAL = Layout(causal=True)


class GraphOfTokens(nn.Module):
    """A router of tokens to the best few of E experts, whose choice is a mean over a graph of tokens.

        p_j = softmax(W x_j),   p̃_i = Σ_j S_ij p_j,   y_i = Σ_{e in top k of p̃_i} p̃_ie / Σ p̃_i E_e(x_i)

    S is the identity (plain experts), ``softmax(x W_s xᵀ / τ)``, or the mean of the heads of the attention before; it
    looks back only.

    Args:
        width: of x. experts: E. top: k. inner: of each expert's network. graph: "none", "similarity" or "attention".
        temperature: τ.

    Paper: Nguyen et al., arXiv 2505.00792.
    """

    def __init__(self, width: int, experts: int, top: int, inner: int, graph: Graph, temperature: float) -> None:
        super().__init__()
        self.top, self.graph, self.temperature = top, graph, temperature
        self.router = nn.Linear(width, experts, bias=False)
        self.alike = nn.Linear(width, width, bias=False) if graph == "similarity" else None
        self.into, self.out = (
            nn.Parameter(torch.randn(experts, a, b) * a**-0.5) for a, b in ((width, inner), (inner, width))
        )

    def shares(self, x: Tensor, attention: Tensor) -> Tensor:
        """p̃, ``(b, n, E)``; ``attention (b, h, n, n)`` is that of the layer before."""
        own = self.router(x).softmax(-1)
        if self.graph == "none":
            return own
        if self.graph == "attention":
            return attention.mean(1) @ own
        scores = self.alike(x) @ x.mT / self.temperature  # pyright: ignore[reportOptionalCall]
        return scores.masked_fill(~CAUSAL.allowed(x.shape[1], x.shape[1], x.device)[:, 0], -torch.inf).softmax(-1) @ own

    def forward(self, x: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs, and p̃."""
        shares = self.shares(x, attention)
        best, chosen = shares.topk(self.top, -1)
        weights = torch.zeros_like(shares).scatter(-1, chosen, best / best.sum(-1, keepdim=True))
        rows, mixed, out = x.flatten(0, 1), weights.flatten(0, 1), torch.zeros_like(x.flatten(0, 1))
        for expert, (into, back) in enumerate(zip(self.into, self.out, strict=True)):
            where = mixed[:, expert].nonzero()[:, 0]
            done = F.gelu(rows[where] @ into) @ back
            out = out.index_add(0, where, mixed[where, expert, None] * done)
        return out.view_as(x), shares


@published(
    "token_graph_experts",
    family="structured",
    kind="network",
    row=220,
    title="Improving Routing in Sparse Mixture of Experts with Graph of Tokens",
    arxiv="2505.00792",
    year=2025,
    aliases=("similarity_aware_smoe", "attention_aware_smoe"),
    fidelity="abstract only",
    claim=(
        Claim(
            "late in training fewer tokens change their experts than with plain experts, at a perplexity within 1%",
            cells="experts.routed",
            holds="experts.switches_less",
        ),
        Claim(
            "the entropy of the choice of experts is lower",
            cells="experts.routed",
            holds="experts.is_surer",
        ),
    ),
)
class ExpertsLM(Network):
    """A causal language model with a mixture of experts behind every attention, routed over a graph of tokens.

        x ← x + attention(norm x),   x ← x + experts(norm x, A)

    Shapes: ``ids (b, n)`` -> logits ``(b, n, vocabulary)``.

    Args:
        vocabulary, width, heads, depth: as in `LM`. experts, top, inner, graph, temperature: of `GraphOfTokens`.
        seed: of the initial weights; None takes PyTorch's.

    Raises:
        ValueError: another graph, more experts taken than there are, or heads that do not divide the width.

    Paper: Nguyen et al., arXiv 2505.00792.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int = 64,
        heads: int = 4,
        depth: int = 2,
        experts: int = 8,
        top: int = 2,
        inner: int = 64,
        graph: Graph = "none",
        temperature: float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if graph not in get_args(Graph):
            raise wrong("graph", repr(graph), f"one of {', '.join(get_args(Graph))}")
        if not 1 <= top <= experts or width % heads or not temperature > 0:
            came = f"{top} of {experts}, {width} over {heads}, {temperature}"
            raise wrong("top, width, temperature", came, "at most the experts, a multiple of heads, above 0")
        if seed is not None:
            torch.manual_seed(seed)
        self.heads, self.embedding = heads, nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.randn(512, width) * 0.1)
        self.attention = build("softmax")
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "before": nn.LayerNorm(width),
                    "maps": nn.Linear(width, 3 * width, bias=False),
                    "join": nn.Linear(width, width, bias=False),
                    "between": nn.LayerNorm(width),
                    "experts": GraphOfTokens(width, experts, top, inner, graph, temperature),
                }
            )
            for _ in range(depth)
        )
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def routed(self, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits, and p̃ ``(b, n, E)`` of each layer."""
        if ids.shape[1] > self.places.shape[0]:
            raise wrong("ids", f"{ids.shape[1]} tokens", f"at most {self.places.shape[0]}")
        x, shares = self.embedding(ids) + self.places[: ids.shape[1]], []
        for layer in self.layers:
            parts: Any = layer
            maps = parts["maps"](parts["before"](x)).unflatten(2, (3, self.heads, -1))
            q, k, v = maps.permute(2, 0, 3, 1, 4)
            x = x + parts["join"](self.attention(q, k, v, CAUSAL).transpose(1, 2).flatten(2))
            shown = self.attention.weights(q, k, CAUSAL) if parts["experts"].graph == "attention" else x
            out, own = parts["experts"](parts["between"](x), shown)
            shares.append(own)
            x = x + out
        return self.out(self.norm(x)), shares

    def forward(self, ids: Tensor) -> Tensor:
        return self.routed(ids)[0]

    def loss(self, ids: Tensor) -> Tensor:
        """Nats a token."""
        return F.cross_entropy(self(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        given = {"inputs": partial(random_ids, vocabulary=13), "output": (11, 13)}
        return [
            Sample(graph, cls(13, 8, 2, 2, 3, 2, 5, graph, seed=0), given)
            for graph in ("none", "similarity", "attention")
        ]


def random_ids(batch: int, seed: int, vocabulary: int) -> tuple[Tensor]:
    """Tokens for examples."""
    return (torch.randint(vocabulary, (batch, 11), generator=torch.Generator().manual_seed(seed)),)
