"""Uniform attention added by hand: a vision transformer whose networks end in a mean over all tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.networks.benchmark import Backbone, Layer
from regard.networks.lm import Config
from regard.networks.vision.vit import ViT, image_sample


class ContextBroadcast(nn.Module):
    """Each token takes the mean of all tokens: attention with the same weight everywhere.

        CB:    y_i = (x_i + μ) / 2,   μ = Σ_j x_j / n
        CB_S:  y_i = x_i + λ ⊙ μ

    λ is ``scale``, a learned number for each channel, from zero. It stands at the end of a layer's network, before what
    came in is added. Bidirectional only: the paper has no causal form.

    Shapes: ``(b, n, width)`` -> ``(b, n, width)``. Cost: O(n width), no matrix product. Padding is left out of μ.

    Args:
        width: of the hidden states for CB_S; None for CB, which has no parameters.

    Raises:
        ValueError: a causal layout, packed documents, or a mask.

    Paper: Hyeon-Woo et al., arXiv 2210.08457.
    """

    def __init__(self, width: int | None = None) -> None:
        super().__init__()
        self.scale = None if width is None else nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, layout: Layout = Layout()) -> Tensor:
        if layout.causal:
            raise wrong("layout.causal", "True", "False: a mean over all tokens looks ahead")
        if layout.segments is not None:
            raise wrong("layout.segments", "packed documents", "None: the mean is over all tokens")
        if layout.mask is not None:
            raise wrong("layout.mask", "a mask", "None: the mean is over all tokens")
        real = x.new_ones(x.shape[:2]) if layout.key_mask is None else layout.key_mask.to(x.dtype)
        share = real / real.sum(1, keepdim=True).clamp(min=1)
        mean = share[:, None] @ x
        return (x + mean) / 2 if self.scale is None else x + self.scale * mean


@published(
    "context_broadcasting",
    family="scored",
    kind="network",
    row=149,
    title="Scratching Visual Transformer's Back with Uniform Attention",
    arxiv="2210.08457",
    year=2022,
    aliases=("cb", "cb_s", "uniform_attention"),
    claim=Claim(
        text="no parameters more; on digits the mean entropy of attention falls below the baseline's, and the accuracy "
        "not more than 0.3 points",
        status="not reproduced",
        figure="no parameters more; digits, 3 seeds, 300 steps: entropy 2.10 nats with CB, 2.07 without, accuracy "
        "87.0% against 89.0%; CB_S 2.09 and 88.6%",
        command="pytest tests/claims/test_broadcast.py",
    ),
)
class BroadcastViT(ViT):
    """A vision transformer whose tokens also take the mean of all tokens: attention with the same weight everywhere.

    `ContextBroadcast` stands at the end of each layer's network.

    Args:
        scaled: CB_S instead of CB. The others: see `ViT`.
    """

    def __init__(
        self,
        config: Config,
        image: tuple[int, int],
        patch: int,
        scaled: bool = False,
        channels: int = 1,
        backbone: Backbone = "sequential",
        seed: int = 0,
    ) -> None:
        super().__init__(config, image, patch, channels, backbone, seed)
        for layer in self.layers:
            end = ContextBroadcast(config.width if scaled else None)
            layer.network = nn.Sequential(cast(Any, layer).network, end)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        config = Config(7, 24, "softmax*2", heads=2, inner=17)
        found = {"CB": cls(config, (6, 10), 2, False, 3), "CB_S": cls(config, (6, 10), 2, True, 3)}
        return [image_sample(label, model) for label, model in found.items()]


@torch.no_grad()
def attention_entropy(model: ViT, images: Tensor) -> Tensor:
    """``−Σ_j A_ij log A_ij`` in nats, its mean over images, heads and tokens: one number a layer, ``(layers,)``."""
    x, found = model.embed(images), []
    for layer in cast(list[Layer], model.layers):
        q, k, _, signals = layer.attention.inputs(layer.norms[0](x))
        found.append(torch.special.entr(layer.attention.mechanism.weights(q, k, Layout(), **signals)).sum(-1).mean())
        x = layer(x, Layout(), None)
    return torch.stack(found)
