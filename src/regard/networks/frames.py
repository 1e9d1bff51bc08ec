"""A network of frames: each is read by attention, and a recurrence that nothing shortens goes from frame to frame."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regard.blocks.attention import Attention
from regard.blocks.block import Block
from regard.core.atlas import Claim, published
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.core.sizes import Sizes
from regard.mechanisms.scored.softmax import Softmax
from regard.networks.base import Network
from regard.projections.base import Grouped


@published(
    "frame_actions",
    family="linear",
    kind="network",
    row=91,
    title="Recurrence-Complete Frame-based Action Models",
    arxiv="2510.06828",
    year=2025,
    aliases=("recurrence_complete_frames",),
    fidelity="abstract only",
    claim=(
        Claim(
            "tracks products of five-element permutations at four times the trained length, where a transformer of as "
            "many parameters does not",
            cells="tracking.words",
            holds="tracking.follows",
        ),
        Claim("tracks those of three elements so", cells="tracking.small_words", holds="tracking.follows"),
        Claim(
            "its loss falls as a power of the length that it is trained on",
            cells="tracking.lengths",
            holds="tracking.is_a_power",
        ),
        Claim("so it does on three elements", cells="tracking.small_lengths", holds="tracking.is_a_power"),
    ),
)
class FrameActions(Network):
    """Frames of tokens in order, each made one vector by attention, and the next action told by an LSTM over them.

        f_t = mean(transformer(E[frame_t] + P)),   h_t = LSTM(f_1 … f_t),   logits_t = norm(h_t) W

    Frames are read in parallel, bidirectionally; the LSTM goes through them one after the other, in training too, so
    that what it can compute grows with their number. Gradients reach through all of them.

    Shapes: ``frames (b, t, m)`` int64 -> ``(b, t, actions)``.

    Args:
        vocabulary: of token ids. tokens: m, of a frame. actions: how many. width: of the hidden states. depth: blocks
            that read a frame. layers: of the LSTM. heads: of the blocks. inner: of their gated networks. again: blocks
            are computed again in the backward pass, which keeps memory small. seed: of the weights, None for PyTorch's
            running generator.

    Raises:
        ValueError: a size below one, or heads that do not divide the width.

    Paper: Keiblinger, arXiv 2510.06828, of which only the abstract was at hand.
    """

    def __init__(
        self,
        vocabulary: int,
        tokens: int,
        actions: int,
        width: int = 128,
        depth: int = 2,
        layers: int = 2,
        heads: int = 4,
        inner: int = 256,
        again: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        sizes = {"vocabulary": vocabulary, "tokens": tokens, "actions": actions, "layers": layers, "heads": heads}
        for name, size in sizes.items():
            if size < 1:
                raise wrong(name, str(size), "at least 1")
        if width % heads:
            raise wrong("width", str(width), f"a multiple of the {heads} heads")
        self.again = again
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.embedding = nn.Embedding(vocabulary, width)
            self.places = nn.Parameter(torch.randn(tokens, width) * 0.02)
            self.blocks = nn.ModuleList(
                Block(Attention(Softmax(), Grouped(Sizes.even(width, heads))), width, inner) for _ in range(depth)
            )
            self.recurrence = nn.LSTM(width, width, layers, batch_first=True)
            self.norm = nn.RMSNorm(width)
            self.head = nn.Linear(width, actions)

    def read(self, frames: Tensor) -> Tensor:
        """``(frames, width)`` of the tokens of each, ``(frames, m)``."""
        x = self.embedding(frames) + self.places
        for block in self.blocks:
            x = cast(Any, block)(x, Layout())
        return x.mean(1)

    def forward(self, frames: Tensor) -> Tensor:
        """Logits of the action that follows each frame."""
        if frames.dim() != 3 or frames.shape[2] != len(self.places):
            raise wrong("frames", f"shape {tuple(frames.shape)}", f"(batch, frames, {len(self.places)})")
        flat = frames.flatten(0, 1)
        if self.again and torch.is_grad_enabled():
            vectors = cast(Tensor, checkpoint(self.read, flat, use_reentrant=False))
        else:
            vectors = self.read(flat)
        hidden, _ = self.recurrence(vectors.unflatten(0, frames.shape[:2]))
        return self.head(self.norm(hidden))

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        made = cls(11, 5, 7, 12, 2, 2, 3, 17, seed=0)
        return [Sample("5 tokens a frame", made, {"inputs": partial(random_frames, 11, 5), "output": (6, 7)})]


def random_frames(vocabulary: int, tokens: int, batch: int, seed: int) -> tuple[Tensor]:
    """``(b, 6, m)`` random tokens."""
    return (torch.randint(vocabulary, (batch, 6, tokens), generator=torch.Generator().manual_seed(seed)),)
