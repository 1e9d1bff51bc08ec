"""One small network for each way of attending: causal or not, to itself or to another sequence."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.blocks.attention import Attention
from regard.blocks.block import GatedNetwork
from regard.blocks.convolution import ShortConvolution
from regard.core.errors import wrong
from regard.core.layout import Layout
from regard.core.spec import Layer as LayerText
from regard.core.spec import parse_layers
from regard.networks.base import Network
from regard.networks.lm import Config

Pattern = Literal["causal self", "noncausal self", "causal cross", "noncausal cross"]
Backbone = Literal["sequential", "parallel"]
PATTERNS = ("causal self", "noncausal self", "causal cross", "noncausal cross")
BACKBONES = ("sequential", "parallel")
TAPS = 3
"""Of the convolution over embeddings."""


class Layer(nn.Module):
    """Attention and a gated network behind norms, one after the other or side by side.

        sequential: h = x + attention(norm(x)),   y = h + network(norm(h))
        parallel:   y = x + attention(norm(x)) + network(norm(x)),   one norm

    With ``inner`` = 0 both are y = x + attention(norm(x)).

    Papers: pre-norm blocks: Xiong et al., arXiv 2002.04745; parallel ones: Chowdhery et al. (PaLM), 2204.02311.
    """

    def __init__(self, attention: Attention, width: int, inner: int, backbone: Backbone) -> None:
        super().__init__()
        self.attention, self.network, self.backbone = attention, GatedNetwork(width, inner), backbone
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2 if backbone == "sequential" and inner else 1))
        if backbone == "sequential" and not inner:
            self.norms.append(nn.Identity())

    def forward(self, x: Tensor, layout: Layout, context: Tensor | None) -> Tensor:
        normed = self.norms[0](x)
        h = x + self.attention(normed, layout, context)
        return h + self.network(self.norms[1](h) if self.backbone == "sequential" else normed)


def layer_of(config: Config, text: LayerText, index: int, pattern: Pattern, backbone: Backbone) -> Layer:
    """The layer ``index`` of such a network; its mechanism is refused where it cannot attend in the pattern."""
    attention, cross = config.attention(text, index), pattern.endswith("cross")
    traits = attention.mechanism.traits
    able = attention.causal if pattern.startswith("causal") else traits.bidirectional and (traits.cross or not cross)
    if not able or (cross and not attention.crosses):
        raise wrong("pattern", repr(pattern), f"one that {text.mechanism.name} has")
    found = Layer(attention, config.width, config.inner_width, backbone)
    with torch.no_grad():
        found.network.down.weight.mul_((2 * config.depth) ** -0.5)
    return found


class BenchmarkNetwork(Network):
    """Embedding, layers, norm, and the embedding again as the output matrix, in one of the four attention patterns.

    Every embedding passes a short causal convolution, so that a token knows those just before it and what is left to
    attention is to find and to fetch (as in Zoology, arXiv 2312.04927). In the cross patterns the queries' tokens
    attend to the context's alone, which stays as it is from layer to layer.

    Shapes: ``ids (b, n)``, ``context (b, m)`` or None -> ``(b, n, vocabulary)``; causal cross needs n = m.

    Args:
        config: the sizes. pattern, backbone: see `PATTERNS`, `BACKBONES`. seed: of the weights.

    Raises:
        ValueError: a mechanism that cannot attend in this pattern, by its name.
    """

    def __init__(self, config: Config, pattern: Pattern, backbone: Backbone = "sequential", seed: int = 0) -> None:
        super().__init__()
        if pattern not in PATTERNS or backbone not in BACKBONES:
            wanted = f"one of {', '.join(PATTERNS)} and of {', '.join(BACKBONES)}"
            raise wrong("pattern, backbone", f"{pattern!r}, {backbone!r}", wanted)
        self.config, self.causal, self.cross = config, pattern.startswith("causal"), pattern.endswith("cross")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(config.vocabulary, config.width)
            nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
            self.convolution = ShortConvolution(config.width, TAPS)
            parsed = parse_layers(config.layers)
            self.layers = nn.ModuleList(
                layer_of(config, layer, index, pattern, backbone) for index, layer in enumerate(parsed)
            )
        self.norm = nn.RMSNorm(config.width)

    def forward(self, ids: Tensor, context: Tensor | None = None) -> Tensor:
        if (context is None) == self.cross:
            raise wrong("context", "None" if context is None else "a sequence", "one in the cross patterns alone")
        x, seen = self.embed(ids), None if context is None else self.embed(context)
        layout = Layout(causal=self.causal)
        for layer in self.layers:
            x = layer(x, layout, seen)
        return F.linear(self.norm(x), self.embedding.weight)

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings ``(b, n, width)`` that know the tokens just before."""
        return self.convolution(self.embedding(ids), Layout())
