"""A masked language model of pages, whose layers all use one attention matrix made from the layout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.networks.base import Network
from regard.networks.lm import IGNORED, TOKENS
from regard.networks.skimformer.attention import Skim, SkimBlock, inner


@published(
    "skim_attention",
    family="scored",
    kind="network",
    row=333,
    title="Skim-Attention: Learning to Focus via Document Layout",
    arxiv="2109.01078",
    year=2021,
    aliases=("skimformer", "skimming_mask"),
    claim=Claim(
        text="on pages of two columns the perplexity of masked words is below that of 1-D positions; one q·kᵀ "
        "a forward pass; A does not change with the text; weight in a word's own block is at least twice chance",
        status="works",
        figure="one q·kᵀ in 1 and 4 layers; A equal bit for bit under two texts; three seeds: perplexity 7.1 "
        "against 11.2 to 11.6, and 17 to 21 of a standard encoder with 1-D positions; 4.0 to 4.1 times chance, 1.0 "
        "untrained; the accuracy of a masked encoder is not measured",
        command="pytest tests/claims/test_skim.py",
    ),
)
class Skimformer(Network):
    """An encoder of words and their boxes that attends by layout alone, with one A for all of its layers.

        A = Skim(boxes),   h_0 = E[ids],   h_{l+1} = block_l(h_l, A),   logits = norm(h_L) Eᵀ

    On boxes ``(i, 0, i, 0)`` it knows the order of the words and nothing else of the page. ``skim`` alone, once
    trained, masks any encoder by `hosts.skim.SkimmingMask`.

    Shapes: ``ids (b, n)`` int64, ``boxes (b, n, 4)`` int64 -> ``(b, n, vocabulary)``. Cost: one q·kᵀ, and A·v in every
    layer; memory n² a head, since A is kept.

    Args:
        vocabulary: number of token ids. width: of hidden states and of the embedded boxes. depth: layers of the text.
        heads: of A. places: number of coordinates. layout_depth: blocks that see the boxes before A is made, each with
            a q·kᵀ of its own. seed: of the weights, None for PyTorch's running generator.

    Raises:
        ValueError: a size below one, heads that do not divide the width, ids and boxes of other shapes.

    Paper: Nguyen et al., arXiv 2109.01078; here with norms before what they serve, and padding hidden from the
    layout's encoder too.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        places: int = 1024,
        layout_depth: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if min(vocabulary, depth) < 1:
            raise wrong("vocabulary, depth", f"{vocabulary}, {depth}", "at least 1 each")
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.embedding = nn.Embedding(vocabulary, width)
            nn.init.normal_(self.embedding.weight, std=width**-0.5)
            self.skim = Skim(width, heads, places, layout_depth)
            self.blocks = nn.ModuleList(SkimBlock(width, heads) for _ in range(depth))
        self.norm = nn.RMSNorm(width)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        given = {"inputs": page, "output": (TOKENS, 29)}
        return [
            Sample(f"{depth} layers of the layout", cls(29, 24, 2, 2, 31, depth, seed=0), given) for depth in (0, 1)
        ]

    def intermediates(self, ids: Tensor, boxes: Tensor, key_mask: Tensor | None = None) -> dict[str, Tensor]:
        """A of the layout's own layers, and the one that all layers of the text use."""
        return super().intermediates(ids, boxes, key_mask) | {"skim": self.skim(boxes, Layout(key_mask=key_mask))}

    def forward(self, ids: Tensor, boxes: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Logits of each token; ``key_mask (b, n)`` False marks padding, whose boxes may be anything within range."""
        if boxes.shape[:2] != ids.shape:
            raise wrong("boxes", f"shape {tuple(boxes.shape)}", f"{(*ids.shape, 4)}: a box for each of the ids")
        x, weights = self.embedding(ids), self.skim(boxes, Layout(key_mask=key_mask))
        for block in self.blocks:
            x = block(x, weights)
        return F.linear(self.norm(x), self.embedding.weight)

    def loss(self, ids: Tensor, boxes: Tensor, targets: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats of ``targets (b, n)`` at the masked tokens, `IGNORED` at all others."""
        logits = self(ids, boxes, key_mask)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)

    def flops(self, n: int, batch: int = 1) -> int:
        """FLOPs of the matrix products of ``forward`` over ``n`` tokens, by formula."""
        vocabulary, width = self.embedding.weight.shape
        network, skim = 3 * width * inner(width), 2 * width**2 + n * width
        layout = len(self.skim.encoder) * (4 * width**2 + 2 * n * width + network)
        text = len(self.blocks) * (2 * width**2 + n * width + network)
        return 2 * batch * n * (skim + layout + text + width * vocabulary)


def page(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random words and their boxes, for the laws."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(31, (batch, TOKENS, 2, 2), generator=generator).sort(2).values
    return torch.randint(29, (batch, TOKENS), generator=generator), corners.flatten(2)
