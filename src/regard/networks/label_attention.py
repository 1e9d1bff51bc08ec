"""Attention heads that stand for labels, and a parser of constituents that reads what they gather."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.core.atlas import Claim, published
from regard.core.build import build
from regard.core.errors import wrong
from regard.core.kinds import Sample
from regard.core.layout import Layout
from regard.networks.base import Network


class Standardised(nn.Module):
    """``a (x − mean) / (s + 10⁻³) + b`` with s the deviation of a sample, as the authors' layers have it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-3) + self.shift


@published(
    "label_attention",
    family="structured",
    kind="network",
    row=339,
    title="Rethinking Self-Attention: Towards Interpretability in Neural Parsing",
    arxiv="1911.03875",
    year=2020,
    aliases=("lal", "label_attention_layer"),
    missing="halves of words that hold position alone, and trees of heads and dependents",
    fidelity="authors' code",
    claim=(
        Claim(
            "a parser with it has an F1 of brackets at least as high as one with self-attention of the same size",
            cells="parsing.brackets",
            holds="parsing.is_as_good",
        ),
        Claim(
            "without a label's head the F1 of that label falls twice as much as that of others",
            cells="parsing.brackets",
            holds="parsing.heads_are_labels",
        ),
    ),
)
class LabelAttention(Network):
    """A layer whose heads are labels: each asks all words one learned question, and what it hears goes to every word.

        a_l = softmax_j(q_l · (K_l x_j) / √c),   c_l = Σ_j a_lj V_l x_j
        y_il = norm(R (W c_l + x_i)),   y_i = [y_i1; …; y_iL]

    q is learned; W and R are shared by the labels. R (W c + x) is a sum of two parts, so that no tensor has a number
    for each word, label and channel.

    Shapes: ``x (b, n, c)``, ``key_mask (b, n)`` -> ``(b, n, L projected)``.

    Args:
        channels: c. labels: L. size: of keys and values. projected: of each y_il, even: halves are for spans.
        seed: of the initial weights; None takes PyTorch's.

    Raises:
        ValueError: sizes below one, an odd ``projected``, or x of other channels.

    Paper: Mrini et al., arXiv 1911.03875. In batches of more than one sentence the authors' code gives the queries of
    labels to the keys of others; here a batch is what its sentences are.
    """

    def __init__(
        self, channels: int, labels: int = 112, size: int = 64, projected: int = 64, seed: int | None = None
    ) -> None:
        super().__init__()
        if min(channels, labels, size, projected) < 1 or projected % 2:
            came = f"{channels}, {labels}, {size}, {projected}"
            raise wrong("channels, labels, size, projected", came, "at least 1 each, the last even")
        if seed is not None:
            torch.manual_seed(seed)
        self.channels, self.labels = channels, labels
        self.query = nn.Parameter(nn.init.xavier_normal_(torch.empty(labels, size)))
        self.key, self.value = (
            nn.Parameter(nn.init.xavier_normal_(torch.empty(labels, channels, size))) for _ in range(2)
        )
        self.attention = build("softmax", scale=channels**-0.5)
        self.join, self.reduce = nn.Linear(size, channels, bias=False), nn.Linear(channels, projected, bias=False)
        self.norm = Standardised(projected)

    def gather(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """c, ``(b, L, size)``: what each label hears."""
        if x.dim() != 3 or x.shape[2] != self.channels:
            raise wrong("x", f"shape {tuple(x.shape)}", f"(b, n, {self.channels})")
        k, v = (torch.einsum("bnc,lcd->blnd", x, each) for each in (self.key, self.value))
        q = self.query[None, :, None].expand(x.shape[0], -1, -1, -1)
        return self.attention(q, k, v, Layout(key_mask=key_mask))[:, :, 0]

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        heard = self.reduce(self.join(self.gather(x, key_mask)))
        return self.norm(heard[:, None] + self.reduce(x)[:, :, None]).flatten(2)

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        given = {"inputs": partial(vectors, channels=8), "output": (11, 20)}
        return [Sample("5 labels", cls(8, 5, 6, 4, seed=0), given)]


class SpanParser(Network):
    """Scores of labels for every span of a sentence, read from label attention or from self-attention.

        f_i = forward half of y_i,  b_i = backward half,   span (i, j) = [f_j − f_i; b_{i+1} − b_{j+1}]
        scores = W relu(norm(W' span)),   the label "none" scores zero

    A sentence has a word before its first and one behind its last. Spans go from a fence between words to another.

    Shapes: ``words (b, n)`` ids -> ``(b, n − 1, n − 1, labels)`` of spans from fence i to fence j.

    Args:
        words: vocabulary. labels: of spans. width: of words. projected: of each head. attention: "labels", a head for
            each label; "self", as many heads of self-attention. longest: of sentences. own: whether a label is scored
            from its own head alone. seed: of the initial weights.

    Raises:
        ValueError: another attention, or a sentence that is too long.

    Paper: Mrini et al., arXiv 1911.03875, after Kitaev and Klein, arXiv 1805.01052.
    """

    def __init__(
        self,
        words: int,
        labels: int,
        width: int = 64,
        projected: int = 16,
        attention: str = "labels",
        longest: int = 32,
        own: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if attention not in ("labels", "self"):
            raise wrong("attention", repr(attention), "'labels' or 'self'")
        if seed is not None:
            torch.manual_seed(seed)
        self.longest, self.projected, self.labels = longest, projected, labels
        self.embedding, self.places = nn.Embedding(words, width), nn.Parameter(torch.randn(longest, width) * 0.5)
        self.before = SelfAttention(width, 4, width // 4, width)
        wide = labels * projected
        if attention == "labels":
            self.layer: nn.Module = LabelAttention(width, labels, width // 4, projected)
        else:
            self.layer = SelfAttention(width, labels, projected, wide)
        self.own, hidden = own, 16 if own else 64
        self.norm = Standardised(hidden)
        self.first = nn.Linear(projected if own else wide, hidden * (labels if own else 1))
        self.second = nn.Linear(hidden, labels)

    def heads(self, words: Tensor) -> Tensor:
        """What the layer says of each word, ``(b, n, labels · projected)``."""
        if words.shape[1] > self.longest:
            raise wrong("words", f"{words.shape[1]} words", f"at most {self.longest}")
        x = self.embedding(words) + self.places[: words.shape[1]]
        return self.layer(self.before(x))

    def read(self, heads: Tensor) -> Tensor:
        """Scores of the spans."""
        front, back = heads.unflatten(2, (self.labels, -1)).chunk(2, -1)
        fences = torch.cat([front[:, :-1], back[:, 1:]], -1)
        if not self.own:
            fences = torch.cat([part.flatten(2) for part in fences.chunk(2, -1)], -1)
        spans = fences[:, None] - fences[:, :, None]
        if not self.own:
            return self.second(F.relu(self.norm(self.first(spans))))
        weights, shift = (
            self.first.weight.unflatten(0, (self.labels, -1)),
            self.first.bias.unflatten(0, (self.labels, -1)),
        )
        hidden = F.relu(self.norm(torch.einsum("bijlp,lhp->bijlh", spans, weights) + shift))
        return (hidden * self.second.weight).sum(-1) + self.second.bias

    def forward(self, words: Tensor) -> Tensor:
        return self.read(self.heads(words))

    @classmethod
    def examples(cls) -> Sequence[Sample]:
        given = {"inputs": sentences, "output": (8, 8, 5)}
        made = {"labels": cls(13, 5, 8, 4, "labels", 9, seed=0), "self": cls(13, 5, 8, 4, "self", 9, seed=0)}
        made["own heads"] = cls(13, 5, 8, 4, "labels", 9, own=True, seed=0)
        return [Sample(label, network, given) for label, network in made.items()]


class SelfAttention(nn.Module):
    """Multi-head self-attention with a residual where the width stays, and the norm behind it."""

    def __init__(self, width: int, heads: int, size: int, out: int) -> None:
        super().__init__()
        self.heads, self.attention = heads, build("softmax")
        self.maps, self.join = nn.Linear(width, 3 * heads * size, bias=False), nn.Linear(heads * size, out, bias=False)
        self.through, self.norm = None if width == out else nn.Linear(width, out, bias=False), Standardised(out)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.maps(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = self.join(self.attention(q, k, v, Layout()).transpose(1, 2).flatten(2))
        return self.norm(out + (x if self.through is None else self.through(x)))


def vectors(batch: int, seed: int, channels: int) -> tuple[Any, ...]:
    """Words as vectors for examples."""
    return (torch.randn(batch, 11, channels, generator=torch.Generator().manual_seed(seed)),)


def sentences(batch: int, seed: int) -> tuple[Any, ...]:
    """Words as ids for examples."""
    return (torch.randint(13, (batch, 9), generator=torch.Generator().manual_seed(seed)),)
