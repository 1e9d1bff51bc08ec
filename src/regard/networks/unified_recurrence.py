"""Unified recurrence: tokens of a frame as vertices whose states pass messages, one frame after the other."""

from __future__ import annotations

from collections.abc import Sequence
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

Edges = Literal["full", "learned", "states", "template"]


class SelfAttentionBlock(nn.Module):
    """``x + W A(x) V x`` with several heads and a norm before; an adjacency may be put over A's scores."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm, self.attention = heads, nn.LayerNorm(width), build("softmax")
        self.maps, self.join = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, adjacency: Tensor | None = None) -> Tensor:
        """x ``(b, n, width)``; ``adjacency (b, n, n)``, shares that multiply A before its rows sum to one."""
        q, k, v = self.maps(self.norm(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        layout = Layout() if adjacency is None else Layout(bias=adjacency.clamp(min=1e-6).log()[:, None])
        return x + self.join(self.attention(q, k, v, layout).transpose(1, 2).flatten(2))


@published(
    "unified_recurrence",
    family="structured",
    kind="network",
    row=224,
    title="Unified Recurrence Modeling for Video Action Anticipation",
    arxiv="2206.01009",
    year=2022,
    aliases=("unre",),
    fidelity="abstract only",
    claim=(
        Claim(
            "it tells the next action of clips of an action grammar 3 points more often than a GRU and than a mean",
            cells="anticipation.told",
            holds="anticipation.tells_more",
        ),
    ),
)
class UnifiedRecurrence(Network):
    """A recurrent graph network: for each frame edges are made, messages are passed and vertices updated.

        x_t = vertices of the frame,   E_t = edges(s_{t−1}, x_t),   m_t = message([s_{t−1}; x_t], E_t)
        s_t = s_{t−1} + z_t ⊙ (update(m_t) − s_{t−1}),   z_t = σ(W [s_{t−1}; m_t]),   answer = W' mean s_T

    Message, edge and update functions are blocks of self-attention. Edges are one of four strategies: ``full``, all
    alike; ``learned``, a matrix that all frames share; ``states``, from the states alone; ``template``, a softmax over
    templates that the states choose from. Which strategies the paper has is not in its abstract; these are named here.

    Shapes: ``clip (b, t, n, channels)`` -> logits of the next action after each frame ``(b, t, actions)``.

    Args:
        channels: of a vertex. vertices: n. actions: to tell. width, heads: of the states. edges: the strategy.
        templates: of that strategy. seed: of the initial weights; None takes PyTorch's.

    Raises:
        ValueError: another strategy, heads that do not divide the width, or clips of other vertices.

    Paper: Tai et al., arXiv 2206.01009. Vertices are a frame's tokens, which any network of frames may give.
    """

    def __init__(
        self,
        channels: int,
        vertices: int,
        actions: int,
        width: int = 64,
        heads: int = 4,
        edges: Edges = "states",
        templates: int = 3,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if edges not in get_args(Edges):
            raise wrong("edges", repr(edges), f"one of {', '.join(get_args(Edges))}")
        if width % heads:
            raise wrong("width", str(width), f"a multiple of {heads} heads")
        if seed is not None:
            torch.manual_seed(seed)
        self.channels, self.vertices, self.width, self.edges = channels, vertices, width, edges
        self.embed, self.places = nn.Linear(channels, width), nn.Parameter(torch.randn(vertices, width) * 0.5)
        self.join = nn.Linear(2 * width, width)
        self.message, self.update = SelfAttentionBlock(width, heads), SelfAttentionBlock(width, heads)
        self.gate, self.out = nn.Linear(2 * width, width), nn.Linear(width, actions)
        if edges == "learned":
            self.matrix = nn.Parameter(0.1 * torch.randn(vertices, vertices))
        if edges in ("states", "template"):
            self.edge = SelfAttentionBlock(width, heads)
        if edges == "states":
            self.pair = nn.Linear(width, 2 * width, bias=False)
        if edges == "template":
            self.matrices = nn.Parameter(0.1 * torch.randn(templates, vertices, vertices))
            self.choose = nn.Linear(width, templates)

    def adjacency(self, state: Tensor) -> Tensor | None:
        """E, ``(b, n, n)``; None where all vertices are neighbours."""
        if self.edges == "full":
            return None
        if self.edges == "learned":
            return self.matrix.softmax(-1).expand(state.shape[0], -1, -1)
        if self.edges == "template":
            shares = self.choose(self.edge(state).mean(1)).softmax(-1)
            return torch.einsum("bk,kij->bij", shares, self.matrices.softmax(-1))
        a, b = self.pair(self.edge(state)).chunk(2, -1)
        return (a @ b.mT * self.width**-0.5).softmax(-1)

    def advance(self, state: Tensor, frame: Tensor) -> Tensor:
        """The states ``(b, n, width)`` after a frame ``(b, n, channels)``."""
        x = F.relu(self.join(torch.cat([state, self.embed(frame) + self.places], -1)))
        message = self.message(x, self.adjacency(x))
        gate = torch.sigmoid(self.gate(torch.cat([state, message], -1)))
        return state + gate * (self.update(message) - state)

    def forward(self, clip: Tensor) -> Tensor:
        if clip.dim() != 4 or clip.shape[2:] != (self.vertices, self.channels):
            raise wrong("clip", f"shape {tuple(clip.shape)}", f"(b, t, {self.vertices}, {self.channels})")
        state, told = clip.new_zeros(clip.shape[0], self.vertices, self.width), []
        for frame in clip.unbind(1):
            state = self.advance(state, frame)
            told.append(self.out(state.mean(1)))
        return torch.stack(told, 1)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        given = {"inputs": random_clips, "output": (5, 11)}
        made: dict[str, Any] = {edges: cls(7, 3, 11, 8, 2, edges, seed=0) for edges in get_args(Edges)}
        return [Sample(label, network, given) for label, network in made.items()]


def random_clips(batch: int, seed: int) -> tuple[Tensor]:
    """Clips for examples."""
    return (torch.randn(batch, 5, 3, 7, generator=torch.Generator().manual_seed(seed)),)
