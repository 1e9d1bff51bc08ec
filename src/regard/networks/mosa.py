"""Heads that choose the tokens that they project, beside heads of all tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from regard.blocks.attention import Attention
from regard.blocks.block import Block
from regard.core.build import build_text
from regard.core.cost import Cost, Shape
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.core.spec import Layer
from regard.core.state import State, count_new
from regard.kernels.packing import parts
from regard.mechanisms.scored.softmax import Softmax
from regard.mechanisms.sparse.mosa import ExpertChoice
from regard.networks.lm import LM, Config, text_sample
from regard.projections.base import Grouped
from regard.projections.rotary import Rotary


@dataclass(frozen=True)
class MosaState(State):
    """What a layer keeps of the past: of the heads that choose, and of those beside them."""

    chosen: Any
    beside: Any


class MosaHeads(nn.Module):
    """Heads that project the tokens that they take, and those alone, and heads of all tokens, added.

        r = σ(x W_r),   (q, k, v)_h = x_S W_h,   S the tokens that h takes
        y = Σ_h scatter_S(r_S ⊙ softmax(q kᵀ / √d) v  O_h) + beside(x)

    A token attends to earlier taken ones, in the order of the text; the first ``turned`` coordinates of queries and
    keys are turned by its position in it.

    Args:
        width: of the hidden states. heads, head_dim: of those that choose, h and d. choice: how they do. beside: the
            other heads, None for none. rotary: how positions turn q and k, None for not at all.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_dim: int,
        choice: ExpertChoice,
        beside: Attention | None,
        rotary: Rotary | None,
    ) -> None:
        super().__init__()
        self.heads, self.head_dim, self.rotary = heads, head_dim, rotary
        self.choice, self.mechanism, self.beside = choice, Softmax(), beside
        self.route = nn.Linear(width, heads, bias=False)
        self.project = nn.Parameter(torch.empty(heads, width, 3 * head_dim).uniform_(-1, 1) * (3 * head_dim) ** -0.5)
        self.out = nn.Parameter(torch.empty(heads, head_dim, width).uniform_(-1, 1) * (width * heads) ** -0.5)

    def forward(self, x: Tensor, layout: Layout = Layout(causal=True)) -> Tensor:
        """``(b, n, width)`` of ``x (b, n, width)``."""
        y = torch.zeros_like(x) if self.beside is None else self.beside(x, layout)
        (batch, n, _), route = x.shape, torch.sigmoid(self.route(x)).mT
        positions = layout.positions(n, x.device).expand(batch, -1)
        for rows, _, tokens in parts(layout, batch, n, n, x.device):
            if len(tokens):
                own = self.among(x[rows, tokens], route[rows, :, tokens], positions[rows, tokens], layout.causal)
                y = y.index_put((torch.arange(batch, device=x.device)[rows, None], tokens), own, accumulate=True)
        return y

    def among(self, x: Tensor, route: Tensor, positions: Tensor, causal: bool) -> Tensor:
        """The sum of the choosing heads' outputs over one document: ``(b, n, width)``, zeros where none takes it."""
        index = self.choice.taken(route)  # (b, h, k)
        real, place = index >= 0, index.clamp(min=0)
        taken = x[:, None].expand(-1, self.heads, -1, -1).take_along_dim(place[..., None], 2)
        q, k, v = (taken @ self.project).chunk(3, -1)
        at = positions[:, None].expand(-1, self.heads, -1).gather(2, place)
        q, k = (self.turned(part, at) for part in (q, k))
        seen = (real[:, :, None] & real[..., None]).expand(-1, -1, -1, index.shape[2])
        seen = seen & (place[:, :, None] <= place[..., None]) if causal else seen
        found = self.mechanism(q, k, v, Layout(mask=seen)) * (route.gather(2, place) * real)[..., None].to(v.dtype)
        return torch.zeros_like(x).index_put(
            (torch.arange(len(x), device=x.device)[:, None, None], place), found @ self.out, accumulate=True
        )

    def turned(self, x: Tensor, positions: Tensor) -> Tensor:
        """``x (b, h, k, d)`` turned by ``positions (b, h, k)``."""
        if self.rotary is None:
            return x
        return self.rotary(x.flatten(0, 1)[:, None], positions.flatten(0, 1))[:, 0].view_as(x)

    def start(self, batch: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> MosaState:
        """The state before any token.

        Raises:
            ValueError: heads that take the best of all tokens, later ones included.
        """
        if self.choice.threshold is None:
            raise wrong("threshold", "None", "a number: what the best tokens are depends on later ones")
        chosen = self.choice.start(batch, device=device, dtype=dtype)
        beside = None if self.beside is None else self.beside.start(batch, device=device, dtype=dtype)
        return MosaState(chosen.seen, chosen, beside)

    def extend(self, x: Tensor, state: MosaState, key_mask: Tensor | None = None) -> tuple[Tensor, MosaState]:
        """``(y of the new tokens, the state after them)``; all new tokens are projected."""
        positions, seen = count_new(state, key_mask, x.shape[1], x.shape[0])
        q, k, v = (x[:, None] @ self.project).chunk(3, -1)
        at = positions[:, None].expand(-1, self.heads, -1)
        route = torch.sigmoid(self.route(x)).mT
        given = (self.turned(q, at), self.turned(k, at), v)
        out, chosen = self.choice.extend(*given, state.chosen, key_mask, route=route)
        y, beside = (out @ self.out).sum(1), None
        if self.beside is not None:
            own, beside = self.beside.extend(x, state.beside, key_mask)
            y = y + own
        return y, MosaState(seen, chosen, beside)

    def cost(self, n: int, m: int | None = None, batch: int = 1, causal: bool = True, itemsize: int = 4) -> Cost:
        """FLOPs of the matrix products of ``forward``, the most where a threshold chooses; bytes, of the state."""
        width, h, d = self.route.in_features, self.heads, self.head_dim
        count = n if self.choice.threshold is not None else self.choice.count(n)
        inner = self.mechanism.cost(Shape(count, count, batch, h, h, d, d, itemsize))
        flops = inner.flops + 2 * batch * h * (n * width + 4 * count * width * d)
        weights = sum(part.numel() for part in (self.route.weight, self.project, self.out)) * itemsize
        state = batch * n * h * (2 * d + 1) * itemsize
        if self.beside is None:
            return Cost(flops, weights + inner.bytes, state)
        other = self.beside.cost(n, m, batch, causal, itemsize)
        return Cost(flops + other.flops, weights + inner.bytes + other.bytes, state + other.state_bytes)


class MosaLM(LM):
    """A causal language model whose layers have many heads that choose their tokens beside a few of all tokens.

    `LM` with `MosaHeads` in every block.

    Args:
        config: the sizes; its layers are ``"softmax*L"``, or what attends in the heads beside, such as
            ``"window(size=64)*L"``, and its heads are those beside. chosen: how many heads choose. sparsity, first,
            threshold: as of `ExpertChoice`; without a threshold texts cannot be continued. turned: the share of the
            coordinates of queries and keys that positions turn. seed: of the weights, None for PyTorch's running
            generator.

    Raises:
        ValueError: no head that chooses, a share outside of 0 to 1.

    Paper: Piękos et al., arXiv 2505.00315.
    """

    def __init__(
        self,
        config: Config,
        chosen: int = 12,
        sparsity: int = 16,
        first: bool = False,
        threshold: float | None = None,
        turned: float = 0.5,
        seed: int | None = None,
    ) -> None:
        if chosen < 1:
            raise wrong("chosen", str(chosen), "at least 1")
        if not 0 <= turned <= 1:
            raise wrong("turned", str(turned), "0 to 1")
        self.chosen, self.sparsity, self.first, self.threshold, self.turned = chosen, sparsity, first, threshold, turned
        super().__init__(config, seed)

    def block(self, layer: Layer, index: int) -> Block:
        """The layer ``index``."""
        c, choice = self.config, ExpertChoice(self.sparsity, self.first, self.threshold)
        d = c.sizes.head_dim
        size = int(self.turned * d)
        rotary = None if c.rotary_base is None else Rotary(size - size % 2, c.rotary_base)
        mechanism = build_text(layer.mechanism, {"heads": c.heads, "head_dim": d, "value_dim": d, "layer_index": index})
        beside = Attention(mechanism, Grouped(replace(c.sizes, value_dim=d)), rotary)
        return self.around(MosaHeads(c.width, self.chosen, d, choice, beside, rotary))

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        sizes: dict[str, Any] = {"width": 12, "heads": 2, "inner": 17}
        model = cls(Config(29, layers="softmax, window(size=4)", **sizes), 3, 4, threshold=0.5, seed=0)
        sample = text_sample("above a threshold", model)
        return [replace(sample, given={**sample.given, "counted": False})]  # how many are above it is in the data
