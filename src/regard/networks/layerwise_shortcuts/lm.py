"""A language model whose last layer attends to all layers before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regard.core.atlas import Claim, published
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.core.state import count_new
from regard.networks.layerwise_shortcuts.depth_attention import DepthAttention
from regard.networks.lm import LM, Config, LMState, text_sample


@published(
    "layerwise_shortcuts",
    family="scored",
    kind="network",
    row=334,
    title="Adaptive Large Language Models By Layerwise Attention Shortcuts",
    arxiv="2409.10870",
    year=2024,
    aliases=("attention_shortcuts", "depth_attention"),
    claim=Claim(
        text="all weight on the last layer is the model without shortcuts; a character model's loss is at most that of "
        "one with as many parameters; the weights over depth differ by token and by class of token",
        status="partly",
        figure="the baseline to 1e-6; held-out nats of 3 seeds 1.647, 1.694, 1.640 against 1.671, 1.686, 1.650 of "
        "equal parameters: 0.009 lower in the mean, within the seeds; letters and blanks weigh layers differently",
        command="pytest tests/claims/test_shortcuts.py",
    ),
)
class ShortcutLM(LM):
    """A causal language model that attends over its layers' outputs before the logits are read.

        h_{l+1} = block_l(h_l),   logits = norm(DepthAttention(h_1 … h_L)) Eᵀ

    Shapes: ``ids (b, n)`` int64 -> ``(b, n, vocabulary)``. State: that of the layers; attention over depth has none.

    Raises:
        ValueError: fewer than two layers, or heads that do not divide the width.

    Paper: Verma and Pilanci, arXiv 2409.10870. There the maps of each layer are networks, and attention runs over the
    earlier tokens of all layers as well; here over the layers of the token itself.
    """

    def __init__(self, config: Config, seed: int | None = None) -> None:
        super().__init__(config, seed)
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed + 1)
            self.shortcut = DepthAttention(config.width, config.heads, config.depth, config.eps)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        return [text_sample("3 layers", cls(Config(29, 24, "softmax*3", heads=2, inner=17), seed=0))]

    def intermediates(
        self, ids: Tensor, key_mask: Tensor | None = None, segments: Tensor | None = None
    ) -> dict[str, Tensor]:
        """A of the layers, and over them ``(b, h, n, L)``."""
        maps = super().intermediates(ids, key_mask, segments)
        return maps | {"shortcut": self.shortcut.weights(self.hidden(ids, key_mask, segments)).movedim(2, 1)}

    def forward(self, ids: Tensor, key_mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        return self.read(self.shortcut(self.hidden(ids, key_mask, segments)))

    def hidden(self, ids: Tensor, key_mask: Tensor | None = None, segments: Tensor | None = None) -> list[Tensor]:
        """What each layer gives, from the first: ``(b, n, width)``."""
        layout, x, found = Layout(causal=True, key_mask=key_mask, segments=segments), self.embed(ids), []
        for block in self.layers:
            x = block(x, layout)
            found.append(x)
        return found

    def extend(self, ids: Tensor, state: LMState, key_mask: Tensor | None = None) -> tuple[Tensor, LMState]:
        _, seen = count_new(state, key_mask, ids.shape[1], ids.shape[0])
        x, hidden, layers = self.embed(ids), [], []
        for block, layer in zip(self.layers, state.layers, strict=True):
            x, layer = block.extend(x, layer, key_mask)
            hidden.append(x)
            layers.append(layer)
        return self.read(self.shortcut(hidden)), LMState(seen, tuple(layers))

    def flops(self, n: int, batch: int = 1) -> int:
        c, depth = self.config, self.config.depth
        shortcut = 4 * c.width**2 * (depth + 1) + 2 * c.width * (2 * depth - 1)
        return super().flops(n, batch) + batch * n * shortcut
