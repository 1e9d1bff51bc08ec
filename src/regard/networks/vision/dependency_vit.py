"""DependencyViT: patches send themselves to their parents, and those that send little are left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.blocks.spatial import flat
from regard.core.atlas import Claim, published
from regard.core.build import build_for
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.networks.base import Network
from regard.networks.stages.steps.attention import Biased
from regard.networks.vision.vit import image_sample
from regard.projections.base import merge_heads

LEAST = 1e-6
"""Of the temperature, so that no division overflows."""


@dataclass(frozen=True)
class Sent:
    """What one layer sent.

    Args:
        weights: A ``(b, h, n, n)``, rows receive, columns send. message: of each token ``(b, n)``, what is left of it.
        tokens: which of the image's patches they are ``(b, n)``.
    """

    weights: Tensor
    message: Tensor
    tokens: Tensor

    @property
    def parents(self) -> Tensor:
        """For each token the place among them of the one that it sends most to ``(b, n)``: the tree; roots are their
        own."""
        return self.weights.sum(1).argmax(1)


class SendingBlock(nn.Module):
    """``x + reversed(norm(x))``, then ``h + mlp(norm(h))``.

        p_h = softmax_h(W_p x / T),   m ← m σ(W_2 gelu(W_1 x)),   send = p_h m

    Args:
        width, heads: of the attention. ratio: of the perceptron. temperature: T of the choice among heads.
    """

    def __init__(self, width: int, heads: int, ratio: float, temperature: float) -> None:
        super().__init__()
        self.projection, self.mechanism = Biased(width, heads), build_for({}, "reversed")
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.selector, self.temperature = nn.Linear(width, heads), max(temperature, LEAST)
        self.controller = nn.Sequential(nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, 1))
        inner = int(width * ratio)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def sends(self, x: Tensor, message: Tensor) -> tuple[Tensor, Tensor]:
        """What each token sends in each head ``(b, h, n)``, and what is left of its message ``(b, n)``."""
        message = message * torch.sigmoid(self.controller(x))[..., 0]
        choice = torch.softmax(self.selector(x) / self.temperature, -1).mT
        return choice * message[:, None], message

    def forward(self, x: Tensor, message: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens ``(b, n, width)`` and messages ``(b, n)``, both anew."""
        read = self.norms[0](x)
        q, k, v = self.projection(read, read)
        send, message = self.sends(read, message)
        x = x + self.projection.out(merge_heads(self.mechanism(q, k, v, send=send)))
        return x + self.mlp(self.norms[1](x)), message

    def weights(self, x: Tensor, message: Tensor) -> Tensor:
        """A ``(b, h, n, n)``."""
        read = self.norms[0](x)
        q, k, _ = self.projection(read, read)
        return self.mechanism.weights(q, k, send=self.sends(read, message)[0])


@published(
    "dependency_vit",
    family="vit",
    kind="network",
    title="Visual Dependency Transformers: Dependency Tree Emerges from Reversed Attention",
    arxiv="2304.03282",
    year=2023,
    fidelity="abstract only",
    claim=(
        Claim(
            "what all columns of a layer send is what is left of the messages, which never grows from layer to layer",
            cells="senders.messages",
            holds="senders.is_kept",
        ),
        Claim(
            "without retraining, leaving out the half that sends least costs at most one point of accuracy on digits, "
            "and less than leaving out a random half, in the mean of five seeds",
            cells="senders.pruned",
            holds="senders.costs_little",
        ),
    ),
)
class DependencyViT(Network):
    """A vision transformer of reversed attention, whose answer is read from what is left of the tokens' messages.

        logits = W norm(Σ_j m_j x_j / Σ_j m_j),   m = 1 before the first layer, see `SendingBlock`

    Pruned (DependencyViT-Lite), a share of the tokens with the smallest messages is left out behind some layers. A
    token's columns of A sum to its message over all heads, so that these are those that send least.

    Shapes: ``images (b, channels, y, x)`` -> ``(b, classes)``; zeros fill up to whole patches, positions are
    interpolated to the grid.

    Args:
        classes: to tell apart. width, heads, depth, ratio: of the blocks. patch: its side. grid: rows and columns of
            learned positions. temperature: of the choice among heads. prune: the share of tokens that is left out.
            after: layers, from 1, behind which; as many as there are divide `depth`. channels, seed: see `Stages`.

    Raises:
        ValueError: a share that is none, or a layer that there is not.

    Paper: Ding et al., arXiv 2304.03282. The authors published no code.
    """

    def __init__(
        self,
        classes: int = 1000,
        width: int = 192,
        heads: int = 12,
        depth: int = 12,
        ratio: float = 4,
        patch: int = 16,
        grid: int = 14,
        temperature: float = 0.1,
        prune: float = 0.0,
        after: Sequence[int] = (2, 5, 8, 11),
        channels: int = 3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= prune < 1 or (prune and not set(after) <= set(range(1, depth + 1))):
            raise wrong("prune, after", f"{prune}, {tuple(after)}", f"a share below 1, layers from 1 to {depth}")
        self.patch, self.prune, self.after = patch, prune, tuple(after)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.patches = nn.Conv2d(channels, width, patch, patch)
            self.positions = nn.Parameter(0.02 * torch.randn(1, width, grid, grid))
            self.blocks = nn.ModuleList(SendingBlock(width, heads, ratio, temperature) for _ in range(depth))
            self.norm, self.classes = nn.LayerNorm(width), nn.Linear(width, classes)

    def tokens(self, images: Tensor) -> Tensor:
        """``(b, n, width)``, row by row."""
        more = [-size % self.patch for size in images.shape[2:]]
        maps = self.patches(F.pad(images, (0, more[1], 0, more[0])))
        places = F.interpolate(self.positions, maps.shape[2:], mode="bicubic", align_corners=False)
        return flat(maps + places)

    def forward(self, images: Tensor) -> Tensor:
        x, message, _ = self.through(images)
        share = message / message.sum(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        return self.classes(self.norm((share[..., None] * x).sum(1)))

    def sent(self, images: Tensor) -> list[Sent]:
        """What each layer sends."""
        return self.through(images, look=True)[2]

    def through(self, images: Tensor, look: bool = False) -> tuple[Tensor, Tensor, list[Sent]]:
        """Tokens and messages behind the last layer, and if asked for what each layer sends."""
        x, found = self.tokens(images), []
        message = x.new_ones(x.shape[:2])
        tokens = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        for layer, block in enumerate(self.blocks, 1):
            assert isinstance(block, SendingBlock)
            weights = block.weights(x, message) if look else None
            x, message = block(x, message)
            if weights is not None:
                found.append(Sent(weights, message, tokens))
            if self.prune and layer in self.after:
                kept = message.topk(max(1, round((1 - self.prune) * x.shape[1])), 1).indices.sort(1).values
                x = x.gather(1, kept[..., None].expand(-1, -1, x.shape[2]))
                message, tokens = message.gather(1, kept), tokens.gather(1, kept)
        return x, message, found

    @classmethod
    def examples(cls) -> list[Sample]:
        sizes = {"width": 12, "heads": 3, "depth": 2, "ratio": 2, "patch": 4, "grid": 3, "temperature": 0.5}
        plain = image_sample("dependency_vit", cls(7, **sizes), (18, 11))
        return [plain, image_sample("pruned", cls(7, prune=0.4, after=(1,), **sizes), (18, 11))]
