"""Agent attention: a few pooled queries gather the values, and every query asks them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d

from regard.core.atlas import Claim, published
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.mechanism import Example, Mechanism, Traits, repeat_heads
from regard.kernels import dense, packing


@published(
    "agent",
    family="latent",
    row=144,
    title="Agent Attention: On the Integration of Softmax and Linear Attention",
    arxiv="2312.08874",
    year=2023,
    aliases=("agent_attention",),
    fidelity="authors' code",
    claim=(
        Claim(
            "equals the product of its two softmax matrices",
            cells="long_texts.two_matrices",
            holds="common.within(most=1e-12)",
        ),
        Claim(
            "cost linear in n",
            cells="long_texts.doubled_of(name=agent)",
            holds="common.at_most(figure=ratio, most=2.0, said='FLOPs for twice the tokens')",
        ),
    ),
)
class Agent(Mechanism):
    """Pooled queries, the agents, attend to the keys, and the queries attend to the agents.

        A = softmax(Q Gᵀ / √d) softmax(G Kᵀ / √d),   G = mean of the queries in each of a equal stretches

    A is ``weights``; a is ``agents``. Bidirectional self-attention.

    Shapes: ``q (b, h, n, d)``, ``k (b, g, n, d)``, ``v (b, g, n, e)`` -> ``(b, h, n, e)``; g divides h.
    Cost: ``4 a (n + m) max(d, e)`` FLOPs a head, memory O(n + m). Padded and packed batches run one by one.

    Args:
        agents: a, at least 1; no more than the tokens are used.

    Raises:
        ValueError: ``agents`` below one.

    Paper: Han et al., arXiv 2312.08874. Of pictures, agents are pooled over the grid, both softmaxes have biases of
    positions, and a convolution of the values is added: the step ``agents`` of hierarchical networks (`agent_swin`).
    """

    traits = Traits(causal=False, cross=False, rows="one", sign="nonnegative", time="linear")

    def __init__(self, agents: int = 16):
        super().__init__()
        if agents < 1:
            raise wrong("agents", str(agents), "at least 1")
        self.agents = agents

    def pool(self, q: Tensor) -> Tensor:
        """G ``(b, h, min(a, n), d)``."""
        flat = q.flatten(0, 1).mT
        return adaptive_avg_pool1d(flat, min(self.agents, q.shape[2])).mT.unflatten(0, q.shape[:2])

    def support(
        self, n: int, m: int, layout: Layout, device: torch.device | str = "cpu", rows: slice | None = None
    ) -> Tensor:
        seen = layout.allowed(n, m, device, rows)
        return (
            seen
            if layout.key_mask is None
            else seen & layout.key_mask[:, None, m - n :, None][:, :, rows or slice(0, n)]
        )

    def weights(self, q: Tensor, k: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, None, layout, signals)
        out, scale = q.new_zeros(*q.shape[:3], k.shape[2]), q.shape[-1] ** -0.5
        for row, tokens in packing.documents(layout, q.shape[0], k.shape[2], k.device):
            if len(tokens):
                own = q[row : row + 1, :, tokens]
                pooled, keys = self.pool(own), repeat_heads(k[row : row + 1, :, tokens], q.shape[1])
                asked = torch.softmax(own @ pooled.mT * scale, -1)
                out[row, :, tokens[:, None], tokens] = (asked @ torch.softmax(pooled @ keys.mT * scale, -1))[0]
        return out

    def rows(self, q: Tensor, k: Tensor, layout: Layout, rows: slice, **signals: Tensor) -> Tensor:
        return self.weights(q, k, layout)[:, :, rows]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout(), **signals: Tensor) -> Tensor:
        self.check(q, k, v, layout, signals)

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            pooled = self.pool(q)
            return dense.attend(q, pooled, dense.attend(pooled, k, v))

        if k.shape[2] == 0:
            return q.new_zeros(*q.shape[:3], v.shape[3])
        return run(q, k, v) if layout.plain else packing.per_sequence(run, q, k, v, layout)

    def cost(self, shape: Shape, layout: Layout = Layout()) -> Cost:
        agents, d, e = min(self.agents, shape.n), shape.head_dim, shape.values
        flops = 4 * shape.batch * shape.heads * agents * (shape.keys + shape.n) * max(d, e)
        return Cost(flops, shape.io_bytes, 0)

    @classmethod
    def examples(cls) -> Sequence[Example]:
        return [
            Example("5 agents", cls(5), heads=3, kv_heads=3),
            Example("3 agents, grouped", cls(3), heads=4, kv_heads=2),
        ]
